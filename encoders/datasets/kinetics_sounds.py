"""Kinetics-Sounds: the actions of Kinetics that can be heard as well as seen (Arandjelovic and Zisserman, "Look, Listen
and Learn", ICCV 2017, appendix A).

The paper lists 34 actions of an early Kinetics. Three of them, fingerpicking, patting and typing, did not come into the
release; the other 31 are taken, under the names they have there. Expects Kinetics-400 as `encoders.datasets.kinetics`
does, whole or with these classes' clips alone: clips of other classes are passed over, and their tables may list them.

Classes are in alphabetical order, all 31 whatever clips there are.
"""

from dataclasses import replace
from pathlib import Path

from encoders.datasets import kinetics
from encoders.datasets.corpus import About, Reader
from encoders.datasets.sample import Sample
from encoders.errors import DataError

__all__ = ["ACTIONS", "KINETICS_SOUNDS", "list_samples"]

# As Kinetics-400 has it; the paper says blowing out, dribbling ball, mowing the lawn by pushing lawnmower, stomping.
ACTIONS = (
    "blowing nose", "blowing out candles", "bowling", "chopping wood", "dribbling basketball", "laughing",
    "mowing lawn", "playing accordion", "playing bagpipes", "playing bass guitar", "playing clarinet",
    "playing drums", "playing guitar", "playing harmonica", "playing keyboard", "playing organ", "playing piano",
    "playing saxophone", "playing trombone", "playing trumpet", "playing violin", "playing xylophone",
    "ripping paper", "shoveling snow", "shuffling cards", "singing", "stomping grapes", "tap dancing",
    "tapping guitar", "tapping pen", "tickling",
)  # fmt: skip


def list_samples(folder: Path) -> list[Sample]:
    """The clips of these actions; folders may be named with underscores for spaces."""
    named = [replace(sample, label=sample.label.replace("_", " ")) for sample in kinetics.list_samples(folder)]
    samples = [sample for sample in named if sample.label in ACTIONS]
    if named and not samples:
        raise DataError(
            f"{folder} holds clips of Kinetics ({named[0].label or 'no label'}, ...) and none of the {len(ACTIONS)} "
            "actions of Kinetics-Sounds; give Kinetics-400 with its tables, or in a folder per label"
        )
    return samples


KINETICS_SOUNDS = Reader(
    about=About(
        title="Kinetics-Sounds (Arandjelovic and Zisserman, ICCV 2017)",
        layout="as kinetics400, whole or these classes alone: [annotations/]train.csv, val.csv; train/[LABEL/]...",
        licence="annotations CC BY 4.0 (the dataset's page at Google DeepMind); videos are their uploaders' (YouTube)",
        splits={"train": 22_914, "val": 1_585},
        classes=len(ACTIONS),
        note="31 of the paper's 34 actions, those that Kinetics-400 has; sizes are those that MMT collected",
    ),
    samples=list_samples,
    classes=lambda folder, head: ACTIONS,
)
