"""Bad input at the command line: a result, or one sentence with the way out; soon, and nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime import cli
from runtime.bundle import Bundle
from runtime.commands import features as features_command
from runtime.output import ResultFile, part_of
from runtime.pipeline import Pipeline
from tests.bundles import write_tiny_bundle

SECONDS = 60.0  # far above what any file takes; a hang is longer
FOLDER = "decoder-torture"
# one of each kind in the default run: whole, damaged, undecodable, silent, tracks without packets, no media at all
HANDFUL = {
    "decord/corrupted.mp4",
    "decord/unordered.mov",
    "go-mp4/sample_init.encv.mp4",
    "grid-original/s1_bbaf2n.mpg",
    "mp4parse/sine-3s-xhe-aac-44khz-mono.mp4",
    "mp4parse/test_case_1185230.mp4",
    "mux.js/malformed-sei.m4s",
    "mux.js/test-no-audio-segment.ts",
    "small/AudioVideoInterleave.avi",
    "small/webm.webm",
}


def torture_files() -> list[Any]:
    """Every media file of the folder, all but a handful marked slow; one that skips where there is no folder."""
    root = Path(os.environ.get("LEGATO_DATA") or "/nowhere") / FOLDER
    names = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.suffix not in (".md", ".csv"))
    marks = {name: () if name in HANDFUL else (pytest.mark.slow,) for name in names}
    return [pytest.param(name, id=name, marks=marks[name]) for name in names] or [
        pytest.param("", marks=pytest.mark.skip(reason=f"LEGATO_DATA does not name a folder with {FOLDER}"))
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").path


@pytest.fixture(scope="module")
def loaded() -> Pipeline:
    return Pipeline.from_bundle("talk")


@pytest.fixture
def legato(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line; (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def is_one_sentence(err: str) -> bool:
    return err.startswith("legato: ") and err.count("\n") == 1 and "Errno" not in err and len(err) < 500


# -- every file of a folder of broken files -----------------------------------------------------------------------


@pytest.mark.parametrize("name", torture_files())
def test_each_broken_file_gives_predictions_or_one_sentence(name, legato, loaded, monkeypatch, tmp_path):
    monkeypatch.setattr(Pipeline, "from_bundle", lambda *_, **__: loaded)  # loaded once for all of them
    path, out = Path(os.environ["LEGATO_DATA"]) / FOLDER / name, tmp_path / "predictions.jsonl"
    began = time.monotonic()
    code, _, err = legato("replay", path, "--out", out)
    assert time.monotonic() - began < SECONDS
    if code == 0:
        said = [json.loads(line) for line in out.read_text().splitlines()]
        assert any(not p["abstained"] for p in said) and err == ""
    else:
        assert code == 1 and is_one_sentence(err) and Path(name).stem in err
        assert list(tmp_path.iterdir()) == []


# -- what a person gives wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["replay", "http://example.org/a.mp4"], 1, "http://example.org/a.mp4 is an address, not a local path"),
        (["replay", ""], 1, "is not a path"),
        (["replay", "nowhere.mp4"], 1, "nowhere.mp4 does not exist; give a local"),
        (["replay", "{empty}"], 1, "no *.legato recording; name another"),
        (["replay", "{garbage}"], 1, "is not a packet recording"),
        (["replay", "{zero}"], 1, "is empty (0 bytes); copy it again"),
        (["replay", "{zero}", "--loss", "wifi-brust"], 2, "unknown loss profile 'wifi-brust'; use wifi-burst"),
        (["replay", "{zero}", "--bundle", "tlak"], 2, "did you mean talk"),
        (["replay", "{zero}", "--seed", "-1"], 2, "--seed"),
        (["replay", "{demo}", "--set", "delay.cpa=1"], 2, "setting 'delay.cpa' is unknown; did you mean delay.cap"),
        (["replay", "{demo}", "--set", "delay.cap=soon"], 2, "delay.cap='soon' is not of type float; give a number"),
        (["replay", "{demo}", "--out", "{empty}"], 1, "is a folder; name a file in it"),
        (["replay", "{demo}", "--out", ""], 1, "is a folder; name a file in it"),
        (["replay", "{demo}", "--out", "{zero}/a.jsonl"], 1, "a file is where a folder is needed"),
        (["replay", "{demo}", "--report", "{zero}"], 1, "is a file, and a folder is needed"),
        (["demo", "--folder", "{zero}"], 1, "is a file, and a folder is needed"),
        (["features", "{demo}", "--out", "{empty}"], 1, "is a folder; name a file in it"),
        (["features", "{demo}", "--out", ""], 1, "is a folder; name a file in it"),
        (["features", "{demo}", "--out", "{zero}/x"], 1, "a file is where a folder is needed"),
        (["features", "{demo}", "--out", "x", "--labels", "no.csv"], 1, "could not be read: No such file or directory"),
        (["features", "{demo}", "--out", "x", "--labels", "{labels}"], 1, "names none of these recordings (demo"),
        (["eval", "nowhere", "--arm", "a=b"], 1, "is not a feature file (it does not exist); make one"),
        (["train", "talk", "--data", "nowhere", "--out", "{empty}"], 1, "give the folder that holds the dataset"),
        (["bundle", "make", "{recipe}", "--out", "x"], 2, "files names 3 for notes; give a path"),
    ],
)
def test_a_wrong_argument_is_one_sentence_before_any_work(arguments, code, says, legato, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {name: tmp_path / name for name in ("empty", "garbage.legato", "zero.mp4", "labels.csv", "recipe.json")}
    given = {name.split(".")[0]: path for name, path in given.items()} | {"demo": shipped("demo.legato")}
    given["empty"].mkdir()
    given["garbage"].write_bytes(bytes(range(256)) * 10)
    given["zero"].touch()
    given["labels"].write_text("file,label\nother.mp4,cat\n")
    given["recipe"].write_text('{"manifest": {}, "weights": {}, "files": {"notes": 3}}')
    found = legato(*(str(a).format(**given) for a in arguments))
    assert found[0] == code and says in found[2] and is_one_sentence(found[2]), found
    assert found[1] == "" and sorted(tmp_path.iterdir()) == sorted(p for p in given.values() if p.parent == tmp_path)


def shipped(name: str) -> Path:
    return Bundle.load("talk").path / name


@pytest.mark.parametrize("cut", [0, 1, 7, 100, 5_000, 100_003, -1])
def test_a_recording_cut_at_any_byte_replays_to_its_last_whole_packet(cut, legato, loaded, monkeypatch, tmp_path):
    monkeypatch.setattr(Pipeline, "from_bundle", lambda *_, **__: loaded)
    (tmp_path / "cut.legato").write_bytes(shipped("demo.legato").read_bytes()[:cut])
    code, out, err = legato("replay", tmp_path / "cut.legato", "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert all(p["abstained"] for p in answers) == (code == 1)  # nothing was seen or heard, and that is said
    assert is_one_sentence(err) if code == 1 else (code == 0 and not err)
    if not 100 < cut < 50_000:  # between, it depends on what the recording begins with
        assert code == 0 or 0 <= cut <= 5_000
    assert code == 1 or not 0 <= cut <= 100


# -- results ------------------------------------------------------------------------------------------------------


def test_a_device_is_written_to_and_never_replaced(tmp_path):
    """A pipe stands for any device: whoever runs as root must still have /dev/null afterwards."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with ResultFile(pipe) as file:
        file.write("said\n")
    assert os.read(reader, 100) == b"said\n"
    os.close(reader)
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with ResultFile(tmp_path / "link") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_two_runs_that_write_one_file_do_not_mix(tmp_path, monkeypatch):
    first = ResultFile(tmp_path / "out")
    monkeypatch.setattr(os, "getpid", lambda: 1)  # what another process would have
    second = ResultFile(tmp_path / "out")
    with first, second:
        first.write("first")
        second.write("second")
    assert (tmp_path / "out").read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device on which every write fails")
@pytest.mark.parametrize("name", ["p.jsonl", "report.html", "report.png"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(name, legato, loaded, monkeypatch, tmp_path):
    monkeypatch.setattr(Pipeline, "from_bundle", lambda *_, **__: loaded)
    part_of(tmp_path / name).symlink_to("/dev/full")
    recording = shipped("demo.legato").read_bytes()[:120_000]
    (tmp_path / "cut.legato").write_bytes(recording)
    code, _, err = legato("replay", tmp_path / "cut.legato", "--out", tmp_path / "p.jsonl", "--report", tmp_path)
    assert code == 1 and is_one_sentence(err) and f"{name} could not be written" in err and "make room" in err
    assert not (tmp_path / name).exists() and not [p for p in tmp_path.iterdir() if p.name.endswith(".part")]


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs signals as on Unix")
def test_ctrl_c_in_the_middle_of_a_demo_leaves_nothing(tiny, tmp_path):
    command = [sys.executable, "-m", "runtime", "demo", "--folder", str(tmp_path / "out")]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job would ignore Ctrl-C
    with subprocess.Popen(command, preexec_fn=heed, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()  # the first prediction: it is running
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130 and err == "legato: stopped\n"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_terminal_without_the_characters_shows_something_else(tmp_path):
    """Block marks cannot be written in Latin-1; they become question marks, not a traceback."""
    (tmp_path / "cut.legato").write_bytes(shipped("demo.legato").read_bytes()[:120_000])
    command = [sys.executable, "-m", "runtime", "replay", str(tmp_path / "cut.legato")]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=SECONDS)
    assert done.returncode == 0 and b"?" in done.stdout and done.stderr == b""


# -- features -----------------------------------------------------------------------------------------------------


def test_features_twice_are_the_same_bytes_and_equal_a_replay_s(legato, loaded, monkeypatch, tmp_path):
    import torch

    from imputation.features import FeatureSet
    from runtime.sources import open_source

    monkeypatch.setattr(Pipeline, "from_bundle", lambda *_, **__: loaded)
    recording = tmp_path / "cut.legato"
    recording.write_bytes(shipped("demo.legato").read_bytes()[:150_000])
    for name in ("a", "b"):
        assert legato("features", recording, "--out", tmp_path / name)[0] == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    traced: list[Any] = []
    with open_source(recording) as source:
        list(loaded.run(source, trace=traced.append))
    newest = {encoded.clip: torch.from_numpy(encoded.raw) for encoded in traced}
    written = FeatureSet.load(tmp_path / "a")
    assert torch.equal(written.features[0], torch.stack([newest[clip] for clip in sorted(newest)]))


def test_a_recording_of_which_nothing_came_gives_no_features(loaded, monkeypatch, legato, tmp_path):
    monkeypatch.setattr(Pipeline, "from_bundle", lambda *_, **__: loaded)
    options = ["--loss", "iid-100", "--out", tmp_path / "x"]
    code, out, err = legato("features", shipped("demo.legato"), *options)
    assert code == 1 and out == "" and is_one_sentence(err) and not (tmp_path / "x").exists()


def test_a_label_is_found_by_the_file_s_name_with_or_without_suffix():
    facts = {"a": features_command.Facts("x"), "b.mp4": features_command.Facts("y")}
    found: Sequence[Any] = [features_command.fact_of(name, facts) for name in ("a", "a.wav", "b.mp4", "c")]
    assert [fact and fact.label for fact in found] == ["x", "x", "y", None]


def test_two_files_of_one_name_are_two_recordings(legato, loaded, monkeypatch, tmp_path):
    monkeypatch.setattr(Pipeline, "from_bundle", lambda *_, **__: loaded)
    data = shipped("demo.legato").read_bytes()[:100_000]
    for name in ("a.legato", "b.legato"):
        (tmp_path / name).write_bytes(data)
    code, out, _ = legato("features", tmp_path, "--out", tmp_path / "x")
    assert code == 0 and "of 2 recordings" in out


# -- bundles ------------------------------------------------------------------------------------------------------


def test_a_bundle_whose_models_do_not_fit_never_gets_its_name(legato, tiny, tmp_path):
    manifest = json.loads((tiny / "bundle.json").read_text())
    weights = {name: str(tiny / name) for name in manifest.pop("sha256")}
    weights["video.safetensors"] = str(tiny / "audio.safetensors")
    (tmp_path / "recipe.json").write_text(json.dumps({"manifest": manifest, "weights": weights}))
    code, _, err = legato("bundle", "make", tmp_path / "recipe.json", "--out", tmp_path / "made")
    assert code == 1 and is_one_sentence(err) and f"bundle {tmp_path / 'made'}: " in err
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.json"]


@pytest.mark.parametrize("name", ["../escaped", "bundle.json", "video.safetensors", "a/b"])
def test_a_text_of_a_bundle_has_a_file_name_of_its_own(name, legato, tiny, tmp_path):
    manifest = json.loads((tiny / "bundle.json").read_text())
    weights = {weight: str(tiny / weight) for weight in manifest.pop("sha256")}
    (tmp_path / "note").write_text("a note")
    plan = {"manifest": manifest, "weights": weights, "files": {name: "note"}}
    (tmp_path / "recipe.json").write_text(json.dumps(plan))
    code, _, err = legato("bundle", "make", tmp_path / "recipe.json", "--out", tmp_path / "made")
    assert code == 1 and f"a text cannot be called {name!r}" in err and is_one_sentence(err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["note", "recipe.json"]


# -- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["replay", "features", "eval", "demo", "train", "bundle"])
def test_help_flows_and_shows_no_markup(name, legato, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = legato(name, "--help")
    assert code == 0 and err == "" and "``" not in out and max(map(len, out.splitlines())) <= 80
    assert name not in ("replay", "features", "eval") or "For example: legato" in out
