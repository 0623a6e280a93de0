"""Java-SED cut by actors, for the benches that train on it, and what sees faces there starts from."""

import csv
from pathlib import Path
from typing import Any

from encoders.datasets.java_sed import FOLDS
from encoders.datasets.sample import DATASETS, shipped
from encoders.finetune import finetune
from encoders.recipes import recipe
from runtime.bundle import SHIPPED

__all__ = ["FACE", "FACE_NET", "FOLDS", "fold_folder", "with_rows", "words"]

FACE_NET = str(SHIPPED / "talk" / "face.safetensors")
FACE: dict[str, Any] = {"model.motion": True, "model.region": "face", "model.crop_share": 64 / 68}


def fold_folder(fold: int, runs: Path, data: str, name: str = "java_sed") -> Path:
    """A folder whose table holds out the fold's actors, with the recordings of a dataset where they are."""
    source = Path(data).expanduser() if data else shipped(name, DATASETS[name][1])
    folder = runs / f"{name}_fold{fold}"
    with (source / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["file"] = str((source / row["file"]).resolve())
        row["split"] = "test" if row["speaker"] in FOLDS[fold] else "train"
    return _table(folder, rows)


def with_rows(folder: Path, *parts: tuple[Path, str]) -> Path:
    """A folder whose table has of each folder's the rows of one split."""
    rows = []
    for source, split in parts:
        with (source / "labels.csv").open(newline="", encoding="utf-8") as file:
            rows += [row for row in csv.DictReader(file) if row["split"] == split]
    return _table(folder, [{name: row[name] for name in ("file", "speaker", "label", "split")} for row in rows])


def _table(folder: Path, rows: list[dict[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder


def words(runs: Path) -> Path:
    """What sees starts from: a run that learned GRID's words from faces, made unless it is there."""
    out = runs / "words"
    if not (out / "metrics.json").exists():
        data = f"grid_words:{shipped('grid_words', DATASETS['grid_words'][1])}"
        config = recipe("mvitv2_tiny", data, name="lips", face=FACE_NET, seed=0, epochs=10, validation_splits=(),
                        **FACE)  # fmt: skip
        finetune(config, out, resume=(out / "checkpoint.json").exists(), say=print, device="cpu")
    return out
