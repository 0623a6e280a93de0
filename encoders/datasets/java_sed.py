"""Java-SED: actors speaking Javanese sentences in six emotions (Arifin et al., 2022); research use.

Expects ``labels.csv`` (file, speaker, label, split, ...) beside ``clips/``; the label is the emotion.
"""

from pathlib import Path

from encoders.datasets.sample import Sample, labelled

__all__ = ["FOLDS", "list_samples"]

# Leave-actors-out: each fold holds out one woman and one man.
FOLDS = (("01", "06"), ("02", "07"), ("03", "08"), ("04", "09"))


def list_samples(folder: Path) -> list[Sample]:
    """All recordings; splits are disjoint in actors."""
    return labelled(folder)
