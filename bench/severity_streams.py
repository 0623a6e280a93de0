"""Real recordings, coded again, lost by a profile and received as the runtime does: what ``bench.severity`` measures.

A stream is three sentences of one speaker, joined; its camera stands still or pans (a window that sways over a wider
picture, mirrored at its sides), its voice is the speaker's, another's, or nobody's. It is received twice: as in
serving, where damaged pictures and sound are left out of clips, and *forgiving*, where they are kept. Both are the
runtime's own receiver; only the verdict is changed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from encoders.datasets import grid, java_sed
from encoders.media import AudioTrack, VideoTrack, read_all, write_media
from imputation.presence import PresenceRule
from runtime.clip import Clip
from runtime.damage import INTACT, AudioDamage, Damage, VideoDamage
from runtime.decode import AudioDecoder, Frame, VideoDecoder
from runtime.packet import CodecConfig, Gap, Packet
from runtime.pipeline import Pipeline, receive
from runtime.receive import Receiver
from runtime.sources import open_source
from runtime.stream import Encoded, Stream, Windows
from runtime.talk.prepare import FOLDERS, SPEC

RATE = 25  # pictures per second
SAMPLE_RATE = 16_000
SENTENCES = 3  # in a stream
CAMERAS = ("still", "pan")
CODINGS = {"P": ("0", "libopus"), "B": ("3", "aac")}  # B pictures in a row, and the codec of sound
LABELS = {"noise": 0, "pair": 1, "other": 2}  # voice -> index of the bundle's label
LOSSES = ("iid-1", "iid-5", "wifi-burst", "congestion")
GOP = 50  # pictures
SWAY = (1 / 6, 2.4)  # of a pan: share of the width to either side, seconds to come back
QUIET = 0.003  # root mean square of the noise where nobody speaks


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Pictures uint8 (N, H, W) at ``RATE``, sound float32 (S,), and what is true of them."""

    corpus: str
    speaker: str
    voice: str  # pair, other, noise
    pictures: np.ndarray
    sound: np.ndarray


@dataclass(frozen=True)
class Facts:
    """What is known of one picture when it is judged, besides the verdict: for better estimates than the runtime's."""

    severity: float
    lost: int  # pictures lost since the damage began
    since: int  # pictures since the last of them
    share: float  # bytes of a predicted picture against one that stands alone
    bits: float  # of a predicted picture, per pixel
    renewed: float  # bytes of the pictures since, against one that stands alone


class Watched(VideoDamage):
    """The runtime's tracker; it notes what is known of each picture, and may forgive what is damaged."""

    def __init__(self, config: CodecConfig, *, sequence_numbers: bool, forgives: bool) -> None:
        super().__init__(config, sequence_numbers=sequence_numbers)
        self.forgives, self.facts = forgives, dict[int, Facts]()
        self._lost, self._since, self._renewed = 0, 0, 0.0
        self._means: dict[bool, float] = {}
        self._pixels = max(1, config.width * config.height)

    def push(self, item: Packet | Gap) -> Damage:
        verdict = super().push(item)
        if isinstance(item, Gap):
            self._lost, self._since, self._renewed = self._lost + item.count, 0, 0.0
            return verdict
        if not self._severity:
            self._lost = 0
        size = len(item.payload)
        self._means[item.keyframe] = size if item.keyframe not in self._means else (
            self._means[item.keyframe] + (size - self._means[item.keyframe]) / 8
        )  # fmt: skip
        whole, part = self._means.get(True, 0.0), self._means.get(False, 0.0)
        self._since, self._renewed = self._since + 1, self._renewed + size / max(whole, 1.0)
        self.facts[item.seq] = Facts(verdict.severity, self._lost, self._since, part / max(whole, 1.0),
                                     8 * part / self._pixels, self._renewed)  # fmt: skip
        return INTACT if self.forgives else verdict

    def frame_flag(self, seq: int, *, corrupt: bool = False) -> Damage:
        verdict = super().frame_flag(seq, corrupt=corrupt)
        return INTACT if self.forgives else verdict

    def decode_error(self, seq: int | None = None) -> Damage:
        verdict = super().decode_error(seq)
        return INTACT if self.forgives else verdict


class ForgivingSound(AudioDamage):
    """Sound that a hole spoiled is taken for good."""

    def push(self, item: Packet | Gap) -> Damage:
        verdict = super().push(item)
        return verdict if isinstance(item, Gap) else INTACT


class Kept(VideoDecoder):
    """Every picture that came out, by time."""

    def __init__(self, config: CodecConfig, spec: Any) -> None:
        super().__init__(config, spec)
        self.frames: list[Frame] = []

    def decode(self, packet: Packet, damage: Damage | None = None) -> list[Frame]:
        out = super().decode(packet, damage)
        self.frames += out
        return out

    def flush(self) -> list[Frame]:
        out = super().flush()
        self.frames += out
        return out


@dataclass(frozen=True)
class Received:
    """The clips of one way of receiving, and of the pictures what came out of the decoder."""

    clips: list[Clip]
    frames: list[Frame] = field(default_factory=list)
    facts: dict[int, Facts] = field(default_factory=dict)


def scenes(data: Path, corpus: str, count: int, seed: int) -> Iterator[Scene]:
    """``count`` streams, speakers in turn, voices in turn."""
    rng = np.random.default_rng(seed)
    by_speaker = recordings(data, corpus)
    speakers = sorted(by_speaker)
    for i in range(count):
        who = speakers[i % len(speakers)]
        other = speakers[(i + 1 + i // len(speakers)) % len(speakers)]
        yield scene(rng, by_speaker, corpus, who, list(LABELS)[i % len(LABELS)], other)


def recordings(data: Path, corpus: str) -> dict[str, list[Path]]:
    """The sentences of each speaker."""
    by_speaker: dict[str, list[Path]] = {}
    for sample in {"grid": grid, "java_sed": java_sed}[corpus].list_samples(data / FOLDERS[corpus]):
        by_speaker.setdefault(sample.speaker, []).append(sample.path)
    return by_speaker


def scene(
    rng: np.random.Generator, by_speaker: Mapping[str, Sequence[Path]], corpus: str, who: str, voice: str, other: str
) -> Scene:
    """One stream: sentences of ``who``, heard with that voice; ``other`` lends theirs where it is another's."""
    pictures, sound = _joined(rng, by_speaker[who])
    if voice == "other":
        sound = np.resize(_joined(rng, by_speaker[other])[1], len(sound))
    if voice == "noise":
        sound = QUIET * rng.standard_normal(len(sound)).astype(np.float32)
    return Scene(corpus=corpus, speaker=who, voice=voice, pictures=pictures, sound=sound)


def _joined(rng: np.random.Generator, paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Sentences one after the other; every one begins on a picture."""
    pictures, sounds = [], []
    for place in rng.choice(len(paths), SENTENCES, replace=False):
        reading = read_all(paths[place], SPEC)
        first, last = reading.pictures[0], reading.pictures[-1]
        times = np.array([float(p.ticks * p.packet.time_base) for p in reading.pictures])
        count = int((float(last.ticks * last.packet.time_base) - times[0]) * RATE)
        nearest = np.searchsorted(times, times[0] + (np.arange(count) + 0.5) / RATE) - 1
        pictures.append(np.stack([reading.pictures[i].pixels for i in nearest]))
        start = first.ticks * first.packet.time_base
        sounds.append(reading.samples(start, count * SAMPLE_RATE // RATE, SAMPLE_RATE))
    shape = pictures[0].shape[1:]
    return np.concatenate([p for p in pictures if p.shape[1:] == shape]), np.concatenate(
        [s for s, p in zip(sounds, pictures, strict=True) if p.shape[1:] == shape]
    )


def panned(pictures: np.ndarray) -> np.ndarray:
    """A window of the same size swaying over pictures (N, H, W) that are mirrored at both sides."""
    width, (reach, seconds) = pictures.shape[2], SWAY
    side = int(width * reach)
    wide = np.pad(pictures, ((0, 0), (0, 0), (side, side)), mode="reflect")
    phase = 2 * np.pi * np.arange(len(pictures)) / (RATE * seconds)
    starts = np.round(side * (1 + np.sin(phase))).astype(int)
    return np.stack([p[:, s : s + width] for p, s in zip(wide, starts, strict=True)])


def coded(scene: Scene, camera: str, coding: str, path: Path) -> Path:
    """The scene as a file: H.264 with or without B pictures, Opus or AAC."""
    between, sound = CODINGS[coding]
    pictures = panned(scene.pictures) if camera == "pan" else scene.pictures
    height, width = (n // 2 * 2 for n in pictures.shape[1:])
    options = {"preset": "veryfast", "crf": "23", "threads": "1", "bf": between}
    video = VideoTrack(frames=list(np.ascontiguousarray(pictures[:, :height, :width])), rate=RATE, options=options,
                       gop=GOP)  # fmt: skip
    return write_media(path, [video, AudioTrack(samples=scene.sound, sample_rate=SAMPLE_RATE, codec=sound)])


def received(pipeline: Pipeline, path: Path, loss: str, seed: int, *, forgives: bool) -> Received:
    """What a replay of this file makes clips of; a clip holds whatever is good of it, however little."""
    source = open_source(path, loss=loss or None, seed=seed)
    watched: list[Watched] = []
    decoders: list[Kept] = []

    def parts(modality: str, config: CodecConfig, spec: Any, sequenced: bool) -> tuple[Any, Any]:
        if modality == "audio":
            tracker = ForgivingSound if forgives else AudioDamage
            return tracker(config, sequence_numbers=sequenced), AudioDecoder(config, spec)
        watched.append(Watched(config, sequence_numbers=sequenced, forgives=forgives))
        decoders.append(Kept(config, spec))
        return watched[-1], decoders[-1]

    receiver = Receiver(source.info, pipeline.engine.spec, PresenceRule(video=0.0, audio=0.0),
                        delay=pipeline.config.delay.policy, parts=parts)  # fmt: skip
    clips = [clip for clip in receive(source.packets(), receiver) if clip.version == 0]
    source.close()
    frames = [frame for decoder in decoders for frame in decoder.frames]
    return Received(clips, frames, {seq: facts for w in watched for seq, facts in w.facts.items()})


def encoded(pipeline: Pipeline, clips: Sequence[Clip]) -> list[Encoded]:
    """A whole stream's clips with their features, the face followed from clip to clip."""
    stream = _stream(pipeline, pipeline.engine.initial_face())
    return [pipeline.engine.encode(stream, clip) for clip in clips]


def feature(pipeline: Pipeline, clip: Clip, face: Any) -> Encoded:
    """One clip by itself; its face is looked for where it was in the whole stream (``Encoded.face`` before it)."""
    return pipeline.engine.encode(_stream(pipeline, face), clip)


def _stream(pipeline: Pipeline, face: Any) -> Stream:
    return Stream("severity", Windows(pipeline.config.window), None, face=face)
