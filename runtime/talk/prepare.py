"""Recordings to arrays, once: mouth pictures cut by the teacher's boxes, sound at 16 kHz, silent spans.

Everything is decoded by ``encoders.media``, as in serving. The folder that comes out holds plain ``.npy`` arrays and
one JSON per corpus, and is read back by ``load``.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from encoders.clips import AudioSpec, ClipSpec, VideoSpec
from encoders.datasets import esc10, grid, java_sed
from encoders.datasets.sample import Sample
from encoders.media import Reading, read_all
from runtime.errors import DataError
from runtime.face import cut
from runtime.talk.corpus import MARGIN, SAMPLE_RATE, STORED, Corpus, Utterance, silent_spans, spans_between
from runtime.talk.faces import Shown, Teacher

FOLDERS = {"grid": "grid-av", "java_sed": "javanese-av-emotion"}
NOISE_FOLDER = "esc10-audio"
NOISE_SECONDS = 5
EVERY = 5  # frames between two looks of the teacher
FACES_EACH = 400  # frames kept per speaker for teaching the face net
SPEC = ClipSpec(video=VideoSpec(frames=10, size=STORED, region="face"), audio=AudioSpec(sample_rate=SAMPLE_RATE))
Progress = Callable[[int, int], None]


def prepare(data: Path, cache: Path, corpus: str, progress: Progress) -> None:
    """Decode one corpus below ``data`` into ``cache``; a finished one is left as it is."""
    if (cache / f"{corpus}.json").exists():
        return
    folder = data / FOLDERS[corpus]
    samples = {"grid": grid, "java_sed": java_sed}[corpus].list_samples(folder)
    words = grid.word_times(folder) if corpus == "grid" else {}
    teacher = Teacher()
    arrays: dict[str, list[np.ndarray]] = defaultdict(list)
    rows: list[dict[str, Any]] = []
    for done, sample in enumerate(samples):
        row = _utterance(read_all(sample.path, SPEC), sample, words.get(sample.path, []), teacher, arrays)
        if row is not None:
            rows.append(row)
        progress(done + 1, len(samples))
    _save(cache, corpus, arrays, rows)


def _utterance(
    reading: Reading,
    sample: Sample,
    words: list[tuple[float, float, str]],
    teacher: Teacher,
    arrays: dict[str, list[np.ndarray]],
) -> dict[str, Any] | None:
    frames = np.stack([p.pixels for p in reading.pictures])
    times = np.array([float(p.ticks * p.packet.time_base) for p in reading.pictures])
    boxes = follow([teacher(f) for f in frames[::EVERY]], len(frames))
    if boxes is None:
        return None
    step = float(np.diff(times).mean())
    samples = round((times[-1] + step - times[0]) * SAMPLE_RATE)
    sound = reading.samples(reading.pictures[0].ticks * reading.pictures[0].packet.time_base, samples, SAMPLE_RATE)
    spoken = [(a, b) for a, b, word in words if word not in ("sil", "sp")]
    if spoken:
        speech = [int(spoken[0][0] / step), int(np.ceil(spoken[-1][1] / step)) - 1]
        stills = spans_between(speech, len(frames))
    else:
        stills = silent_spans(sound, step, len(frames))
    arrays["pictures"] += [cut(f[None], (*b[:2], b[2] * MARGIN), STORED)[0] for f, b in zip(frames, boxes, strict=True)]
    arrays["times"].append(times - times[0])
    arrays["sound"].append((sound * 32767).astype(np.int16))
    arrays["boxes"].append(boxes)
    arrays["frames"].append(frames[:: EVERY * 5])
    return {
        "file": "/".join(sample.path.parts[-2:]), "speaker": sample.speaker, "split": sample.split,
        "frames": len(frames),
        "samples": samples, "stills": [list(s) for s in stills], "kept": len(frames[:: EVERY * 5]),
    }  # fmt: skip


def follow(found: Sequence[tuple[float, float, float] | None], frames: int) -> np.ndarray | None:
    """A box for every frame, (N, 3), from looks at some: lines between them, a median over a second against leaps."""
    known = [i for i, box in enumerate(found) if box is not None]
    if not known:
        return None
    values = np.array([found[i] for i in known])
    every = np.stack([np.interp(np.arange(frames), np.array(known) * EVERY, values[:, c]) for c in range(3)], 1)
    return np.stack([np.median(every[max(0, i - 12) : i + 13], axis=0) for i in range(frames)])


def _save(cache: Path, corpus: str, arrays: dict[str, list[np.ndarray]], rows: list[dict[str, Any]]) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    shapes = {frames.shape[1:] for frames in arrays["frames"]}
    if len(shapes) != 1:
        raise DataError(f"{corpus} has pictures of {len(shapes)} sizes; this recipe takes one size per corpus")
    for name, parts in arrays.items():
        np.save(cache / f"{corpus}_{name}.npy", np.stack(parts) if name == "pictures" else np.concatenate(parts))
    (cache / f"{corpus}.json").write_text(json.dumps(rows))


def prepare_noise(data: Path, cache: Path, progress: Progress) -> None:
    """ESC-10 as one array (N, S); clips that are silent are left out."""
    if (cache / "noise.json").exists():
        return
    samples = esc10.list_samples(data / NOISE_FOLDER)
    count, sounds, splits = NOISE_SECONDS * SAMPLE_RATE, [], []
    for done, sample in enumerate(samples):
        reading = read_all(sample.path, ClipSpec(audio=AudioSpec(sample_rate=SAMPLE_RATE)))
        sound = reading.samples(reading.origin, count, SAMPLE_RATE)
        if np.abs(sound).max() > 0.006:
            sounds.append((sound * 32767).astype(np.int16))
            splits.append(sample.split)
        progress(done + 1, len(samples))
    cache.mkdir(parents=True, exist_ok=True)
    np.save(cache / "noise.npy", np.stack(sounds))
    (cache / "noise.json").write_text(json.dumps(splits))


def load(cache: Path, corpora: Sequence[str]) -> Corpus:
    """The prepared corpora as one; speakers are called ``corpus/speaker``."""
    utterances: list[Utterance] = []
    for corpus in corpora:
        rows = _rows(cache, corpus)
        pictures, times, sound = (np.load(cache / f"{corpus}_{name}.npy") for name in ("pictures", "times", "sound"))
        at = heard = 0
        for row in rows:
            frames, samples = slice(at, at + row["frames"]), slice(heard, heard + row["samples"])
            at, heard = frames.stop, samples.stop
            utterances.append(
                Utterance(
                    corpus=corpus,
                    speaker=f"{corpus}/{row['speaker']}",
                    file=row["file"],
                    split=row["split"],
                    pictures=pictures[frames],
                    times=times[frames],
                    sound=sound[samples].astype(np.float32) / 32767,
                    stills=tuple((a, b) for a, b in row["stills"]),
                )
            )
    splits = _rows(cache, "noise")
    noises = np.load(cache / "noise.npy").astype(np.float32) / 32767
    return Corpus(utterances, list(zip(noises, splits, strict=True)))


def faces(cache: Path, corpus: str) -> dict[str, list[Shown]]:
    """Frames with the teacher's boxes, at most FACES_EACH of each speaker."""
    frames, boxes = np.load(cache / f"{corpus}_frames.npy", mmap_mode="r"), np.load(cache / f"{corpus}_boxes.npy")
    out: dict[str, list[Shown]] = defaultdict(list)
    at = kept = 0
    for row in _rows(cache, corpus):
        mine = out[f"{corpus}/{row['speaker']}"]
        for i in range(row["kept"]):
            if len(mine) < FACES_EACH:
                x, y, side = boxes[at + i * EVERY * 5].tolist()
                mine.append(Shown(np.asarray(frames[kept + i]), (x, y, side)))
        at, kept = at + row["frames"], kept + row["kept"]
    return out


def _rows(cache: Path, name: str) -> list[Any]:
    try:
        rows: list[Any] = json.loads((cache / f"{name}.json").read_text())
    except FileNotFoundError:
        raise DataError(f"{cache} holds no prepared {name}; run the recipe's prepare step first") from None
    return rows
