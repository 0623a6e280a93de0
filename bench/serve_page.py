"""The page and the plot of bench.serve."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def stage_table(result: Mapping[str, Any]) -> list[str]:
    stages = {**result["stages_ms"], "clip's end to answer sent": result["end_to_end_ms"]}
    lines = ["| stage | p50 ms | p99 ms |", "|---|---|---|"]
    lines += [f"| {name} | {found.get('p50')} | {found.get('p99')} |" for name, found in stages.items()]
    seen = result["latency_ms"]
    return [*lines, f"| **clip sent to prediction received** | **{seen['p50']}** | **{seen['p99']}** |"]


def trial_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = "| streams | p50 ms | p99 ms | missed | shed | clips a batch | server cores | client cores | right |"
    lines = [head, "|---" * 9 + "|"]
    for row in sorted(rows, key=lambda row: row["streams"]):
        right = "" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
        batch = "" if row["clips_per_batch"] is None else f"{row['clips_per_batch']:.1f}"
        lines.append(
            f"| {row['streams']} | {row['latency_ms']['p50']} | {row['latency_ms']['p99']} | {row['miss_share']:.1%} "
            f"| {row['shed_share']:.1%} | {batch} | {row['server_cores']:.2f} | {row['client_cores']:.2f} | {right} |"
        )
    return lines


def _workers(count: int) -> str:
    if not count:
        return "a worker process for each core"
    return "one process" if count == 1 else f"{count} worker processes"


def page(found: Mapping[str, Any], options: argparse.Namespace, shown: str, device: str) -> list[str]:
    """The page of results."""
    lines = [f"# Serving: bundle `{options.bundle}`, {shown}, on {device}", ""]
    lines += [
        f"Live: packets of {options.batch_ms:g} ms in one message, {options.seconds:g} s a trial, the first 5 s (or a",
        "quarter) not counted. Latency is from the message that completes a clip to the first prediction of its",
        "window, as the client sees it; stages are the server's own histograms. Server and clients share the cores;",
        f"what the clients took is told beside. The server has {_workers(options.workers)}.",
        "",
    ]
    if "streams" in found:
        lines += [f"## {found['streams']['streams']} streams", "", *stage_table(found["streams"]), ""]
        lines += [*trial_table([found["streams"]]), ""]
        answer = "yes" if options.holds else "no"
        lines += [f"All in real time (p99 at most {options.limit_ms:g} ms, nothing shed): **{answer}**.", ""]
    if "most" in found:
        lines += [f"## The most that hold: {found['most']}", "", *trial_table(found["trials"]), ""]
    if "loop" in found:
        loop = found["loop"]
        lines += [
            "## A plain loop",
            "",
            "Batch 1, one stream after the other, no network, as fast as it can:",
            f"{loop['held_by_one_process']:.0f} streams in one process, {loop['held_by_every_core']:.0f} if every core",
            "ran one and did nothing else.",
            "",
        ]
    if "load" in found:
        lines += ["## Overload", "", "The bundled demo, whose truth is known; answers are due after the limit.", ""]
        for name, words in (("shedding", "With shedding"), ("none", "Without")):
            lines += [f"{words}:", "", *trial_table(found["load"][name]), ""]
        lines += [f"![accuracy and latency against streams]({options.name}.png)", ""]
    return lines


def plot(load: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, limit: float) -> None:
    """What is in time, right and shed against load, with shedding and without, and the latency below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(7.2, 5.8), dpi=150)
    for name, words, colour in (("none", "no shedding", "#888888"), ("shedding", "shedding", "#1f6f8b")):
        rows = load[name]
        at = [row["streams"] for row in rows]
        above.plot(at, [1 - row["miss_share"] for row in rows], "o-", color=colour, label=f"answered in time, {words}")
        above.plot(at, [row["accuracy"] for row in rows], "s--", color=colour, label=f"right, {words}")
        if name == "shedding":
            above.plot(at, [row["shed_share"] for row in rows], ":", color=colour, label="shed (video or audio)")
        for quantile, line in (("p50", "--"), ("p99", "-")):
            seen = [row["latency_ms"][quantile] for row in rows]
            below.plot(at, seen, line, color=colour, marker="o", markersize=3, label=f"{quantile}, {words}")
    above.set(ylim=(0, 1.02), ylabel="share", title="More streams than fit")
    below.axhline(limit, color="0.6", linewidth=0.8, linestyle=":")
    below.set(yscale="log", xlabel="streams at once", ylabel="clip complete to prediction, ms")
    below.yaxis.set_minor_formatter(NullFormatter())  # the decades are enough
    below.yaxis.set_major_formatter("{x:g}")
    for axes in (above, below):
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
