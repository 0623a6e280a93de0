"""The pages of `legato explain`: ``index.html`` that needs nothing else, ``explain.json``, and each map as a PNG.

Maps are drawn over nothing; only with ``with_pictures`` over what was seen and heard, which may be people.
"""

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.explain import Example, Explanation, FeatureMap
from runtime.output import ResultFile, not_written
from runtime.report import style
from runtime.report.chart import share
from runtime.wording import words

__all__ = ["summary", "write"]

Colour = NDArray[np.uint8]  # (H, W, 3), blue, green, red: as OpenCV has it
STEPS = 6  # moments of a clip that are shown, at most
SIDE = 132  # pixels of a picture's side
SOUND = 150, 420  # pixels of a spectrogram, up and across
BOTH = {"both": "all that a clip has", "video": "the picture alone", "audio": "the sound alone"}
WIDE, HIGH, EDGE = 640, 420, 18  # units of the plane


def write(found: Explanation, out: Path, *, with_pictures: bool = False) -> None:
    """All files into ``out``, which is made; raises OutputError where they cannot be written."""
    drawn: list[dict[str, bytes]] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number, example in enumerate(found.examples):
            pictures = {m: _png(_drawn(example, m, with_pictures)) for m in example.maps}
            drawn.append(pictures)
            for modality, png in pictures.items():
                (out / f"{number:02d}-{modality}.png").write_bytes(png)
    except OSError as error:
        raise not_written(out, error) from error
    with ResultFile(out / "explain.json") as file:
        file.write_json(summary(found))
    with ResultFile(out / "index.html") as file:
        file.write(_page(found, drawn))


def summary(found: Explanation) -> dict[str, Any]:
    """All of it but what was seen and heard, as plain values."""
    return {
        "preset": found.preset,
        "data": found.data,
        "splits": list(found.splits),
        "classes": list(found.task.classes),
        "unreadable": found.unreadable,
        "examples": [_told(number, example) for number, example in enumerate(found.examples)],
        "features": {name: _placed(features) for name, features in found.features.items()},
    }


def _told(number: int, example: Example) -> dict[str, Any]:
    return {
        "sample": example.sample.id, "start": example.sample.start, "truth": list(example.truth), "said": example.said,
        "shown": example.shown, "probability": example.probability,
        "maps": {m: {"file": f"{number:02d}-{m}.png", "values": np.round(v, 3).tolist()}
                 for m, v in example.maps.items()},
    }  # fmt: skip


def _placed(features: FeatureMap) -> dict[str, Any]:
    points = [{"x": round(x, 3), "y": round(y, 3), "label": label}
              for (x, y), label in zip(features.points.tolist(), features.labels, strict=True)]  # fmt: skip
    return {**features.scores, "points": points}


# --- maps -------------------------------------------------------------------------------------------------------


def _drawn(example: Example, modality: str, with_pictures: bool) -> Colour:
    if modality == "audio":
        return _sound(example.maps["audio"], example.heard if with_pictures else None)
    return _clip(example.maps["video"], example.seen if with_pictures else None)


def _clip(maps: NDArray[np.float32], seen: NDArray[np.uint8] | None) -> Colour:
    """Moments of a clip beside each other, each with its map (rows, columns) over it."""
    steps = np.linspace(0, len(maps) - 1, min(STEPS, len(maps))).round().astype(int)
    cells = []
    for step in steps.tolist():
        picture = None
        if seen is not None:  # the frame in the middle of what the step holds
            picture = _grown(_coloured(seen[int((step + 0.5) * len(seen) / len(maps))]), (SIDE, SIDE))
        cells += [_over(_grown(maps[step], (SIDE, SIDE)), picture), np.full((SIDE, 4, 3), 255, np.uint8)]
    return np.concatenate(cells[:-1], 1)


def _sound(one: NDArray[np.float32], heard: NDArray[np.float32] | None) -> Colour:
    """A spectrogram, low tones at the bottom, with its map (frequency, time) over it."""
    spectrogram = None
    if heard is not None:
        low, high = np.percentile(heard, (2, 98))
        gray = np.clip((heard.T[::-1] - low) / max(high - low, 1e-6), 0, 1)
        spectrogram = _grown(_coloured((255 * gray).astype(np.uint8)), SOUND)
    return _over(_grown(one[::-1], SOUND), spectrogram)


def _over(strength: NDArray[np.float32], picture: Colour | None) -> Colour:
    """A map from 0 to 1 in colours that stay apart in gray; over a picture the stronger, the more it covers."""
    import cv2  # late: heavy

    heat = cv2.applyColorMap((255 * np.clip(strength, 0, 1)).astype(np.uint8), cv2.COLORMAP_INFERNO)
    if picture is None:
        return np.asarray(heat, np.uint8)
    covers = 0.15 + 0.55 * np.clip(strength, 0, 1)[..., None]
    return (heat * covers + picture * (1 - covers)).astype(np.uint8)


def _grown(x: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    import cv2  # late: heavy

    return np.asarray(cv2.resize(np.ascontiguousarray(x), size[::-1], interpolation=cv2.INTER_LINEAR))


def _coloured(picture: NDArray[np.uint8]) -> Colour:
    return np.repeat(picture[..., None], 3, -1) if picture.ndim == 2 else picture[..., ::-1]


def _png(picture: Colour) -> bytes:
    import cv2  # late: heavy

    return bytes(cv2.imencode(".png", picture)[1].tobytes())


# --- page -------------------------------------------------------------------------------------------------------

CSS = """
.plane{width:100%;height:auto;display:block}.plane circle{stroke:var(--card);stroke-width:1}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--soft);margin:8px 0 0;padding:0}
.legend i{width:11px;height:11px;border-radius:50%;display:inline-block;margin-right:6px}
.clip{display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start;margin-top:18px}
.clip img{border-radius:8px;max-width:100%;display:block}.clip p{width:100%}
.planes{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:18px}
"""


def _page(found: Explanation, drawn: list[dict[str, bytes]]) -> str:
    colours = _colours(sorted({label for features in found.features.values() for label in features.labels}))
    title = f"{escape(found.preset)} on {escape(found.data)}, {escape(', '.join(found.splits))}"
    parts = [_planes(found.features, colours), _clips(found, drawn)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title} · Legato</title><style>{style.CSS}{CSS}</style></head>\n<body><main>"
        f'<header>{style.LOGO}<span class="word">Legato</span></header><h1>{title}</h1>'
        + "\n".join(part for part in parts if part)
        + "</main></body></html>\n"
    )


def _planes(features: Mapping[str, FeatureMap], colours: Mapping[str, str]) -> str:
    if not features:
        return ""
    planes = "".join(_plane(name, one, colours) for name, one in features.items())
    legend = "".join(f'<span><i style="background:{c}"></i>{escape(words(label))}</span>'
                     for label, c in colours.items())  # fmt: skip
    return (
        '<section><h2>How the features lie</h2><p class="sub">Each dot is a clip; neighbours have similar features '
        "(t-SNE). The adjusted Rand index and homogeneity compare clusters that were found without labels with the "
        "labels: 1 where they agree, about 0 for the first where chance made them.</p>"
        f'<div class="planes">{planes}</div><div class="legend">{legend}</div></section>'
    )


def _plane(name: str, features: FeatureMap, colours: Mapping[str, str]) -> str:
    low, high = features.points.min(0), features.points.max(0)
    places = (features.points - low) / np.maximum(high - low, 1e-9)
    dots = "".join(
        f'<circle cx="{EDGE + x * (WIDE - 2 * EDGE):.1f}" cy="{HIGH - EDGE - y * (HIGH - 2 * EDGE):.1f}" r="6" '
        f'fill="{colours[label]}"><title>{escape(words(label))}</title></circle>'
        for (x, y), label in zip(places.tolist(), features.labels, strict=True)
    )
    said = f"ARI {features.scores['ari']:.2f}, homogeneity {features.scores['homogeneity']:.2f}"
    return (
        f'<div><h3>{BOTH.get(name, escape(name))}</h3><p class="sub">{said}, {len(features.labels)} clips</p>'
        f'<svg class="plane" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{said}">{dots}</svg></div>'
    )


def _clips(found: Explanation, drawn: list[dict[str, bytes]]) -> str:
    if not found.examples:
        return ""
    body = "".join(_one(example, pictures) for example, pictures in zip(found.examples, drawn, strict=True))
    return (
        '<section><h2>What speaks for the class</h2><p class="sub">The brighter a place, the more it speaks for the '
        "class that is shown (Grad-CAM over tokens), each map by its own strongest place. Moments of a clip from left "
        f"to right; of sound time from left to right, high tones above.</p>{body}</section>"
    )


def _one(example: Example, pictures: Mapping[str, bytes]) -> str:
    truth = " and ".join(words(label) for label in example.truth) or "unknown"
    images = "".join(
        f'<img alt="{m}: what speaks for {escape(words(example.shown))}" '
        f'src="data:image/png;base64,{b64encode(png).decode()}">'
        for m, png in pictures.items()
    )
    return (
        f'<div class="clip"><p><b>{escape(words(example.said))}</b> was said; truth: <b>{escape(truth)}</b> '
        f'<span class="sub">{escape(example.sample.id)} · shown: {escape(words(example.shown))}, '
        f"{share(example.probability)}</span></p>{images}</div>"
    )


def _colours(labels: list[str]) -> dict[str, str]:
    """Those that colour-blind readers tell apart, as far as they go; then hues around the circle."""
    known = [light for light, _, _ in style.LABEL_COLOURS]
    if len(labels) <= len(known):
        return dict(zip(labels, known, strict=False))
    return {label: f"hsl({360 * i / len(labels):.0f} 62% {38 + 16 * (i % 2)}%)" for i, label in enumerate(labels)}
