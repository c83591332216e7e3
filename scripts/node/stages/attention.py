"""Attention whose KV cache ranks share (DCP), in every way and at every legal width; and
decoder layers with it against plain tensor parallelism."""

import json

# Tokens (decoding requests) and KV tokens of each.
POINTS = [(t, c) for c in (8192, 131072) for t in (1, 16, 256)] + [(4, 32768), (64, 32768)]
QUICK = [(1, 64), (5, 96)]


def groups(ranks):
    """What one DCP group runs, of models with so many KV heads on TP `ranks`: a name, and
    the options. A KV head has ranks / heads copies, which DCP may share; latent KV is
    copied to every rank. Models that look alike to a group are one case."""
    found = {}
    for kv_heads in (1, 2, 4):
        dcp = 2
        while dcp <= ranks // kv_heads:
            # 64 query heads over TP, of which a group has those of its ranks.
            heads = 64 // ranks * dcp
            found.setdefault((dcp, "gqa", heads), []).append(kv_heads)
            dcp *= 2
    dcp = 2
    while dcp <= ranks:
        found.setdefault((dcp, "mla", 128 // ranks * dcp), []).append(1)
        dcp *= 2
    for (dcp, kind, heads), models in found.items():
        options = ["--kind", kind, "--heads", heads, "--dcp", dcp]
        options += ["--kv-heads", 1, "--page", 16] if kind == "gqa" else ["--page", 64]
        name = f"{kind}{'+'.join(map(str, models)) if kind == 'gqa' else ''}-dcp{dcp}"
        yield name, options


def run(node, stage):
    timing = ["--iterations", 2, "--repeats", 2] if node.quick else ["--iterations", 10, "--repeats", 5, "--graph-launches", 2]
    for tokens, context in QUICK if node.quick else POINTS:
        for name, options in groups(node.ranks):
            gpu = ["--launch", "graph", "--registration", "none,symmetric"] if node.gpus else []
            check = ["--check"] if context <= 8192 else []
            stage.run(
                f"{name}-{tokens:03}x{context:06}",
                node.run("attention", *options, "--batch", tokens, "--context", context, *timing, *gpu, *check),
                json.loads,
            )
    return stage.state()


def layouts(ranks):
    """Layouts that decode the same requests: TP, and TP with DCP of every legal width. A
    model with 4 KV heads has copies of them from TP 8 on: fewer ranks run the shapes of
    some ranks of TP 8."""
    dcps = [d for d in (1, 2, 4, 8) if d <= ranks]
    for dcp in dcps:
        for merge in ["ag-rs"] if dcp == 1 else ["ag-rs", "a2a"]:
            options = ["--tp", ranks, "--dcp", dcp, "--dcp-merge", merge]
            yield f"deepseek-v3-tp{ranks}-dcp{dcp}-{merge}", ["--model", "deepseek-v3", *options]
            wide = max(ranks, 8)
            if dcp <= wide // 4:
                shard = [] if wide == ranks else ["--as-shard-of", f"tp={wide},dcp={dcp}"]
                yield f"qwen3-235b-tp{wide}-dcp{dcp}-{merge}", ["--model", "qwen3-235b", *options, *shard]


def decode(node, stage):
    size = ["--scale", 16, "--layers", 2, "--context", "64", "--batch", "1,3", "--repeats", 2, "--warmup", 1] if node.quick else [
        "--layers", 4, "--context", "8192,32768,131072", "--batch", "1,16,64", "--repeats", 12]
    for name, options in layouts(node.ranks):
        graph = ["--graph"] if node.gpus else []
        stage.run(name, node.run("stack", *options, *size, *graph), json.loads)
    return stage.state()
