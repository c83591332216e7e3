"""The calibration of this node, and predictions held against steps that it never saw."""

import json
import os


def calibrate(node, stage):
    out = os.path.join(stage.path, "calibration.toml")
    budget = 20 if node.quick else max(30, min(240, stage.left() - 60))
    command = [node.parplan, "calibrate", "--backend", node.backend, "--ranks", str(node.ranks),
               "--budget", f"{budget:.0f}", "--out", out, "--json"]
    if os.path.exists(out) and not os.path.exists(stage.file("calibration")):
        os.remove(out)
    if os.path.exists(out + ".journal"):
        command.append("--resume")
    stage.run("calibration", command, json.loads, timeout=stage.limit)
    return stage.state()


# Layouts whose step fewer ranks foretell by running the shapes of some of its ranks.
SHARDS = {
    "qwen3-235b": [["--ep", None], ["--attn-dp", None, "--ep", None]],
    "deepseek-v3": [["--ep", None], ["--attn-dp", None, "--ep", None]],
}


def verify(node, stage):
    """Held-out steps, measured once and judged by each calibration."""
    kept = os.path.join(stage.path, "measured.json")
    made = os.path.join(os.path.dirname(stage.path), "calibrate", "calibration.toml")
    steps = 4 if node.quick else 40
    budget = max(30, stage.left() * 0.6)
    calibration = ["--calibration", made] if os.path.exists(made) else []
    verdict = [node.parplan, "verify", "--json"]
    # Exit code 1: the median error is above what verify calls good, a result here.
    there = stage.run(
        "made-here" if calibration else "shipped",
        verdict + ["--backend", node.backend, "--ranks", str(node.ranks), "--steps", str(steps), "--seed", "11",
                   "--budget", f"{budget:.0f}", "--keep", kept, *calibration],
        json.loads, timeout=stage.limit, ok=(0, 1),
    )
    if there and calibration:
        stage.run("shipped", verdict + ["--measured", kept], json.loads, ok=(0, 1))
    return stage.state()


def shards(node, stage):
    """Steps of all ranks beside the same shapes run on two of them."""
    size = ["--scale", min(16, 64 // node.ranks), "--layers", 2, "--context", 64, "--batch", "1,3", "--repeats", 2] if node.quick else [
        "--layers", 4, "--context", 8192, "--batch", "1,16,64", "--repeats", 12]
    graph = ["--graph"] if node.gpus else []
    for model, layouts in SHARDS.items() if node.ranks > 2 else ():
        for layout in layouts:
            flags = [node.ranks if word is None else word for word in layout]
            name = "".join(f"-{f.lstrip('-')}" if isinstance(f, str) else str(f) for f in flags)
            whole = ["--model", model, *size, *graph, "--tp", node.ranks, *flags]
            stage.run(f"whole-{model}{name}", node.run("stack", *whole), json.loads)
            few = [2 if word is None else word for word in layout]
            larger = ",".join([f"tp={node.ranks}"] + [f"{f.lstrip('-')}={node.ranks}" for f in layout if f])
            stage.run(
                f"shards-{model}{name}",
                node.run("stack", "--model", model, *size, *graph, "--tp", 2, *few, "--as-shard-of", larger),
                json.loads,
            )
    return stage.state()
