#!/usr/bin/env bash
# Whether tests can have pretend hosts (tests/hosts.py) here: installs iproute2 from Debian where it is missing, as root; says
# why not, and fails, where the kernel or the container does not let us.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" -eq 0 ] || { echo "hosts: root is needed"; exit 1; }
PATH="$PATH:/usr/sbin:/sbin"
if ! command -v ip >/dev/null && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    { timeout 120 apt-get -qq update && timeout 120 apt-get -qq install -y --no-install-recommends iproute2; } >/dev/null 2>&1 || true
fi
exec python3 - <<'PYTHON'
import sys
sys.path.insert(0, "tests")
import hosts
sys.exit(hosts.why_not())
PYTHON
