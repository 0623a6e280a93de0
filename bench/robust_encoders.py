"""The encoders of `bench.robust_features`, each as a bundle that is made once: shipped, foreign, by hand, or trained.

Those trained here learn without labels from GRID's training sentences of its training speakers. Of each recording the
mouth's neighbourhood is cut out by the default bundle's face finder, in one place for the whole recording, and the film
is cut into pieces of 0.72 s: an instance is what is said in a moment, not who says it.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from bench.face_components import fitted
from encoders.checkpoint import save_weights
from encoders.datasets.equal_clips import spread
from encoders.datasets.reader import seconds_of
from encoders.datasets.sample import DATASETS, Sample, list_samples, shipped
from encoders.errors import LegatoError, UsageError
from encoders.video.face_cut import cut

__all__ = ["ENCODERS", "Made", "epochs_of", "legato"]

PIECE = Fraction(18, 25)  # seconds of an instance, a whole number of pictures
SIDE = 56  # pixels of a cut-out face, about what GRID's pictures have
MARGIN = 1.3  # mouth boxes across, of which crops as large as a mouth box are drawn
SUBSET = "training sentences of GRID's training speakers"


@dataclass(frozen=True)
class Made:
    """An encoder of each modality, ready to be used."""

    name: str
    bundle: str  # name or folder
    weights: Mapping[str, str] = field(default_factory=dict)  # SHA-256 by file
    learned_from: str = ""


def legato(*arguments: str) -> None:
    """A command of ours; LegatoError where it fails (it has said why)."""
    from runtime import cli

    if code := cli.run(arguments):
        raise LegatoError(f"legato {' '.join(arguments[:2])} ended with {code}; what is there is kept, go on as before")


def drafted(name: str, options: Sequence[str], args: argparse.Namespace, learned_from: str = "") -> Made:
    """A bundle of encoders without a head, unless it is there."""
    folder = args.out / "bundles" / name
    if not (folder / "bundle.json").exists():
        legato("bundle", "make", "--out", str(folder), "--labels", "a,b", "--clip-seconds", "2/5", *options)
    return Made(name, str(folder), hashes(folder), learned_from)


def hashes(bundle: str | Path) -> dict[str, str]:
    """SHA-256 of the encoders' weights, in the bundle or in the packages it refers to."""
    from runtime.bundle import Bundle

    manifest = Bundle.load(bundle).manifest
    own = {part.weights: manifest.sha256[part.weights] for part in manifest.encoders.values() if part.weights}
    foreign = [part.package.sha256 for part in manifest.encoders.values() if part.package]
    return {**own, **{name: digest for files in foreign for name, digest in files.items()}}


# --- shipped, foreign, by hand ------------------------------------------------------------------------------------


def talk(args: argparse.Namespace) -> Made:
    return Made("talk", "talk", hashes("talk"), "GRID's training speakers: who speaks")


def external(args: argparse.Namespace) -> Made:
    options = ["--video", "external:fer", "--audio", "external:openwakeword"]
    return drafted("external", options, args, "others' data: FER-2013, speech")


def hand(args: argparse.Namespace) -> Made:
    """Components are of the faces in clips of the training sentences."""
    options = ["--video", "external:bench.face_components:FaceComponents", "--audio", "external:openwakeword",
               "--set", "audio.embedding=false"]  # fmt: skip
    weights = args.out / "runs" / "hand" / "video.safetensors"
    if not weights.exists():
        blank = drafted("hand_blank", options, args)
        save_weights(weights, fitted(torch.from_numpy(faces_of(blank, args))).state_dict())
    return drafted("hand", [*options, "--video-weights", str(weights)], args, f"faces of {SUBSET}")


def faces_of(made: Made, args: argparse.Namespace) -> np.ndarray:
    """Faces (B, T, H, W) of the training sentences, as an encoder is shown them."""
    from runtime.pipeline import Pipeline
    from runtime.shown import Shower

    pipeline = Pipeline.from_bundle(made.bundle, device="cpu")
    shower, seconds = Shower(pipeline.engine, args.keep), pipeline.config.clip.seconds
    clips = []
    for sample in training(args):
        shown = shower.show(sample, spread(seconds_of(sample), seconds, 7).starts)
        assert shown.video is not None
        clips.append(shown.video[shown.found])
    return np.concatenate(clips)


# --- trained here -------------------------------------------------------------------------------------------------


def avid(args: argparse.Namespace) -> Made:
    """AVID, then CMA from its result at a fifth of the learning rate, as the paper has it on AudioSet.

    Instances are read several times an epoch, in one random order, at a low learning rate. Read once, all positives are
    an epoch old and most negatives are not, and the network learns to tell the age of a memory from what it shows.
    """
    settings = ["clips_per_video=4", "offset_seconds=0", "augment.area=0.4,1", "workers=0", "precision=bf16"]
    common = ["avid-cma", "--preset", "avid_cma_talk", "--batch", "64",
              *(part for setting in settings for part in ("--set", setting))]  # fmt: skip
    first = trained("avid", [*common, "--stage", "avid", "--lr", "5e-4"], 5, args)
    second = trained("cma", [*common, "--stage", "cma", "--lr", "1e-4", "--init", str(first)], 1, args)
    options = ["--video", "r2plus1d_talk", "--audio", "conv2d_talk"]
    return drafted("avid", [*options, *weights_of(second)], args, SUBSET)


CRISSCROSS = {
    "model.video.clip_seconds": "2/5", "model.video.frames": "10", "model.video.size": "40",
    "model.video.front": "local_motion", "model.video.region": "face",
    "model.video.stem_width": "16", "model.video.stem_kernel": "3,5,5", "model.video.stem_pool": "false",
    "model.video.widths": "24,48,128", "model.video.blocks": "1,1,1", "model.video.time_strides": "1,1,2",
    "model.video.space_strides": "2,2,1",
    "model.audio.clip_seconds": "2/5", "model.audio.front": "log_mel_talk", "model.audio.stem_width": "16",
    "model.audio.stem_kernel": "5", "model.audio.widths": "32,64,128", "model.audio.blocks": "1,1,1",
    "model.audio.strides": "1,2,2",
    "model.width": "256", "model.bottleneck": "64", "augment.area": "0.4,1", "augment.cutout_side": "10",
    "augment.time_width": "6", "augment.frequency_width": "6", "batch": "64", "clips_per_video": "4", "warmup": "0.5",
}  # fmt: skip


def crisscross(args: argparse.Namespace) -> Made:
    settings = [part for key, value in CRISSCROSS.items() for part in ("--set", f"{key}={value}")]
    run = trained("crisscross", ["crisscross", "--preset", "crisscross_tiny", *settings, "--set", "precision=bf16"],
                  3, args)  # fmt: skip
    presets = [part for m in ("video", "audio") for part in (f"--{m}", _header(run / f"{m}.safetensors")["preset"])]
    return drafted("crisscross", [*presets, *weights_of(run)], args, SUBSET)


def trained(name: str, command: Sequence[str], epochs: int, args: argparse.Namespace) -> Path:
    """A run of ``legato train``, gone on with where it was stopped."""
    out: Path = args.out / "runs" / name
    if not (out / "video.safetensors").exists():
        data = f"folder:{pieces(args)}"
        chosen = ["--epochs", str(args.epochs.get(name, epochs)), "--out", str(out), "--device", "cpu"]
        started = (out / "checkpoint.json").exists()
        legato("train", *([command[0], "--resume"] if started else [*command, "--data", data]), *chosen)
    return out


def epochs_of(text: str) -> dict[str, int]:
    """``avid=N,cma=N,crisscross=N``; raises UsageError on anything else."""
    given = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        if name not in ("avid", "cma", "crisscross") or not value.isdecimal() or not int(value):
            raise UsageError(f"--epochs {pair!r} is not RUN=N; runs are avid, cma and crisscross, N is at least 1")
        given[name] = int(value)
    return given


def weights_of(run: Path) -> list[str]:
    return [part for m in ("video", "audio") for part in (f"--{m}-weights", str(run / f"{m}.safetensors"))]


def _header(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        return dict(file.metadata() or {})


def training(args: argparse.Namespace) -> list[Sample]:
    """GRID's recordings that no test of it uses: training speakers, and training sentences of each."""
    folder = shipped("grid", DATASETS["grid"][1]) if args.data is None else args.data / DATASETS["grid"][1]
    known = list_samples(f"grid:{folder}", splits=["train"])
    return [sample for sample in known if sample.notes["split_within_speaker"] == "train"]


def pieces(args: argparse.Namespace) -> Path:
    """The folder of instances: mouths and voices, pictures and samples as they are (FFV1, PCM)."""
    from encoders.media import AudioTrack, VideoTrack, write_media
    from runtime.pipeline import Pipeline

    folder: Path = args.keep / "pieces"
    done = folder / "done.json"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    engine = Pipeline.from_bundle("talk", device="cpu").engine
    written = 0
    for sample in training(args):
        for number, (frames, sound) in enumerate(cut_out(engine, sample)):
            picture = VideoTrack(frames=list(frames), rate=25, codec="ffv1", pixel_format="gray")
            path = folder / sample.speaker / f"{sample.path.stem}_{number}.mkv"
            path.parent.mkdir(exist_ok=True)
            write_media(path, [picture, AudioTrack(samples=sound, codec="pcm_s16le")])
            written += 1
    done.write_text(json.dumps({"pieces": written, "side": SIDE, "margin": MARGIN}))
    return folder


def cut_out(engine: object, sample: Sample) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures uint8 (T, SIDE, SIDE) at 25 per second and samples (S,) of each piece of a recording."""
    from encoders.clips import AudioSpec, ClipSpec, VideoSpec
    from encoders.media import read_clip
    from runtime.shown import picture_clip

    seconds = PIECE * int(seconds_of(sample) / PIECE)
    count = int(seconds * 25)
    spec = ClipSpec(seconds=seconds, video=VideoSpec(frames=count, size=SIDE, region="face"), audio=AudioSpec())
    video, sound = read_clip(sample.path, sample.start, seconds, spec)
    if video is None or sound is None:
        return
    tracker = engine.models.face  # type: ignore[attr-defined]
    clips = [picture_clip(video[i : i + 10], spec) for i in range(0, count, 10)]
    looks = [tracker.locate(clip, tracker.initial_state()) for clip in clips]
    boxes = [state.box for _, state, found in looks if found]
    if not boxes:
        return
    x, y, side = np.median(boxes, axis=0)
    faces = cut(video, (float(x), float(y), float(side) * MARGIN), SIDE)
    frames, samples = int(PIECE * 25), int(PIECE * 16_000)
    for i in range(int(seconds / PIECE)):
        yield faces[i * frames : (i + 1) * frames], sound[i * samples : (i + 1) * samples]


ENCODERS: dict[str, Callable[[argparse.Namespace], Made]] = {
    "external": external,
    "talk": talk,
    "hand": hand,
    "avid": avid,
    "crisscross": crisscross,
}
