"""The timeline: what came, what filled it, what was said, and how surely, all over one axis of time."""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape

from imputation.presence import OBSERVED
from runtime.prediction import ClipProvenance, Prediction
from runtime.report import numbers, style
from runtime.report.chart import area, curves, row, share, strip, ticks
from runtime.report.numbers import Axis, Segment
from runtime.run_log import BUNDLED, Run
from runtime.wording import words

ARMS = {
    BUNDLED: "Legato fills",
    "lerp": "interpolated",
    "zero": "left empty",
    "hold": "last value held",
    "observed_mean": "mean of the window",
    "mean": "mean of all data",
}
RUNGS = {"curri_mae": "masked autoencoder", "lerp": "interpolation", "hold": "hold", "zero": "zeros"}
_MOST_PICTURES = 14


def timeline(run: Run, axis: Axis, pictures: Mapping[int, bytes]) -> str:
    if not axis.length:
        return '<section><h2>What came</h2><p class="sub">The stream ended before a clip closed.</p></section>'
    groups = [_presence(run, axis, pictures)]
    for head in numbers.heads(run):
        groups.append(_said(run, axis, head))
        groups.append(_sureness(run, axis, head))
    return (
        '<section><h2>From start to end</h2><p class="sub">Each window ends where it is drawn and speaks of the '
        f'seconds before it. Time since the beginning.</p>{_legend(run)}<div class="timeline" tabindex="0" '
        'aria-label="Timeline; arrow keys move the reading line">'
        + "".join(f'<div class="group">{group}</div>' for group in groups if group)
        + '</div><div class="readout" aria-live="polite"></div></section>'
    )


def _presence(run: Run, axis: Axis, pictures: Mapping[int, bytes]) -> str:
    fills = _fill_classes(run)
    rows = [row("", ticks(axis), kind="axis")]
    if pictures:
        rows.append(row("picture", _film(run, pictures)))
    for modality in run.modalities:
        segments = numbers.states(run, modality)
        text = f"{modality}: {share(numbers.observed_share(run, modality))} of clips observed"
        rows.append(row(f"<b>{modality}</b> came", strip(segments, axis.length, _state_classes(), label=text)))
        if filled := numbers.rungs(run, modality):
            rows.append(
                row("filled by", strip(filled, axis.length, fills, label=f"{modality}: filled places", kind="thin"))
            )
        if flagged := numbers.flags(run, modality):
            named = ", ".join(dict.fromkeys(words(segment.key) for segment in flagged))
            rows.append(row(escape(named), strip(flagged, axis.length, {}, label=f"{modality}: {named}", kind="thin")))
    return "".join(rows)


def _film(run: Run, pictures: Mapping[int, bytes]) -> str:
    count = min(_MOST_PICTURES, len(run.clips))
    wanted = [run.clips[int((i + 0.5) * len(run.clips) / count)].clip for i in range(count)]
    nearest = [_nearest(pictures, at) for at in wanted]
    images = (f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(pictures[c]).decode()}">' for c in nearest)
    return f'<div class="film">{"".join(images)}</div>'


def _nearest(pictures: Mapping[int, bytes], clip: int) -> int:
    return min(pictures, key=lambda other: abs(other - clip))


def _said(run: Run, axis: Axis, head: str) -> str:
    classes = _label_classes(run)
    title = f" · head {escape(head)}" if len(numbers.heads(run)) > 1 else ""
    rows = [row("", ticks(axis), kind="axis")]
    if truth := numbers.truth(run, axis):
        rows.append(
            row("<b>truth</b>", strip(truth, axis.length, classes, label="true labels", kind="tall", words=True))
        )
    for arm in run.arms:
        finals = numbers.finals(run, arm, head)
        right = numbers.accuracy(run, finals)
        name = f"<b>{escape(ARMS.get(arm, arm))}</b>{title if arm == BUNDLED else ''}"
        name += f"<br>{share(right)} right" if right is not None else ""
        text = f"probabilities, {ARMS.get(arm, arm)}" + (f", {share(right)} right" if right is not None else "")
        plot = area(finals, run.labels, axis, height=86 if arm == BUNDLED else 56, label=text)
        decided = _decided(run, axis, finals)
        said = strip(decided, axis.length, classes, label=f"labels said, {ARMS.get(arm, arm)}", kind="thin")
        wrong = _wrong(run, axis, finals)
        if truth:
            said += strip(wrong, axis.length, {"wrong": "s-wrong"}, label="where it is wrong", kind="wrong")
        rows.append(row(name, plot + said))
    return "".join(rows)


def _decided(run: Run, axis: Axis, finals: Sequence[Prediction]) -> list[Segment]:
    keys: list[str | None] = [None] * axis.length
    for prediction in finals:
        if (place := axis.place(prediction.clip)) is not None:
            keys[place] = "abstained" if prediction.abstained or prediction.label is None else prediction.label
    return numbers.merge(keys)


def _wrong(run: Run, axis: Axis, finals: Sequence[Prediction]) -> list[Segment]:
    keys: list[str | None] = [None] * axis.length
    for prediction in finals:
        place, truth = axis.place(prediction.clip), run.true_label(prediction)
        if place is not None and truth not in (None, prediction.label) and not prediction.abstained:
            keys[place] = "wrong"
    return numbers.merge(keys)


def _sureness(run: Run, axis: Axis, head: str) -> str:
    finals = numbers.finals(run, BUNDLED, head)
    placed = [(place, p) for p in finals if (place := axis.place(p.clip)) is not None]
    sure = [(float(place), p.confidence) for place, p in placed if not p.abstained]
    seen = [(float(place), numbers.mean_share(p)) for place, p in placed]
    lines = [("stroke:var(--came);stroke-dasharray:4 3;opacity:.75", seen), ("stroke:var(--fill-0)", sure)]
    plot = curves(lines, axis, height=72, label="confidence, and observed share of the window")
    legend = (
        '<ul class="legend inline"><li><i class="line" style="border-color:var(--fill-0)"></i>confidence</li>'
        '<li><i class="line" style="border-color:var(--came);border-top-style:dashed"></i>'
        "observed share of the window</li></ul>"
    )
    return row("<b>how sure</b>", plot + legend)


def _legend(run: Run) -> str:
    used = {segment.key for m in run.modalities for segment in numbers.states(run, m)}
    items = [(f"s-{s}", name) for s, name in style.STATES.items() if s in used or s == OBSERVED]
    items += [(c, f"filled by {RUNGS.get(rung, rung)}") for rung, c in _fill_classes(run).items()]
    items += [(c, words(label)) for label, c in _label_classes(run).items() if label != "abstained"]
    if any(p.abstained for p in run.arms.get(BUNDLED, ())):
        items.append(("s-abstained", "abstained"))
    if run.truth:
        items.append(("s-wrong", "wrong"))
    return (
        '<ul class="legend">'
        + "".join(f'<li><i class="{css}"></i>{escape(name)}</li>' for css, name in items)
        + "</ul>"
    )


def _state_classes() -> dict[str, str]:
    return {state: f"s-{state}" for state in style.STATES}


def _label_classes(run: Run) -> dict[str, str]:
    return {label: f"l{i}" for i, label in enumerate(run.labels)} | {"abstained": "s-abstained"}


def _fill_classes(run: Run) -> dict[str, str]:
    used = dict.fromkeys(segment.key for m in run.modalities for segment in numbers.rungs(run, m))
    return {rung: f"f{min(i, 2)}" for i, rung in enumerate(used)}


def readout_data(run: Run, axis: Axis) -> str:
    """What the reading line says at each clip: JSON that cannot end its script element."""
    at = [f"{i * axis.seconds:.1f} s" for i in range(axis.length)]
    lines: list[tuple[str, list[str]]] = []
    for modality in run.modalities:
        lines.append((modality, [_came(logged.provenance, modality) for logged in run.clips]))
    for head in numbers.heads(run)[:1]:
        for arm in run.arms:
            said = [""] * axis.length
            for p in numbers.finals(run, arm, head):
                if (place := axis.place(p.clip)) is not None:
                    said[place] = "abstained" if p.abstained else f"{words(p.label or '')} {p.confidence:.0%}"
            lines.append((f"{ARMS.get(arm, arm)}:", said))
        truths = [""] * axis.length
        for p in numbers.finals(run, BUNDLED, head):
            if (place := axis.place(p.clip)) is not None:
                truths[place] = words(run.true_label(p) or "")
        lines.append(("truth:", truths))
    return json.dumps({"at": at, "lines": lines}, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")


def _came(provenance: ClipProvenance, modality: str) -> str:
    state, rung = provenance.state.get(modality, ""), provenance.rung.get(modality, "")
    came = [state]
    if rung and rung != OBSERVED:
        came.append(f"(filled by {RUNGS.get(rung, rung)})")
    return " ".join([*came, *provenance.flags.get(modality, ())])
