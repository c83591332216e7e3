#!/usr/bin/env python3
"""Runs a program of an MPI launcher with each rank on a CPU of its own:

    mpiexec -n 2 seat.py 5,9 PROGRAM ARGUMENT…      # rank 0 on CPU 5, rank 1 on CPU 9
"""

import os
import sys

RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")


def main():
    seats, program = sys.argv[1].split(","), sys.argv[2:]
    rank = next((os.environ[name] for name in RANKS if name in os.environ), None)
    if rank is None:
        sys.exit(f"seat.py: none of {', '.join(RANKS)} is set: the launcher does not say which rank this is")
    os.sched_setaffinity(0, {int(seats[int(rank)])})
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
