"""report.png: the timeline of a run as one picture, for a page or a slide; drawn with matplotlib (extra ``report``)."""

from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import MissingExtraError
from runtime.report import numbers
from runtime.report.numbers import Axis, Segment
from runtime.report.style import LABEL_COLOURS
from runtime.report.timeline import ARMS, RUNGS
from runtime.run_log import BUNDLED, Run
from runtime.wording import words

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
except ImportError as error:
    raise MissingExtraError(
        "report.png needs matplotlib, which is not installed; pip install 'legato[report]' or use report.html"
    ) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _SOFT, _TRACK, _PAPER = "#1d1b19", "#5f5a53", "#f1ede7", "#ffffff"
_CAME, _MISS, _MISS_SOFT = "#4a4f57", "#cf3f2e", "#f3c3bb"
_FILLS = ("#6a4fc4", "#9a86dd", "#c0b3ec")
# (colour, hatch): what did not come differs by pattern as well
_STATES = {
    "observed": (_CAME, ""),
    "damaged": (_MISS_SOFT, "/////"),
    "late": (_MISS_SOFT, "....."),
    "lost": (_MISS_SOFT, ""),
    "shed": (_MISS_SOFT, "|||||"),
}
_STRIP, _AREA = 0.26, 0.85  # inches


def draw_png(run: Run, *, dpi: int = 144) -> bytes:
    """The picture as PNG bytes; the same run gives the same picture."""
    axis, head = Axis(run), next(iter(numbers.heads(run)), None)
    rows = _rows(run, axis, head)
    heights = [height for height, _, _ in rows]
    figure = Figure(figsize=(11, sum(heights) + 0.1 * len(rows) + 1.75), dpi=dpi, facecolor=_PAPER)
    FigureCanvasAgg(figure)
    total = figure.get_figheight()
    places = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": heights, "hspace": 0.32})[:, 0]
    figure.subplots_adjust(left=0.15, right=0.975, top=1 - 0.78 / total, bottom=0.92 / total)
    for place, (_, name, draw) in zip(places, rows, strict=True):
        _prepare(place, axis, name, last=place is places[-1])
        draw(place)
    _words(figure, run, head)
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _rows(run: Run, axis: Axis, head: str | None) -> list[tuple[float, str, Any]]:
    """(height in inches, name, what draws it) from top to bottom."""
    labels, fills = _label_colours(run), _fill_colours(run)
    rows: list[tuple[float, str, Any]] = []
    for modality in run.modalities:
        came = numbers.states(run, modality)
        rows.append((_STRIP, f"{modality} came", lambda ax, s=came: _strip(ax, s, _STATES)))
        if filled := numbers.rungs(run, modality):
            rows.append((_STRIP / 2, "filled by", lambda ax, s=filled: _strip(ax, s, fills)))
    if truth := numbers.truth(run, axis):
        rows.append((_STRIP, "truth", lambda ax, s=truth: _strip(ax, s, labels)))
    for arm in run.arms if head is not None else ():
        finals = numbers.finals(run, arm, str(head))
        right = numbers.accuracy(run, finals)
        name = ARMS.get(arm, arm) + (f"\n{right:.0%} right" if right is not None else "")
        height = _AREA if arm == BUNDLED else _AREA * 0.62
        rows.append((height, name, lambda ax, f=finals: _area(ax, f, run, axis)))
    if head is not None:
        rows.append((_AREA * 0.7, "how sure", lambda ax: _sureness(ax, run, axis, str(head))))
    return rows


def _prepare(place: "Axes", axis: Axis, name: str, *, last: bool) -> None:
    place.set_xlim(0, max(axis.length, 1))
    place.set_ylim(0, 1)
    place.set_facecolor(_TRACK)
    place.set_yticks([])
    for spine in place.spines.values():
        spine.set_visible(False)
    ticks = axis.ticks() if last else []
    place.set_xticks([at for at, _ in ticks], [text for _, text in ticks], color=_SOFT, fontsize=8.5)
    place.tick_params(length=0, pad=5)
    place.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, color=_INK, labelpad=10)
    for at in axis.breaks:
        place.axvline(at, color=_INK, lw=0.8, ls=":", zorder=4)


def _strip(place: "Axes", segments: Sequence[Segment], colours: dict[str, tuple[str, str]]) -> None:
    for key in dict.fromkeys(segment.key for segment in segments):
        colour, hatch = colours.get(key, (_SOFT, ""))
        spans = [(s.start, s.end - s.start) for s in segments if s.key == key]
        place.broken_barh(spans, (0, 1), facecolor=colour, hatch=hatch, edgecolor=_MISS if hatch else colour, lw=0)


def _area(place: "Axes", finals: Sequence[Any], run: Run, axis: Axis) -> None:
    spoken = [(at, p) for p in finals if not p.abstained and (at := axis.place(p.clip)) is not None]
    for _, group in groupby(enumerate(spoken), key=lambda item: item[1][0] - item[0]):  # unbroken stretches
        stretch = [item for _, item in group]
        places = np.array([[at, at + 1] for at, _ in stretch], float).ravel()  # both ends of each step
        base = np.zeros(len(places))
        for label, (colour, _) in _label_colours(run).items():
            top = base + np.repeat([p.probabilities.get(label, 0.0) for _, p in stretch], 2)
            place.fill_between(places, base, top, color=colour, lw=0)
            base = top
    wrong = [at + 0.5 for at, p in spoken if run.true_label(p) not in (None, p.label)]
    place.plot(wrong, [-0.09] * len(wrong), "|", color=_MISS, ms=5, mew=1.6, clip_on=False)
    place.axhline(0.5, color=_INK, lw=0.6, alpha=0.15)


def _sureness(place: "Axes", run: Run, axis: Axis, head: str) -> None:
    finals = [(at, p) for p in numbers.finals(run, BUNDLED, head) if (at := axis.place(p.clip)) is not None]
    edges = [float(at) for at, _ in finals] + [finals[-1][0] + 1.0 if finals else 0.0]
    seen = [numbers.mean_share(p) for _, p in finals]
    sure = [float("nan") if p.abstained else p.confidence for _, p in finals]
    for values, colour, style in ((seen, _CAME, (0, (3, 2))), (sure, _FILLS[0], "solid")):
        if values:
            place.step(edges, [*values, values[-1]], where="post", color=colour, lw=1.3, ls=style, clip_on=False)
    place.axhline(0.5, color=_INK, lw=0.6, alpha=0.15)


def _words(figure: Figure, run: Run, head: str | None) -> None:
    top, height = figure.get_figheight(), figure.get_figheight()
    figure.text(0.15, 1 - 0.3 / height, run.stream, fontsize=14.5, fontweight="bold", color=_INK)
    sub = f"bundle {run.bundle} {run.bundle_hash[:12]} · {run.loss_words}"
    figure.text(0.15, 1 - 0.53 / height, sub, fontsize=9, color=_SOFT)
    used = {s.key for m in run.modalities for s in numbers.states(run, m)}
    handles = [_patch(state, *look) for state, look in _STATES.items() if state in used]
    handles += [_patch(f"filled by {RUNGS.get(rung, rung)}", *look) for rung, look in _fill_colours(run).items()]
    handles += [_patch(words(label), *look) for label, look in _label_colours(run).items()]
    if head is not None:
        handles += list(_lines())
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.142, 0.1 / top), ncols=5, frameon=False, fontsize=8.5,
        labelcolor=_SOFT, handlelength=1.4, handleheight=0.9, columnspacing=1.6, borderpad=0,
    )  # fmt: skip


def _lines() -> Iterable[Any]:
    from matplotlib.lines import Line2D

    yield Line2D([], [], color=_FILLS[0], lw=1.5, label="confidence")
    yield Line2D([], [], color=_CAME, lw=1.3, ls=(0, (3, 2)), label="observed share")


def _patch(name: str, colour: str, hatch: str) -> Patch:
    return Patch(facecolor=colour, hatch=hatch, edgecolor=_MISS if hatch else colour, lw=0, label=name)


def _label_colours(run: Run) -> dict[str, tuple[str, str]]:
    return {label: (LABEL_COLOURS[i % len(LABEL_COLOURS)][0], "") for i, label in enumerate(run.labels)}


def _fill_colours(run: Run) -> dict[str, tuple[str, str]]:
    used = dict.fromkeys(s.key for m in run.modalities for s in numbers.rungs(run, m))
    return {rung: (_FILLS[min(i, 2)], "") for i, rung in enumerate(used)}
