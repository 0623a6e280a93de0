"""The page of the robustness bench says what the numbers say; folds that benches train on hold out whom they say."""

import csv
import re

from bench.folds import FOLDS, fold_folder, with_rows
from bench.robustness_page import page
from imputation.study.compare import Answers
from imputation.study.run import Plan

RATES = ("0/2", "1/2")


def answers_of(units=3, **arms):
    """arm -> accuracy at 0/2 and 1/2 in every unit; ``None`` at 1/2 for lines that are asked about whole windows."""
    table = {
        arm.replace("_", " "): {
            c: {("fold", i): {"accuracy": a + 0.01 * i, "std": 0.0, "rate": 0.5, "mse_video": 1.0, "mse_audio": 2.0}
                for i in range(units)}
            for c, a in zip(RATES, pair, strict=True) if a is not None
        }
        for arm, pair in arms.items()
    }  # fmt: skip
    return Answers("toy:words", "gru", 2, 0.5, table)


def text_of(*answers):
    return "\n".join(page(answers, Plan()))


def test_an_imputer_is_held_against_the_best_rule_of_its_case():
    text = text_of(answers_of(Pristine=(0.9, None), zeros=(0.9, 0.5), lerp=(0.9, 0.6), residual=(0.9, 0.65)))
    assert "| toy:words | gru | 51.0 | **61.0** | 66.0 (+5.0 ± 0.0) |" in text
    assert "Over cases: residual +5.0." in text


def test_a_tuned_head_is_held_against_the_one_with_drops():
    text = text_of(answers_of(Pristine=(0.9, None), drops=(0.9, 0.7), two_readings=(0.9, 0.72)))
    assert re.search(r"\| toy:words \| gru \| 71\.0 \| \+2\.0 ± 0\.0", text)
    assert "- two readings: of 1 cells 0 below and 1 above." in text


def test_an_error_that_one_unit_cannot_have_is_not_written():
    text = text_of(answers_of(units=1, Pristine=(0.9, None), zeros=(0.9, 0.5), residual=(0.9, 0.6)))
    assert "60.0 (+10.0)" in text
    assert "nan" not in text


def test_what_no_table_says_stands_there_too():
    assert "what did not work" in text_of(answers_of(Pristine=(0.9, None), zeros=(0.9, 0.5)))


def recordings(folder, speakers, columns=("file", "speaker", "label", "split", "take")):
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows({"file": f"{s}.mp4", "speaker": s, "label": "sad", "split": "", "take": "01"} for s in speakers)
    return folder


def splits_of(folder):
    with (folder / "labels.csv").open(newline="") as file:
        return {row["speaker"]: row["split"] for row in csv.DictReader(file)}


def test_a_fold_holds_out_its_actors_and_nobody_else(tmp_path):
    speakers = [s for pair in FOLDS for s in pair]
    data = recordings(tmp_path / "java", speakers)
    for fold, held in enumerate(FOLDS):
        splits = splits_of(fold_folder(fold, tmp_path / "runs", str(data)))
        assert {s for s, split in splits.items() if split == "test"} == set(held)
        assert set(splits) == set(speakers)


def test_what_is_learned_from_more_recordings_is_tested_on_the_fold_s_own(tmp_path):
    speakers = [s for pair in FOLDS for s in pair]
    own = fold_folder(0, tmp_path / "runs", str(recordings(tmp_path / "java", speakers)))
    more = fold_folder(0, tmp_path / "runs", str(recordings(tmp_path / "takes", speakers)), "java_sed_takes")
    both = with_rows(tmp_path / "both", (more, "train"), (own, "test"))
    with (both / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["split"] for r in rows if "takes" in r["file"]} == {"train"}
    assert {r["speaker"] for r in rows if r["split"] == "test"} == set(FOLDS[0])
    assert not {r["speaker"] for r in rows if r["split"] == "train"} & set(FOLDS[0])
