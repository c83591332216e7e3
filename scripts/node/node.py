#!/usr/bin/env python3
"""Measures a node of GPUs with parplan, in stages that can be taken up again.

    node.py --parplan target/release/parplan --work results            # all GPUs, every stage
    node.py ... --stages collectives,gather --limit 300                # some, 300 s each at most
    node.py ... --backend cpu --ranks 8 --quick                        # a rehearsal without GPUs

Needs Python 3.9 and nothing else. nccl-tests is optional: --nccl-tests FOLDER with its
programs, --mpiexec PROGRAM of the MPI that they were built with. What is finished lies in
the folder --work, a file a case; a second run does what is missing. The table is printed
last and written to --work/table.txt; --pack FOLDER gets one archive a stage beside it.
"""

import argparse
import os
import sys
import time

import table
from stages import STAGES
from work import Node, Work


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parplan", required=True, help="the release binary")
    parser.add_argument("--work", required=True, help="folder of results; made if missing")
    parser.add_argument("--backend", choices=["nccl", "cpu"], default="nccl")
    parser.add_argument("--ranks", type=int, help="ranks of this node [default: all GPUs]")
    parser.add_argument(
        "--stages",
        default=",".join(STAGES),
        help="of %(default)s [default: all, in this order]",
    )
    parser.add_argument("--limit", type=float, default=460, help="seconds a stage may take [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of what is interleaved [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="few small cases: a rehearsal")
    parser.add_argument("--nccl-tests", help="folder with all_gather_perf and the others")
    parser.add_argument("--mpiexec", default="mpiexec", help="starts one process a GPU [%(default)s]")
    parser.add_argument("--mpi-lib", help="folder of the MPI library, if not found by itself")
    parser.add_argument("--pack", help="folder that gets one archive a stage, and the table")
    return parser.parse_args()


def main():
    given = arguments()
    wanted = given.stages.split(",")
    unknown = [name for name in wanted if name not in STAGES]
    if unknown:
        sys.exit(f"node.py: no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    if not os.access(given.parplan, os.X_OK):
        sys.exit(f"node.py: {given.parplan} is no program that can be run; --parplan names the release binary")
    if given.nccl_tests and not os.path.exists(os.path.join(given.nccl_tests, "all_gather_perf")):
        sys.exit(f"node.py: {given.nccl_tests} has no all_gather_perf; --nccl-tests names the folder of nccl-tests' programs")
    node = Node.of(given)
    work = Work(given.work, given.pack)
    if node.gpus:
        # The driver compiles kernels where it finds no earlier result, some seconds for each
        # process of each case; its own folder is none on machines without a home.
        node.keep_compiled(os.path.join(os.path.abspath(given.work), "cuda-cache"))
    work.note_machine(node)
    for name in wanted:
        begin = time.monotonic()
        state = STAGES[name](node, work.stage(name, given.limit))
        print(f"{name}: {state} ({time.monotonic() - begin:.0f} s)", flush=True)
        work.pack(name)
    text = table.of(work, node)
    work.write("table.txt", text)
    work.pack_table(text)
    print(text)


if __name__ == "__main__":
    main()
