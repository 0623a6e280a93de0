"""The recipe of the default bundle on toy recordings: everything is made, nothing twice, and what is made runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoders.media import AudioTrack, VideoTrack, write_media
from runtime.bundle import Bundle
from runtime.errors import LegatoError
from runtime.pipeline import Pipeline
from runtime.sources import open_source
from runtime.talk.assemble import other_people
from runtime.talk.corpus import SAMPLE_RATE
from runtime.talk.fill import FillRecipe
from runtime.talk.making import Making
from runtime.talk.recipe import JAVA_PAIRS, Recipe
from runtime.talk.train_encoders import EncoderRecipe

TINY = Recipe(
    train=("grid/s1", "grid/s2"),
    validation=("grid/s4", "grid/s31"),
    test=("grid/s32", "grid/s33"),
    face_steps=2,
    encoders=EncoderRecipe(steps=3, warm_steps=1, talking=4, quiet=2),
    windows=24,
    each=2,
    fill=FillRecipe(imputer_steps=3, head_steps=3, imputer_overrides={"width": 16, "heads": 2, "depth": 1}),
)
SPEAKERS = ("s1", "s2", "s4", "s31", "s32", "s33")


def recordings(folder: Path) -> None:
    """One sentence of each speaker as a file: a square that opens and closes while a tone sounds."""
    at = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    sound = np.where((at > 0.8) & (at < 2.2), 0.3 * np.sin(2 * np.pi * 300 * at), 0.0).astype(np.float32)
    for number, speaker in enumerate(SPEAKERS):
        frames = [np.full((48, 64), 60 + 20 * number, np.uint8) for _ in range(75)]
        for i in range(20, 55):
            frames[i][24 : 24 + i % 5, 24:40] = 220
        place = folder / "grid-av" / "clips" / speaker
        place.mkdir(parents=True)
        write_media(place / "a.mp4", [VideoTrack(frames=frames), AudioTrack(samples=sound)])


def prepared(cache: Path) -> None:
    """What the prepare step would leave, without a face detector."""
    cache.mkdir()
    frames, samples = 75, 3 * SAMPLE_RATE
    rng = np.random.default_rng(0)
    rows = [
        {"file": f"{s}/a.mp4", "speaker": s, "split": "", "frames": frames, "samples": samples,
         "stills": [[0, 15], [60, 75]], "kept": 3}
        for s in SPEAKERS
    ]  # fmt: skip
    (cache / "grid.json").write_text(json.dumps(rows))
    np.save(cache / "grid_pictures.npy", rng.integers(0, 255, (frames * len(rows), 64, 64), dtype=np.uint8))
    np.save(cache / "grid_times.npy", np.tile(np.arange(frames) / 25, len(rows)))
    np.save(cache / "grid_sound.npy", rng.integers(-9000, 9000, samples * len(rows)).astype(np.int16))
    np.save(cache / "grid_frames.npy", rng.integers(0, 255, (3 * len(rows), 48, 64), dtype=np.uint8))
    np.save(cache / "grid_boxes.npy", np.tile([32.0, 26.0, 20.0], (frames * len(rows), 1)))
    (cache / "noise.json").write_text(json.dumps(["train", "val", "test"]))
    np.save(cache / "noise.npy", rng.integers(-3000, 3000, (3, 5 * SAMPLE_RATE)).astype(np.int16))


@pytest.fixture(scope="module")
def making(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Making]:
    folder = tmp_path_factory.mktemp("talk")
    recordings(folder)
    prepared(folder / "cache")
    return lambda recipe: Making(recipe, folder, folder / "run", lambda *_: None, folder / "cache")


def test_a_folder_without_recordings_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(LegatoError):
        Making(TINY, tmp_path / "nowhere", tmp_path / "run", lambda *_: None).prepare()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_recipe_makes_a_bundle_that_runs(making: Callable[[Recipe], Making], tmp_path: Path) -> None:
    run = making(TINY)
    made = run.bundle()
    assert made.manifest.labels == ("nobody", "on_screen", "off_screen") and (made.path / "CARD.md").exists()
    assert made.manifest.metrics["speakers"] == ["grid/s32", "grid/s33"]
    assert set(made.manifest.metrics["score_by_loss"]) >= {"none", "clips-10", "clips-90", "lte-driving"}
    pipeline = Pipeline.from_bundle(Bundle.load(made.path))
    predictions = list(pipeline.run(open_source(run.data / "grid-av" / "clips" / "s32" / "a.mp4")))
    finals = [p for p in predictions if p.status == "final"]
    assert [p.clip for p in finals] == [2, 3, 4, 5, 6, 7] or [p.clip for p in finals] == [2, 3, 4, 5, 6]
    assert all(p.label in made.manifest.labels for p in finals)


@pytest.mark.slow
def test_a_second_run_trains_nothing(making: Callable[[Recipe], Making]) -> None:
    first = making(TINY).bundle()
    before = {p: p.stat().st_mtime_ns for p in making(TINY).out.rglob("*.safetensors") if "bundle" not in p.parts}
    again = making(TINY).bundle()
    assert again.hash == first.hash
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.slow
def test_frozen_encoders_are_taken_and_not_trained(making: Callable[[Recipe], Making], tmp_path: Path) -> None:
    first = making(TINY)
    taken, face = first.net().state_dict(), first.face().state_dict()
    run = Making(TINY, first.data, tmp_path / "fitted", lambda *_: None, first.cache, frozen=first.out)
    assert all((run.net().state_dict()[name] == value).all() for name, value in taken.items())
    assert all((run.face().state_dict()[name] == value).all() for name, value in face.items())
    run.prepare()
    assert json.loads((run.out / "recipe.json").read_text())["encoders_from"] == first.out.name
    assert not list(run.out.glob("*.safetensors"))


def test_a_run_without_nets_has_none_to_take(making: Callable[[Recipe], Making], tmp_path: Path) -> None:
    run = Making(TINY, making(TINY).data, tmp_path / "fitted", lambda *_: None, frozen=tmp_path / "empty")
    with pytest.raises(LegatoError, match=r"has no net\.safetensors to take; train it first"):
        run.net()


@pytest.mark.slow
def test_another_seed_of_heads_reuses_the_encoders(making: Callable[[Recipe], Making]) -> None:
    other = making(replace(TINY, fill=replace(TINY.fill, seed=1)))
    encoders = other.out / "net.safetensors"
    before = encoders.stat().st_mtime_ns if encoders.exists() else None
    _, rows = other.judge(draws=1)
    assert {row.speaker for row in rows} == {"grid/s32", "grid/s33"}
    assert before is None or encoders.stat().st_mtime_ns == before


def test_the_card_says_how_women_and_men_fared_elsewhere() -> None:
    actors = {actor: {"score": 0.9} for pair in JAVA_PAIRS for actor in pair}
    actors |= {JAVA_PAIRS[0][0]: {"score": 0.6}, JAVA_PAIRS[1][1]: {"score": 0.99}}
    found = {"all": {"score": 0.876, "auc_still": 0.98, "auc_mismatch": 0.97}, **actors}
    said = other_people({"zero_shot": found})
    assert "the score is 0.876: women 0.60 to 0.90, men 0.90 to 0.99" in said
    assert other_people({}) == ""
