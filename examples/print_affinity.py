"""The MPI program of hello_affinity.py: rank 0 prints, for each rank, where it runs and what it was given.

    mpiexec -n 12 python print_affinity.py
"""

from __future__ import annotations

import os
import socket

from mpi4py import MPI

world = MPI.COMM_WORLD
variables = ("ZE_AFFINITY_MASK", "OMP_NUM_THREADS", "BALSAMFUT_CORES")
given = " ".join(f"{name}={os.environ.get(name, '')}" for name in variables)
for rank, line in enumerate(world.gather(f"on {socket.gethostname()} {given}") or []):
    print(f"rank {rank} of {world.size} {line}")
