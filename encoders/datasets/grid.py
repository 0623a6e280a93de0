"""GRID: people reading six-word commands into a camera (Cooke, Barker, Cunningham, Shao, JASA 2006; CC BY 4.0).

Expects ``labels.csv`` (file, speaker, label, split, ...) beside ``clips/<speaker>/<sentence>.mp4``; the label is the
spoken digit. ``alignments.csv`` tells when each word is spoken.
"""

from collections import defaultdict
from pathlib import Path

from encoders.datasets.sample import Sample, labelled, read_table

__all__ = ["list_samples", "word_times"]


def list_samples(folder: Path) -> list[Sample]:
    """All sentences; splits are disjoint in speakers."""
    return labelled(folder)


def word_times(folder: Path) -> dict[Path, list[tuple[float, float, str]]]:
    """(start, end, word) in seconds for each file that was aligned; ``sil`` is silence."""
    times: dict[Path, list[tuple[float, float, str]]] = defaultdict(list)
    for row in read_table(folder / "alignments.csv", ("file", "start_ms", "end_ms", "word")):
        times[folder / row["file"]].append((float(row["start_ms"]) / 1000, float(row["end_ms"]) / 1000, row["word"]))
    return dict(times)
