"""DP gather and combine in every mode, over how unevenly the ranks are loaded."""

import json

HIDDEN = 7168  # DeepSeek-V3's, 14,336 bytes a row in bf16
BALANCES = [1.0, 0.75, 0.5, 0.25]
# Rows of the longest rank.
LONGEST = [4, 16, 64, 256, 1024, 2048]


def counts(dp, balance, longest):
    """Rows of each rank: one is the longest, the others are alike, and mean over longest
    is `balance`. None where that balance is below 1/dp, what one rank alone has."""
    rest = (dp * balance - 1) / (dp - 1) * longest
    if rest < -1e-9:
        return None
    return [longest] + [round(rest)] * (dp - 1)


def steps(dp, longest):
    """Different loads of a longest rank: by balance, and with idle ranks."""
    found = [c for b in BALANCES if (c := counts(dp, b, longest))]
    found.append([longest] * (dp // 2) + [0] * (dp - dp // 2))
    found.append([longest] + [0] * (dp - 1))
    return [c for i, c in enumerate(found) if c not in found[:i]]


def run(node, stage):
    timing = ["--iterations", 2, "--repeats", 2] if node.quick else ["--iterations", 20, "--repeats", 5, "--graph-launches", 5]
    hidden = 256 if node.quick else HIDDEN
    dp = node.ranks
    widths = []
    while dp >= 2:
        widths.append(dp)
        dp //= 2
    for longest in LONGEST[:3] if node.quick else LONGEST:
        for dp in widths:
            words = []
            for step in steps(dp, longest):
                words += ["--requests", ",".join(map(str, step))]
            registration = ["--registration", "none,symmetric"] if node.gpus else []
            stage.run(
                f"dp{dp}-{longest:05}",
                node.run("gather", "--ranks", node.ranks, "--attn-dp", dp, "--hidden", hidden, *timing,
                         *registration, *words),
                json.loads,
            )
    return stage.state()
