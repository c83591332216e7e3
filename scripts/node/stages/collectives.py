"""Collectives of every kind, registration and launch, beside nccl-tests, interleaved; and
parplan's own kernels over peer memory beside NCCL's."""

import json

SIZES = ["1K", "4K", "16K", "64K", "256K", "1M", "4M", "16M", "64M", "256M"]
SMALL = ["1K", "2K", "4K", "8K", "16K", "32K", "64K", "128K", "256K", "512K"]
# parplan's name: that of nccl-tests, which has no all-gather-v.
COLLECTIVES = {
    "all_gather": "all_gather",
    "all_reduce": "all_reduce",
    "reduce_scatter": "reduce_scatter",
    "all_to_all": "alltoall",
    "broadcast": "broadcast",
    "all_gather_v": None,
}
REGISTRATIONS = {"none": "0", "local": "1", "symmetric": "2"}


def theirs(text):
    """nccl-tests' table: (bytes, out of place µs, in place µs) of each size."""
    rows = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 12 and words[0].isdigit():
            rows.append({"bytes": int(words[0]), "out_us": float(words[5]), "in_us": float(words[9])})
    if not rows:
        raise ValueError("no row of times")
    return rows


def run(node, stage):
    sizes = ",".join(SIZES[:4] if node.quick else SIZES)
    timing = ["--iterations", 5, "--repeats", 2] if node.quick else ["--iterations", 50, "--repeats", 3, "--graph-launches", 5]
    registrations = ["--registration", ",".join(REGISTRATIONS)] if node.gpus else []
    # Once: every communicator and every timed result against the CPU reference.
    stage.run(
        "check",
        node.run("collectives", "--ranks", node.ranks, "--check", "--sizes", "1K,48K,1M", "--repeats", 1,
                 "--iterations", 2, "--implementation",
                 "backend,peer-one-shot,peer-two-shot" if node.gpus else "backend"),
        json.loads,
    )
    stage.run("sync", node.run("sync", "--ranks", node.ranks, "--rounds", 20 if node.quick else 300), json.loads)
    if node.gpus:
        stage.run(
            "peers",
            node.run("collectives", "--ranks", node.ranks, "--collective", "all_gather,all_reduce", "--sizes",
                     ",".join(SMALL), "--implementation", "backend,peer-one-shot,peer-two-shot",
                     "--launch", "graph", "--iterations", 50, "--repeats", 7, "--graph-launches", 10),
            json.loads,
        )
    rounds = 1 if node.quick else node.rounds
    beside = node.nccl_tests and node.gpus
    for turn in range(rounds):
        seats = node.seats(turn) if beside else None
        for name, program in COLLECTIVES.items():
            # Ranks that a launcher starts count themselves.
            what = ["--collective", name, "--sizes", sizes, *registrations, *timing]
            words = ["collectives", "--ranks", node.ranks, *what]
            if not (beside and program):
                stage.run(f"{name}-{turn}-ours", node.run(*words), json.loads)
                continue
            # Launches one by one cost what the host takes: same launcher, same CPUs.
            seated, environment = node.seated_run(seats, "collectives", *what, "--launch", "stream")
            cases = [
                (f"{name}-{turn}-graph-ours", node.run(*words, "--launch", "graph"), json.loads, None),
                (f"{name}-{turn}-stream-ours", seated, json.loads, environment),
            ]
            for registration, flag in REGISTRATIONS.items():
                command = [f"{node.nccl_tests}/{program}_perf", "-b", SIZES[0], "-e", SIZES[-1], "-f", "4", "-g", "1",
                           "-w", "5", "-n", "50", "-d", "bfloat16", "-R", flag, "-c", "0"]
                cases += [
                    (f"{name}-{turn}-theirs-{registration}-stream", node.seated(command, seats), theirs, node.mpi_env),
                    (f"{name}-{turn}-theirs-{registration}-graph",
                     [node.mpiexec, "-n", str(node.ranks), *command, "-G", "5"], theirs, node.mpi_env),
                ]
            # Whoever comes first meets the cooler GPUs: take turns.
            for case, command, read, env in cases if turn % 2 == 0 else cases[::-1]:
                stage.run(case, command, read, env=env)
    return stage.state()
