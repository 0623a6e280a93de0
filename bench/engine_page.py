"""The page and the plot of bench/engine.py."""

from pathlib import Path
from typing import Any

TARGET = 0.85  # of the bare model's throughput


def page(values: dict[str, Any]) -> list[str]:
    """The page of results."""
    rows, seen, slow = values["ms_per_clip"], values["observed"], values["slow"]
    real_time = {name: values["clip_seconds"] * 1e3 / ms for name, ms in rows.items()}
    words = {
        "bare": f"bare model, batch {values['best_batch']}",
        "engine": f"engine and dispatcher, largest batch {values['engine_batch']}",
        "loop": "plain loop, one stream, batch 1",
        "deterministic": "dispatcher, deterministic (byte-equal to a replay)",
    }
    met = "met" if values["of_bare"] >= TARGET else "missed"
    bits = ", ".join(f"{m} {share:.0%}" for m, share in values["same_bits"].items())
    return [
        f"# Engine: bundle `{values['bundle']}`, {values['precision']}, one core",
        "",
        f"Clips of the demo recording with its losses ({seen['video']:.0%} of video, {seen['audio']:.0%} of audio",
        "observed); two windows a clip, a provisional and a final one. CPU time, without decoding.",
        "",
        "| | ms per clip | clips/s | streams in real time |",
        "|---|---|---|---|",
        *(f"| {words[n]} | {rows[n]:.2f} | {1e3 / rows[n]:.0f} | {real_time[n]:.0f} |" for n in words),
        "",
        f"Engine against the bare model: {values['of_bare']:.0%} of its throughput; asked for: {TARGET:.0%}:",
        f"**{met}**.",
        f"Rows of a batch of 16 with the bits they have alone (fp32): {bits}. That is why deterministic serving keeps",
        "batch 1.",
        "",
        "| largest batch | bare, ms per clip | engine, ms per clip |",
        "|---|---|---|",
        *(f"| {b} | {r['bare']:.2f} | {r['engine']:.2f} |" for b, r in values["by_batch"].items()),
        "",
        f"## Latency by stage (a device {slow:g} times slower; 70 % of what that batch size can do)",
        "",
        "p50 / p99 in ms.",
        "",
        "| largest batch | streams | mean batch | queue | encode | fill | clip's end to answer |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {b} | {r['streams']} | {r['batch']:.1f} | "
            + " | ".join("{:.0f} / {:.0f}".format(*r["stages"][s]) for s in ("queue", "encode", "fill"))
            + f" | {r['p50_ms']:.0f} / {r['p99_ms']:.0f} |"
            for b, r in values["latency"].items()
        ),
        "",
        f"## Overload (budget {values['budget_ms']:.0f} ms from a clip's end to its answer)",
        "",
        f"Load 1 is what the same device answers when it never has to wait: {values['capacity_streams']:.0f} streams.",
        "",
        "| load | streams | shedding | right | clips in time | streams in real time | shed | p50/p99 ms |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {r['load']:g} | {r['streams']} | {'yes' if name == 'shedding' else 'no'} | {r['accuracy']:.1%} "
            f"| {r['in_time']:.0%} | {r['real_time']} | {r['shed']:.0%} | {r['p50_ms']:.0f} / {r['p99_ms']:.0f} |"
            for pair in zip(values["loads"]["none"], values["loads"]["shedding"], strict=True)
            for name, r in zip(("none", "shedding"), pair, strict=True)
        ),
        "",
        "![accuracy and streams against load](engine.png)",
    ]


def plot(values: dict[str, Any], path: Path) -> None:
    """Accuracy and streams in real time against the offered load."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, words, colour in (("none", "no shedding", "#888888"), ("shedding", "shedding", "#1f6f8b")):
        rows = values["loads"][name]
        load = [r["load"] for r in rows]
        left.plot(load, [100 * r["accuracy"] for r in rows], "o-", color=colour, label=f"right, {words}")
        left.plot(load, [100 * r["shed"] for r in rows], ":", color=colour, label=f"shed, {words}")
        right.plot(load, [r["real_time"] for r in rows], "o-", color=colour, label=words)
    right.plot(load, [r["streams"] for r in rows], "--", color="#bbbbbb", label="offered")
    left.set(xlabel="load (1 = what the device can do)", ylabel="% of clips", ylim=(0, 100))
    right.set(xlabel="load", ylabel="streams in real time")
    for axes in (left, right):
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
