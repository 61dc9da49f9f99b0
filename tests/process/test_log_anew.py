"""The interchange's log begins anew when it has become long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WRITER = """
import sys
from pathlib import Path
from balsamfut.interchange.files import begin_log_anew
for number in range(1000):
    print(f"line {number}", file=sys.stderr, flush=True)
    begin_log_anew(Path(sys.argv[1]), 2000)
print("last", flush=True)
"""


def test_a_long_log_begins_anew_and_the_one_before_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log" / "interchange.log"
    log.parent.mkdir()
    with log.open("ab") as file:
        subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], stdout=file, stderr=file, check=True)
    old, new = (path.read_text().splitlines() for path in (log.with_name("interchange.log.1"), log))
    assert sorted(path.name for path in log.parent.iterdir()) == ["interchange.log", "interchange.log.1"]
    assert new[-2:] == ["line 999", "last"] and len(old) < 400
    assert old[-1] == f"line {int(new[0].split()[1]) - 1}"


def test_output_that_goes_elsewhere_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "log" / "interchange.log"
    log.parent.mkdir()
    log.write_text("of somebody else\n")
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == 1000 and done.stdout == "last\n"
    assert log.read_text() == "of somebody else\n" and len(list(log.parent.iterdir())) == 1
