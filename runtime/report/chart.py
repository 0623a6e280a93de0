"""Strips, areas and curves over the time axis, as HTML and SVG that stretch to any width.

Strips are boxes at percentages; plots are SVG stretched without regard to its proportions, so it holds no text and
its strokes do not scale. All words stand in HTML.
"""

from collections.abc import Mapping, Sequence
from html import escape

from runtime.prediction import Prediction
from runtime.report.numbers import Axis, Segment

HEIGHT = 100  # units of a plot's box: percent


def percent(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") + "%"


def share(value: float) -> str:
    """0.934 -> "93 %" (the space does not break), and never "100 %" or "0 %" for something that is not."""
    whole = round(100 * value)
    if (whole == 100 and value < 1) or (whole == 0 and value > 0):
        exact = min(max(100 * value, 0.1), 99.9)
        return f"{exact:.1f}\u00a0%"
    return f"{whole}\u00a0%"


def strip(
    segments: Sequence[Segment],
    length: float,
    classes: Mapping[str, str],
    *,
    label: str,
    kind: str = "",
    words: bool = False,
) -> str:
    """One strip; ``classes`` maps a segment's key to its CSS class, ``label`` says to a screen reader what it shows.

    ``words`` writes the key into segments that have room for it.
    """
    cells = []
    for segment in segments:
        left, width = 100 * segment.start / length, 100 * (segment.end - segment.start) / length
        word = f"<span>{escape(segment.key)}</span>" if words and width > 0.9 * len(segment.key) + 1 else ""
        style = f"left:{percent(left)};width:{percent(width)}"
        cells.append(f'<i class="{classes.get(segment.key, "s-flag")}" style="{style}">{word}</i>')
    return f'<div class="strip {kind}" role="img" aria-label="{escape(label)}">{"".join(cells)}</div>'


def row(name: str, plot: str, *, kind: str = "") -> str:
    """A plot and its name, side by side or, on a phone, one above the other. ``name`` is HTML."""
    return f'<div class="row {kind}"><div class="name">{name}</div><div class="plot">{plot}</div></div>'


def ticks(axis: Axis) -> str:
    """Times under the plots."""
    spans = []
    for place, text in axis.ticks():
        at = 100 * place / axis.length
        spans.append(f'<span style="left:{percent(at)}"{" class=last" if at > 97 else ""}>{text}</span>')
    return f'<div class="ticks" aria-hidden="true">{"".join(spans)}</div>'


def area(predictions: Sequence[Prediction], labels: Sequence[str], axis: Axis, *, height: int, label: str) -> str:
    """Probabilities stacked to 1, a step for each window, the first label at the foot."""
    layers = []
    base = {p.clip: 0.0 for p in predictions}
    for i, name in enumerate(labels):
        top = {p.clip: base[p.clip] + p.probabilities.get(name, 0.0) for p in predictions}
        path = _band(predictions, base, top, axis)
        layers.append(f'<path class="l{i}" d="{path}"/>')
        base = top
    return _svg("".join(layers), axis, height, label)


def _band(predictions: Sequence[Prediction], low: Mapping[int, float], high: Mapping[int, float], axis: Axis) -> str:
    """The outline between two stacked edges; broken where no window spoke or it abstained."""
    cells: list[list[float]] = []  # [start, end, low, high]
    for prediction in predictions:
        place = axis.place(prediction.clip)
        if place is None or prediction.abstained:
            continue
        at = [float(place), place + 1.0, round(low[prediction.clip], 3), round(high[prediction.clip], 3)]
        if cells and cells[-1][1:] == [at[0], at[2], at[3]]:
            cells[-1][1] = at[1]
        else:
            cells.append(at)
    return "".join(
        f"M{_n(a)} {_y(bottom)}V{_y(top)}H{_n(b)}V{_y(bottom)}Z" for a, b, bottom, top in cells if top > bottom
    )


def curves(lines: Sequence[tuple[str, Sequence[tuple[float, float]]]], axis: Axis, *, height: int, label: str) -> str:
    """Step curves between 0 and 1: (style, [(place, value)]) each, a step as wide as a clip."""
    drawn = []
    for style, points in lines:
        path, last = [], None
        for place, value in points:
            joined = last is not None and abs(place - last) < 1e-9
            path.append(f"{'L' if joined else 'M'}{_n(place)} {_y(value)}H{_n(place + 1)}")
            last = place + 1
        drawn.append(f'<path class="curve" style="{style}" d="{"".join(path)}"/>')
    return _svg("".join(drawn), axis, height, label)


def _svg(inside: str, axis: Axis, height: int, label: str) -> str:
    grid = "".join(f'<line class="grid" x1="0" x2="{axis.length}" y1="{y}" y2="{y}"/>' for y in (50,))
    breaks = "".join(f'<line class="break" x1="{x}" x2="{x}" y1="0" y2="{HEIGHT}"/>' for x in axis.breaks)
    return (
        f'<svg class="area" role="img" aria-label="{escape(label)}" viewBox="0 0 {axis.length} {HEIGHT}" '
        f'preserveAspectRatio="none" style="height:{height}px">{inside}{grid}{breaks}</svg>'
    )


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _y(value: float) -> str:
    return _n(HEIGHT * (1 - value))
