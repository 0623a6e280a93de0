"""Views of a clip: the same seconds cut into longer or shorter tubelets, each for a transformer of its own size.

A view string such as ``B/2+S/4+Ti/8`` names them as the papers do (MTV, CVPR 2022; M&M Mix, 2022): size letter, slash,
tubelet length in frames. ``B/14x2`` and ``B/16x16x2`` also say the patch (square, or height x width); ``S/4:audio``
says what the view looks at, where that is not the picture. Papers name the finest view first; **the code keeps them
coarsest first** (longest tubelet, fewest tokens), as the published code and its checkpoints do, whichever order they
are named in. Views of equal tubelets keep their place in the direction of the string.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from encoders.errors import ConfigError

__all__ = ["SIZES", "View", "coarsest_first", "parse_views"]

SIZES = {  # width, layers, heads; the MLP is four times as wide, the patch 16 (H: 14)
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}
_VIEW = re.compile(r"([A-Za-z]+)/(?:([0-9]{1,4})x(?:([0-9]{1,4})x)?)?([0-9]{1,4})(?::([a-z_]+))?")
_EXAMPLE = "write for example B/2+S/4+Ti/8"


@dataclass(frozen=True, kw_only=True)
class View:
    """One view and the size of its transformer."""

    width: int  # D
    layers: int
    heads: int
    mlp: int  # hidden width
    tubelet: int  # frames of the clip under one token, the time step of this view
    patch: tuple[int, int] = (16, 16)  # height, width; of a spectrogram: mel frames, mel bins
    sees: str = "rgb"  # rgb; in a multimodal model also audio, flow

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "mlp", "tubelet"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} of a view is none; use at least 1")
        if min(self.patch) < 1:
            raise ConfigError(f"patch {self.patch[0]}x{self.patch[1]} of a view is empty; use at least 1x1")
        if self.width % self.heads:
            raise ConfigError(f"{self.heads} heads cannot share a view's width of {self.width}; use a divisor of it")


def parse_views(text: str) -> tuple[View, ...]:
    """The views of a string, coarsest first; raises ConfigError naming the part that makes no sense."""
    return coarsest_first([_parse(part.strip(), text) for part in text.split("+")])


def coarsest_first(views: Sequence[View]) -> tuple[View, ...]:
    """Views by falling tubelet length; equal ones in the direction that the others, or else the papers, run in."""
    lengths = [view.tubelet for view in views]
    falling = len(set(lengths)) > 1 and lengths == sorted(lengths, reverse=True)
    return tuple(sorted(views if falling else reversed(views), key=lambda view: -view.tubelet))


def _parse(part: str, text: str) -> View:
    match = _VIEW.fullmatch(part)
    if match is None:
        what = f"view {part!r} of {text!r}" if part != text else f"view {text!r}"
        raise ConfigError(f"{what} is no size/tubelet; {_EXAMPLE}")
    size, high, wide, tubelet, sees = match.groups()
    if size not in SIZES:
        raise ConfigError(f"view {part!r} has size {size}, which is none of {', '.join(SIZES)}; {_EXAMPLE}")
    width, layers, heads = SIZES[size]
    side = int(high or (14 if size == "H" else 16))
    return View(
        width=width,
        layers=layers,
        heads=heads,
        mlp=4 * width,
        tubelet=int(tubelet),
        patch=(side, int(wide or side)),
        sees=sees or "rgb",
    )
