"""Tables: what filling is worth, where every packet went, how long it took, what else happened."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from runtime.report import numbers
from runtime.report.chart import share
from runtime.report.timeline import ARMS
from runtime.run_log import BUNDLED, Run

_MOST_EVENTS = 40


def comparison(run: Run) -> str:
    parts = []
    for head in numbers.heads(run):
        rows = numbers.by_observed_share(run, head)
        if not rows:
            continue
        arms = list(run.arms)
        titles = "".join(f"<th scope=col>{escape(ARMS.get(arm, arm))}</th>" for arm in arms)
        lines = "".join(
            f"<tr><th scope=row>{100 * r.low:.0f}&ndash;{share(r.high)}</th><td>{r.windows}</td>"
            f"{_shares(arms, r.right)}</tr>"
            for r in rows
        )
        total = {arm: a for arm in arms if (a := numbers.accuracy(run, numbers.finals(run, arm, head))) is not None}
        windows = numbers.judged(run, numbers.finals(run, BUNDLED, head))
        lines += f"<tr><th scope=row>all windows</th><td>{windows}</td>{_shares(arms, total)}</tr>"
        name = f"<h3>{escape(head)}</h3>" if len(numbers.heads(run)) > 1 else ""
        parts.append(
            f"{name}<div class=wide><table><thead><tr><th scope=col>observed</th>"
            f"<th scope=col>windows</th>{titles}</tr></thead><tbody>{lines}</tbody></table></div>"
        )
    if not parts:
        return ""
    lead = (
        "Windows understood rightly, by how much of them was observed. All columns saw the same features. "
        "Windows in which the truth has only just changed are not counted."
    )
    return f'<section><h2>What filling is worth</h2><p class="sub">{lead}</p>{"".join(parts)}</section>'


def _shares(arms: Sequence[str], right: Mapping[str, float]) -> str:
    best = max(right.values(), default=0.0)
    return "".join(
        f'<td class="{"best" if right[arm] == best else ""}">{share(right[arm])}</td>' if arm in right else "<td></td>"
        for arm in arms
    )


_FATE_FILL = {"used": "var(--came)", "unused": "var(--fill-2)", "unfinished": "var(--line)"}


def packets(run: Run) -> str:
    if not run.ledger:
        return ""
    fates = [f for f in numbers.FATE_ORDER if any(counts.get(f) for counts in run.ledger.values()) or f == "used"]
    head = "".join(f"<th scope=col>{m}</th>" for m in run.ledger)
    meters = "".join(f"<td>{_meter(counts)}</td>" for counts in run.ledger.values())
    body = f"<tr><th scope=row></th>{meters}</tr>"
    for name in ("expected", "lost", "received", *fates):
        indent = "&emsp;" if name in fates else ""
        cells = "".join(_count(counts.get(name, 0)) for counts in run.ledger.values())
        body += f"<tr><th scope=row>{indent}{name}</th>{cells}</tr>"
    if all(_adds_up(counts) for counts in run.ledger.values()):
        law = '<span class="check">✓ It adds up:</span> expected = lost + received, received = the fates below it.'
    else:
        law = "The counts do not add up; please report this run."
    return (
        f'<section><h2>Where every packet went</h2><p class="sub">{law}</p><div class=wide><table>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _adds_up(counts: Mapping[str, int]) -> bool:
    received = sum(counts.get(fate, 0) for fate in numbers.FATE_ORDER)
    expected = counts.get("received", 0) + counts.get("lost", 0)
    return counts.get("expected") == expected and counts.get("received") == received


def _meter(counts: Mapping[str, int]) -> str:
    total = max(counts.get("expected", 0), 1)
    parts = [(name, counts.get(name, 0)) for name in (*numbers.FATE_ORDER, "lost")]
    cells = "".join(
        f'<i style="width:{100 * n / total:.2f}%;background:{_FATE_FILL.get(name, "var(--miss-soft)")}"></i>'
        for name, n in parts
        if n
    )
    return f'<span class="meter" aria-hidden="true">{cells}</span>'


def _count(value: int) -> str:
    return f'<td class="{"" if value else "zero"}">{value:,}</td>'.replace(",", "\u202f")


def latency(run: Run) -> str:
    stages = numbers.latencies(run)
    if not stages:
        return ""
    longest = max((s.p95 for s in stages), default=0.0) or 1.0
    names = {"wait": "wait for packets", "total": "in all"}
    rows = "".join(
        f"<tr><th scope=row>{names.get(s.stage, s.stage)}</th><td>{s.p50:.1f}</td><td>{s.p95:.1f}</td>"
        f'<td>{s.largest:.1f}</td><td><span class="meter" aria-hidden="true">'
        f'<i style="width:{100 * s.p50 / longest:.1f}%;background:var(--came)"></i>'
        f'<i style="width:{100 * (s.p95 - s.p50) / longest:.1f}%;background:var(--fill-2)"></i></span></td></tr>'
        for s in stages
    )
    return (
        '<section><h2>How long it took</h2><p class="sub">Milliseconds for the newest clip of a window; bars: half '
        "of the windows, and 95 % of them.</p><div class=wide><table><thead><tr><th></th><th scope=col>p50</th>"
        f"<th scope=col>p95</th><th scope=col>most</th><th></th></tr></thead><tbody>{rows}</tbody></table></div>"
        "</section>"
    )


def events(run: Run) -> str:
    if not run.events:
        return ""
    first = run.clips[0].clip if run.clips else 0
    items = "".join(_event(event, first, run.clip_seconds) for event in run.events[:_MOST_EVENTS])
    more = len(run.events) - _MOST_EVENTS
    items += f"<li>and {more} more</li>" if more > 0 else ""
    return f'<section><h2>What else happened</h2><ul class="events">{items}</ul></section>'


def _event(event: Any, first: int, seconds: float) -> str:
    at = f"{(event.clip - first) * seconds:.1f} s" if getattr(event, "clip", None) is not None else ""
    words = [getattr(event, name, "") for name in ("modality", "kind", "detail")]
    text = " · ".join(escape(str(word)) for word in words if word) or escape(str(event))
    return f"<li><time>{at}</time> {text}</li>"
