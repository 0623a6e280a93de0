"""report.html: one page that needs nothing else, from the headline down to where every packet went."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from encoders.errors import UsageError
from imputation.profiles import open_profile
from runtime.report import numbers, style
from runtime.report.chart import share
from runtime.report.numbers import Axis
from runtime.report.tables import comparison, events, latency, packets
from runtime.report.timeline import ARMS, RUNGS, readout_data, timeline
from runtime.run_log import BUNDLED, Run
from runtime.wording import words


def render_page(run: Run, pictures: Mapping[int, bytes] | None = None) -> str:
    """The whole page as text. ``pictures``: clip number -> JPEG bytes; few of them are shown."""
    axis = Axis(run)
    body = [
        _header(run),
        _tiles(run),
        timeline(run, axis, pictures or {}),
        comparison(run),
        f'<div class="two">{packets(run)}{latency(run)}</div>',
        events(run),
        _card(run),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(run.stream)} · Legato</title>"
        f"<style>{style.CSS}{style.label_rules(len(run.labels))}</style></head>\n<body><main>"
        + "\n".join(part for part in body if part)
        + f'\n<footer>{escape(run.attribution)}</footer></main>\n<script type="application/json" id="clips">'
        + readout_data(run, axis)
        + f"</script><script>{style.SCRIPT}</script></body></html>\n"
    )


def _header(run: Run) -> str:
    lead = [f"{_minutes(run.seconds)} of {_and(run.modalities)}"]
    seen = _and(f"{share(numbers.observed_share(run, m))} of the {m} clips" for m in run.modalities)
    lead.append(f"; {seen} came through. ")
    heads = numbers.heads(run)
    right = {arm: numbers.accuracy(run, numbers.finals(run, arm, heads[0])) for arm in run.arms} if heads else {}
    if (own := right.get(BUNDLED)) is not None:
        others = [f"{share(r)} with gaps {ARMS.get(a, a)}" for a, r in right.items() if a != BUNDLED and r is not None]
        tail = f", against {_and(others)}" if others else ""
        lead.append(f"With its gaps filled, <b>{share(own)}</b> of the windows are understood rightly{tail}.")
    return (
        f'<header>{style.LOGO}<span class="word">Legato</span></header>'
        f"<h1>{escape(run.stream)}</h1>"
        f'<p class="sub">bundle <b>{escape(run.bundle)}</b> <span class="mono">{escape(run.bundle_hash[:12])}</span>'
        f" · {_loss(run)}</p>"
        f'<p class="lead">{"".join(lead)}</p>'
    )


def _loss(run: Run) -> str:
    if run.recorded_loss or not run.loss:
        return escape(run.loss_words)
    try:
        mean = f", {share(open_profile(run.loss, clip_seconds=run.clip_seconds).loss)} of packets on average"
    except UsageError:  # a trace that has moved since
        mean = ""
    return f"loss profile <b>{escape(run.loss)}</b>{mean}, seed {run.seed}"


def _tiles(run: Run) -> str:
    heads = numbers.heads(run)
    finals = numbers.finals(run, BUNDLED, heads[0]) if heads else []
    right = numbers.accuracy(run, finals)
    abstained = sum(p.abstained for p in finals)
    tiles = []
    if right is not None:
        tiles.append(("right", share(right), f"of {numbers.judged(run, finals)} windows whose truth is known"))
    tiles += [
        (
            "observed",
            "".join(_one(share(numbers.observed_share(run, m)), m) for m in run.modalities),
            f"longest gap {max((numbers.longest_gap(run, m) for m in run.modalities), default=0.0):.1f} s",
        ),
        ("filled", f"{numbers.filled_clips(run)} <small>clips</small>", _fillers(run)),
        (
            "abstained",
            f"{abstained} <small>windows</small>",
            "nothing was observed, so nothing is claimed" if abstained else "something was observed in each",
        ),
    ]
    if run.wall_seconds:
        tiles.append(("speed", f"{run.seconds / run.wall_seconds:.0f}&times;", "real time, decoding included"))
    cells = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}<span class="note">{note}</span></dd></div>'
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _one(value: str, name: str) -> str:
    return f'<span class="one">{value} <small>{name}</small></span>'


def _fillers(run: Run) -> str:
    used = dict.fromkeys(segment.key for m in run.modalities for segment in numbers.rungs(run, m))
    return "by " + _and(escape(RUNGS.get(rung, rung)) for rung in used) if used else "nothing had to be"


def _card(run: Run) -> str:
    facts: list[tuple[str, Any]] = [("bundle", run.bundle), ("hash", run.bundle_hash)]
    facts += [(name, run.card[name]) for name in ("description", "licence", "attribution") if run.card.get(name)]
    facts += [("labels", ", ".join(map(words, run.labels))), ("clip", f"{run.clip_seconds:g} s")]
    facts += [("recorded with", run.recorded_loss)] if run.recorded_loss else []
    facts += [("loss", run.loss), ("seed", run.seed)] if run.loss else [("loss", "none added")]
    cells = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts)
    folded = "".join(
        f"<details><summary>{title}</summary><pre>{escape(_pretty(value))}</pre></details>"
        for title, value in (
            ("How it was trained", run.card.get("training")),
            ("What was measured", run.card.get("metrics")),
            ("Settings of this run", run.settings),
        )
        if value
    )
    return f'<section><h2>Bundle card</h2><dl class="card">{cells}</dl>{folded}</section>'


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _and(words: Iterable[str]) -> str:
    listed = list(words)
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
