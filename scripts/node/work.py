"""The node that is measured, and the folder where results are kept."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import time


class Node:
    """The machine, the programs on it, and how wide it is measured."""

    def __init__(self, given, ranks):
        self.parplan = os.path.abspath(given.parplan)
        self.backend = given.backend
        self.ranks = ranks
        self.rounds = given.rounds
        self.quick = given.quick
        self.nccl_tests = given.nccl_tests and os.path.abspath(given.nccl_tests)
        self.mpiexec = shutil.which(given.mpiexec) or given.mpiexec
        self.env = dict(os.environ)
        if given.mpi_lib:
            paths = [os.path.abspath(given.mpi_lib), self.env.get("LD_LIBRARY_PATH", "")]
            self.mpi_env = dict(self.env, LD_LIBRARY_PATH=":".join(p for p in paths if p))
        else:
            self.mpi_env = self.env

    def keep_compiled(self, folder):
        """Compiled kernels of every program that is run, unless the user has a place for them."""
        for env in (os.environ, self.env, self.mpi_env):
            env.setdefault("CUDA_CACHE_PATH", folder)

    @staticmethod
    def of(given):
        if given.ranks:
            return Node(given, given.ranks)
        if given.backend == "cpu":
            return Node(given, 2)
        count = len(smi("index"))
        if count < 2:
            sys.exit(f"node.py: nvidia-smi shows {count} GPUs, at least 2 are measured; --backend cpu needs none")
        return Node(given, count)

    @property
    def gpus(self):
        return self.backend == "nccl"

    def run(self, *words):
        """`parplan run …` on this backend, as a command."""
        return [self.parplan, "run", *map(str, words), "--backend", self.backend, "--json"]

    def seated(self, words, seats):
        """The program under the MPI launcher, each rank on its seat."""
        seat = os.path.join(os.path.dirname(os.path.abspath(__file__)), "seat.py")
        return [self.mpiexec, "-n", str(self.ranks), sys.executable, seat, ",".join(map(str, seats)), *words]

    def seated_run(self, seats, *words):
        """`parplan run …` started by the MPI launcher as nccl-tests is, and its environment."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = self.seated(self.run(*words, "--rendezvous", f"127.0.0.1:{port}"), seats)
        return command, dict(self.mpi_env, PARPLAN_SECRET="ranks of one node's measurement")

    def seats(self, turn):
        """A CPU for each rank. CPUs launch at speeds of their own, so that two programs are only
        compared on the same ones, and each round draws others."""
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < self.ranks:
            sys.exit(f"node.py: {self.ranks} ranks beside nccl-tests need a CPU each, this process may use {len(cpus)}")
        return random.Random(turn).sample(cpus, self.ranks)


def smi(fields):
    """Rows of nvidia-smi's answer; none where there is no driver."""
    try:
        out = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in out.splitlines() if line.strip()]


def write_whole(path, text):
    """The file has all of the text or does not change."""
    partial = path + ".partial"
    with open(partial, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


class Work:
    """Results: `<stage>/<case>.json`, archives of whole stages in `pack`."""

    def __init__(self, folder, pack):
        self.folder, self.packed = folder, pack
        os.makedirs(folder, exist_ok=True)
        if pack:
            os.makedirs(pack, exist_ok=True)

    def stage(self, name, limit):
        path = os.path.join(self.folder, name)
        archive = self.packed and os.path.join(self.packed, f"{name}.tgz")
        if archive and os.path.exists(archive) and not os.path.isdir(path):
            with tarfile.open(archive) as tar:
                # Older versions of Python 3.9 to 3.11 have no filters.
                tar.extractall(self.folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        os.makedirs(path, exist_ok=True)
        return Stage(path, limit)

    def pack(self, name):
        if self.packed:
            archive = os.path.join(self.packed, f"{name}.tgz")
            with tarfile.open(archive + ".partial", "w:gz") as tar:
                tar.add(os.path.join(self.folder, name), name)
            os.replace(archive + ".partial", archive)

    def pack_table(self, text):
        if self.packed:
            write_whole(os.path.join(self.packed, "table.txt"), text)
            shutil.copy(os.path.join(self.folder, "machine.json"), self.packed)

    def write(self, name, text):
        write_whole(os.path.join(self.folder, name), text)

    def note_machine(self, node):
        version = subprocess.run([node.parplan, "--version"], capture_output=True, text=True)
        if version.returncode:
            sys.exit(f"node.py: {node.parplan} --version fails: {version.stderr.strip()}")
        self.write("machine.json", json.dumps({
            "parplan": version.stdout.strip(),
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "backend": node.backend,
            "ranks": node.ranks,
            "gpus": smi("name,driver_version,memory.total") if node.gpus else [],
            "cores": os.cpu_count(),
            "nccl_environment": {k: v for k, v in node.env.items() if k.startswith("NCCL_")},
        }, indent=1))

    def cases(self, name):
        """Finished cases of a stage, (name, content), in order. Other files that a stage
        keeps, such as what `verify --keep` wrote, are none."""
        path = os.path.join(self.folder, name)
        for file in sorted(os.listdir(path) if os.path.isdir(path) else []):
            if file.endswith(".json"):
                with open(os.path.join(path, file)) as opened:
                    content = json.load(opened)
                if isinstance(content, dict) and "result" in content:
                    yield file[:-5], content


class Stage:
    """One stage's cases, within its time."""

    def __init__(self, path, limit):
        self.path, self.limit, self.begin = path, limit, time.monotonic()
        self.longest, self.failed, self.left_out, self.done = 0.0, [], 0, 0

    def left(self):
        return self.limit - (time.monotonic() - self.begin)

    def file(self, case, ending="json"):
        return os.path.join(self.path, f"{case}.{ending}")

    def missing(self, case):
        """Whether the case is still to do, and time is left for one like the longest."""
        if os.path.exists(self.file(case)):
            self.done += 1
            return False
        if self.left() < self.longest + 2:
            self.left_out += 1
            return False
        return True

    def run(self, case, command, read, env=None, timeout=120, ok=(0,)):
        """Runs a missing case and keeps what `read` makes of its output; a failure keeps
        its words in `<case>.failed` and is tried again next time. Whether it is there."""
        if not self.missing(case):
            return os.path.exists(self.file(case))
        begin = time.monotonic()
        timeout = max(1.0, min(timeout, self.left()))
        try:
            end = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout)
            output, why = end.stdout, "" if end.returncode in ok else f"exit code {end.returncode}\n{end.stderr}"
        except subprocess.TimeoutExpired:
            output, why = "", f"ended after {timeout:.0f} s"
        took = time.monotonic() - begin
        self.longest = max(self.longest, took)
        content = None
        if not why:
            try:
                content = read(output)
            except (ValueError, KeyError) as e:
                why = f"output not understood: {e!r}\n{output[-2000:]}"
        if why:
            self.failed.append(case)
            write_whole(self.file(case, "failed"), " ".join(command) + "\n" + why + "\n")
            print(f"  {case} failed: {why.strip()[-300:]}", flush=True)
            return False
        write_whole(self.file(case), json.dumps({"command": command, "took_s": round(took, 2), "result": content}))
        if os.path.exists(self.file(case, "failed")):
            os.remove(self.file(case, "failed"))
        self.done += 1
        return True

    def state(self):
        words = [f"{self.done} cases there"]
        if self.failed:
            words.append(f"{len(self.failed)} failed: {', '.join(self.failed)}")
        if self.left_out:
            words.append(f"{self.left_out} left out for time; run again for them")
        return ", ".join(words)
