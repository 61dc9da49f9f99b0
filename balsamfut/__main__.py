"""`python -m balsamfut` is `balsamfut`."""

from __future__ import annotations

import sys

from balsamfut.cli import main

if __name__ == "__main__":
    sys.exit(main())
