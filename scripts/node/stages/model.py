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


def verify(node, stage):
    steps = 4 if node.quick else 40
    made = os.path.join(os.path.dirname(stage.path), "calibrate", "calibration.toml")
    against = {"shipped": []}
    if os.path.exists(made):
        against["made-here"] = ["--calibration", made]
    for name, words in against.items():
        # 1: the median error is above what verify calls good, which is a result here.
        stage.run(
            name,
            [node.parplan, "verify", "--backend", node.backend, "--ranks", str(node.ranks), "--steps", str(steps),
             "--seed", "11", "--budget", f"{max(30, stage.left() / 2 - 20):.0f}", *words, "--json"],
            json.loads, timeout=stage.limit, ok=(0, 1),
        )
    return stage.state()
