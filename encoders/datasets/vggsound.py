"""VGGSound: ten-second videos whose sound's source is seen (Chen et al., ICASSP 2020).

Expects ``vggsound.csv`` (YouTube id, start in seconds, label, train or test; no header) and clips ``YTID_000030.mp4``
(the start in six digits; any media suffix) anywhere below PATH, as in the published archive's ``video/``.

Classes are in alphabetical order (309).
"""

from pathlib import Path

from encoders.datasets.corpus import About, Reader
from encoders.datasets.sample import Sample
from encoders.datasets.tables import Files, needed, number, read_rows
from encoders.errors import DataError

__all__ = ["VGGSOUND", "list_samples"]


def list_samples(folder: Path) -> list[Sample]:
    """All clips of the table."""
    table = needed(folder, "vggsound.csv", "data/vggsound.csv", "annotations/vggsound.csv")
    files = Files([folder])
    samples = []
    for line, row in read_rows(table, 4):
        if row[3] not in ("train", "test"):
            raise DataError(f"{table} line {line}: split {row[3]!r} is neither train nor test; correct the row")
        name = f"{row[0]}_{int(number(row[1], table, line, 'start')):06d}"
        there = files.get(name) or folder / "video" / f"{name}.mp4"
        samples.append(Sample(path=there, label=row[2], split=row[3], name=name))
    return samples


VGGSOUND = Reader(
    about=About(
        title="VGGSound (Chen et al., ICASSP 2020)",
        layout="vggsound.csv; YTID_000030.mp4 anywhere below",
        licence="annotations CC BY 4.0 (VGGSound page at Oxford VGG); videos are their uploaders' (YouTube)",
        splits={"train": 183_730, "test": 15_446},
        classes=309,
        note="the published recipes count 172 427 for training",
    ),
    samples=list_samples,
)
