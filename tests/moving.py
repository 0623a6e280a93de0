"""A small Kinetics: bars that move to the left or to the right, told apart only by their motion."""

from pathlib import Path

import numpy as np

from encoders.media import VideoTrack, write_media
from encoders.recipes import FinetuneConfig, recipe

HEIGHT, WIDTH, FRAMES = 32, 40, 8
SMALL = {  # the smallest encoder that has every part
    "model.dim": 16, "model.depth": 1, "model.heads": 2, "model.mlp_dim": 32, "model.temporal_depth": 1,
    "model.size": 32, "model.frames": 4, "model.crop_share": 1.0,
}  # fmt: skip


def bar(direction: int, phase: int) -> list[np.ndarray]:
    """A bright column that moves two pixels a frame and comes back on the other side; dark colours differ."""
    frames = []
    for t in range(FRAMES):
        frame = np.full((HEIGHT, WIDTH, 3), (20, 40, 60), np.uint8)
        columns = (phase + 2 * direction * t + np.arange(5)) % WIDTH
        frame[:, columns] = (230, 210, 190)
        frames.append(frame)
    return frames


def moving(folder: Path, train: int = 8, val: int = 4) -> str:
    """A folder in Kinetics' layout, half of the clips of each kind; gives ``kinetics400:PATH``."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            label, direction = (("left", -1), ("right", 1))[i % 2]
            path = folder / split / label / f"{split}{i:08d}_000000_000010.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_media(path, [VideoTrack(frames=bar(direction, int(random.integers(WIDTH))))])
    return f"kinetics400:{folder}"


def small(data: str, preset: str = "vivit_tiny_fe", **changes) -> FinetuneConfig:
    """Two epochs of two batches, on one CPU core in a fraction of a second."""
    few = {"epochs": 2, "batch": 4, "warmup": 0.5, "stride": 1, "workers": 0, "views": "1x1", "lr": 0.05}
    own = SMALL if preset.startswith("vivit") else {}
    return recipe(preset, data, **{**few, "log_every": 1, **own, **changes})
