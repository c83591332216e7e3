"""The short table of what a node's results say."""

import statistics


def medians(pairs):
    found = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return {key: statistics.median(values) for key, values in found.items()}


def of(work, node):
    parts = [collectives(work), peers(work), gather(work), attention(work), decode(work), verify(work), shards(work)]
    return "\n".join(line for part in parts for line in part) + "\n"


def points(work):
    """(collective, registration, launch, in place, bytes): medians over rounds, ours and
    nccl-tests'."""
    ours, theirs = [], []
    for case, content in work.cases("collectives"):
        words = case.split("-")
        if words[-1] == "ours":
            for s in content["result"]["samples"]:
                key = (s["collective"], s["registration"], s["launch"], s["in_place"], s["bytes"])
                ours.append((key, s["time"]["median_us"]))
        elif "theirs" in words:
            name, _, _, registration, launch = words
            # Its broadcast works on one buffer whatever the column.
            places = (False,) if name == "broadcast" else (True, False)
            for row in content["result"]:
                for in_place in places:
                    key = (name, registration, launch, in_place, row["bytes"])
                    theirs.append((key, row["in_us" if in_place else "out_us"]))
    return medians(ours), medians(theirs)


def within(ours, theirs, size):
    """As near as issue 3 asks: 3 % from 4 MiB up, below that 10 % or 0.7 µs."""
    return ours <= theirs * 1.03 if size >= 4 << 20 else ours <= max(theirs * 1.10, theirs + 0.7)


def collectives(work):
    ours, theirs = points(work)
    if not ours:
        return
    both = sorted(k for k in ours if k in theirs)
    if both:
        for launch in ("graph", "stream"):
            for large in (True, False):
                some = [k for k in both if k[2] == launch and (k[4] >= 4 << 20) == large]
                good = sum(within(ours[k], theirs[k], k[4]) for k in some)
                yield f"nccl-tests, {launch}, {'from' if large else 'below'} 4 MiB: {good} of {len(some)} within"
        for k in both:
            if not within(ours[k], theirs[k], k[4]):
                yield f"  {k[0]} {k[1]} {k[2]} {'in' if k[3] else 'out'} {k[4]}: {ours[k]:.2f} µs, nccl-tests {theirs[k]:.2f}"
    yield "collective, µs in place in a graph (CPU: stream): none / local / symmetric"
    graph = "graph" if any(k[2] == "graph" for k in ours) else "stream"
    for name in ("all_gather", "all_reduce", "reduce_scatter"):
        for size in sorted({k[4] for k in ours if k[0] == name}):
            row = [ours.get((name, r, graph, True, size)) for r in ("none", "local", "symmetric")]
            if any(row):
                yield f"  {name:14} {size:>10} " + " / ".join("-" if v is None else f"{v:.2f}" for v in row)


def peers(work):
    best = {}
    for case, content in work.cases("collectives"):
        if case == "peers":
            for s in content["result"]["samples"]:
                if s["launch"] == "graph":
                    own = s["implementation"].startswith("parplan")
                    name = s["implementation"].removeprefix("parplan peer ") if own else "nccl"
                    row = best.setdefault((s["collective"], s["bytes"]), {})
                    row[name] = min(row.get(name, 1e9), s["time"]["median_us"])
    if best:
        yield "peer kernels, µs in a graph, beside the best of NCCL"
    for (name, size), row in sorted(best.items()):
        yield f"  {name:11} {size:>8} " + ", ".join(f"{n} {v:.2f}" for n, v in row.items())


def gather(work):
    rows = []
    for case, content in work.cases("gather"):
        times = {}
        for s in content["result"]["samples"]:
            key = (tuple(s["tokens"]), s["launch"], s["registration"])
            times.setdefault(key, {})[s["mode"]] = s["time"]["median_us"]
        rows += [(case, key, found) for key, found in times.items()]
    if rows:
        yield "gather and combine, µs: max_len, sum_len, all_gather_v; balance; c where both cost the same"
    for case, (tokens, launch, registration), found in rows:
        longest, total = max(tokens), sum(tokens)
        maximum, summed = found.get("max_len"), found.get("sum_len")
        wins = min(found, key=found.get)
        exact = found.get("all_gather_v")
        yield (
            f"  {case:12} {launch:6} {registration:9} {','.join(map(str, tokens)):>24} {total / longest / len(tokens):.2f} "
            f"{maximum:9.1f} {summed:9.1f} {'-' if exact is None else format(exact, '9.1f'):>9}  {wins}"
        )


def attention(work):
    rows = {}
    for case, content in work.cases("attention"):
        r = content["result"]
        for s in r["samples"]:
            if s["launch"] != "graph" and r["device"] != "cpu":
                continue
            way = s["way"]["merge"] if s["way"] else "-"
            name = s["part"]
            found = rows.setdefault(case, {}).setdefault(way, {})
            found[name] = min(found.get(name, 1e12), s["time"]["median_us"])
    if rows:
        yield "attention of a DCP group, µs by way: its parts, the best registration of each"
    for case, ways in rows.items():
        yield f"  {case:28} " + "; ".join(
            f"{way} " + ", ".join(f"{part} {us:.1f}" for part, us in parts.items()) for way, parts in ways.items())


def decode(work):
    rows = {}
    for case, content in work.cases("decode"):
        model, layout = case.split("-tp", 1)
        for s in content["result"]["steps"]:
            step = s["step"]
            key = (model, step["context"], max(step["requests"]), s["launch"])
            rows.setdefault(key, {})["tp" + layout] = s["time"]["median_us"]
    if rows:
        yield "decode step of a few layers, µs by layout"
    for key, found in sorted(rows.items()):
        if key[3] == "graph" or not any(k[:3] == key[:3] and k[3] == "graph" for k in rows):
            best = min(found, key=found.get)
            yield f"  {key[0]} context {key[1]} batch {key[2]} {key[3]}: " + ", ".join(
                f"{name} {us:.0f}{'*' if name == best else ''}" for name, us in found.items())


def verify(work):
    for case, content in work.cases("verify"):
        summary = content["result"].get("summary", {})
        yield f"verify against {case}: " + ", ".join(
            f"{k} {v:.3g}" for k, v in summary.items() if isinstance(v, (int, float)))


def shards(work):
    found = {"whole": {}, "shards": {}}
    for case, content in work.cases("shards"):
        kind, _, name = case.partition("-")
        for s in content["result"]["steps"]:
            found[kind][(name, max(s["step"]["requests"]), s["launch"])] = s["time"]["median_us"]
    both = sorted(set(found["whole"]) & set(found["shards"]))
    if both:
        yield "a step of all ranks, and of the same shapes on two of them, µs"
    for key in both:
        whole, two = found["whole"][key], found["shards"][key]
        yield f"  {key[0]} batch {key[1]} {key[2]}: {whole:.0f}, {two:.0f} ({two / whole - 1:+.1%})"
