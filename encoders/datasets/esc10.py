"""ESC-10: environmental sounds, no picture (Piczak, ACM Multimedia 2015; CC BY 3.0).

Expects ``labels.csv`` (file, speaker, label, split, fold) beside ``clips/``; the speaker is the source recording.
"""

from pathlib import Path

from encoders.datasets.sample import Sample, read_table

__all__ = ["list_samples"]


def list_samples(folder: Path) -> list[Sample]:
    """All 5 s sounds; splits are disjoint in source recordings (the published folds)."""
    rows = read_table(folder / "labels.csv", ("file", "speaker", "label", "split", "fold"))
    return [
        Sample(
            path=folder / row["file"],
            speaker=row["speaker"],
            label=row["label"],
            split=row["split"],
            notes={"fold": row["fold"]},
        )
        for row in rows
    ]
