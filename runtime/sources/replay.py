"""Replay: media files and packet recordings as if they came over a network, with injected loss where asked."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.closing import Closing
from runtime.errors import SourceError
from runtime.packet import CodecConfig, Decision, Packet, StreamInfo
from runtime.sources.base import Source

if TYPE_CHECKING:
    from imputation.profiles import Profile

RECORDING_SUFFIX = ".legato"
CAPTURE_SUFFIXES = (".pcap", ".pcapng", ".cap")
# What a folder's files must end with to be taken for media; anything else in it is passed over in silence.
MEDIA_SUFFIXES = frozenset(
    f".{suffix}"
    for line in (
        "3g2 3gp aac ac3 aif aiff amr asf au avi caf dv flac flv h264 hevc ivf m2ts m2v m4a m4v mjpeg mka mkv mov",
        "mp2 mp3 mp4 mpeg mpg mts mxf nut obu oga ogg ogv opus rm ts vob w64 wav webm wma wmv y4m",
    )
    for suffix in line.split()
)
_AHEAD = 3.0  # seconds by which one modality is read ahead while the other shows nothing
_AHEAD_PACKETS = 4000

Tracks = Mapping[str, int | None]


class FileSource(Closing):
    """A media file. Its packets come in order of time, whatever the order in the file; none has an ``arrival``."""

    def __init__(self, path: Path, *, tracks: Tracks | None = None, name: str | None = None) -> None:
        from encoders.media import MediaFile  # late: PyAV

        self._file = MediaFile(path, tracks=tracks)
        self.info = StreamInfo(
            name=name or path.stem,
            codecs={modality: _config(track) for modality, track in self._file.tracks.items()},
            origin=self._file.origin,
            duration=self._file.duration,
            labels={"note": "; ".join(self._file.notes)} if self._file.notes else {},
            sequence_numbers=False,
        )

    def packets(self) -> Iterator[Packet]:
        """Every packet of the chosen tracks."""
        return in_order_of_time(self._file.demux(Packet), self.info.codecs)

    def close(self) -> None:
        self._file.close()


class RecordingSource(Closing):
    """A packet recording: packets and decisions as they once arrived, with their ``arrival``."""

    def __init__(self, path: Path) -> None:
        from runtime.recording import RecordingReader

        self._reader = RecordingReader(path)
        self.info: StreamInfo = self._reader.info

    def packets(self) -> Iterator[Packet | Decision]:
        """Everything up to the last whole record.

        What a live run chose not to encode comes first: it decided so when the clip had closed, and a replay must know
        by then.
        """
        shed = self._reader.decisions("shed")
        for item in self._reader.packets():
            if shed:
                untimed = isinstance(item, Packet) and item.arrival is None
                first = item.decode_seconds if untimed else item.arrival or 0.0  # type: ignore[union-attr]
                yield from (replace(decision, arrival=first) for decision in shed)
                shed = []
            if not (isinstance(item, Decision) and item.kind == "shed"):
                yield item


class ImpairedSource(Closing):
    """Another source seen through a lossy channel. A lost packet leaves a hole in the sequence numbers."""

    def __init__(self, source: Source, profile: "Profile", seed: int) -> None:
        self._source, self._profile, self._seed = source, profile, seed
        self.info = replace(source.info, sequence_numbers=True)

    def packets(self) -> Iterator[Packet | Decision]:
        """What comes through, in order of arrival."""
        from runtime.impair import impair

        packets: Iterator[Any] = self._source.packets()  # decisions keep their place
        return impair(packets, self._profile, self._seed, codecs=self.info.codecs)

    def close(self) -> None:
        self._source.close()


def open_source(
    target: str | os.PathLike[str],
    loss: str | None = None,
    seed: int = 0,
    *,
    tracks: Tracks | None = None,
    name: str | None = None,
    clip_seconds: float = 0.4,
) -> Source:
    """Open a local media file, packet recording (``*.legato``) or capture of RTP (``*.pcap``, ``*.pcapng``).

    Args:
        loss: a profile or trace (``imputation.profiles.open_profile``) to lose packets by; ``seed`` repeats it exactly.
        tracks: which track of "video" and "audio" to take, counted from 0; None leaves it out.
        name: of the stream; the file's name without suffix where None.
        clip_seconds: the bundle's clip length, for profiles that lose whole clips.

    Raises SourceError in one sentence for what cannot be read, UsageError for an unknown profile or track.
    """
    profile = _profile(loss, clip_seconds, Fraction(0))  # a wrong name is found before a file is opened
    source = _open(_local(target), tracks, name)
    if profile is None:
        return source
    try:
        profile = _profile(loss, clip_seconds, source.info.origin or Fraction(0))
        assert profile is not None
        return ImpairedSource(source, profile, seed)
    except BaseException:
        source.close()
        raise


def open_sources(
    target: str | os.PathLike[str],
    loss: str | None = None,
    seed: int = 0,
    *,
    tracks: Tracks | None = None,
    clip_seconds: float = 0.4,
    report: Callable[[SourceError], None] | None = None,
) -> Sequence[Source]:
    """Open a file, or every media file and recording of a folder (not of folders in it), sorted by name.

    Unreadable files of a folder are handed to ``report`` (None: passed over) and left out; a folder in which nothing
    can be read is a SourceError. Each file's losses are drawn with ``seed`` plus its place in the folder.
    """
    path = _local(target)
    if not path.is_dir():
        return [open_source(path, loss, seed, tracks=tracks, clip_seconds=clip_seconds)]
    names = _media_in(path)
    opened: list[Source] = []
    failures: list[SourceError] = []
    for place, file in enumerate(names):
        try:
            source = LazySource(file, loss, seed + place, tracks=tracks, clip_seconds=clip_seconds)
            source.info = replace(source.info, name=_new_name(source.info.name, file, opened))
            opened.append(source)
        except SourceError as error:
            failures.append(error)
            if report is not None:
                report(error)
    if not opened:
        raise _nothing(path, failures)
    return opened


class LazySource(Closing):
    """A source of a folder: looked into once when the folder is opened, and held open only while it is played."""

    def __init__(self, path: Path, loss: str | None, seed: int, **options: object) -> None:
        self._again = lambda: open_source(path, loss, seed, **options)  # type: ignore[arg-type]
        with self._again() as source:
            self.info: StreamInfo = source.info
        self._source: Source | None = None

    def packets(self) -> Iterator[Packet | Decision]:
        """As the source itself."""
        self._source = self._again()
        return self._source.packets()

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None


def in_order_of_time(packets: Iterable[Packet], modalities: Iterable[str]) -> Iterator[Packet]:
    """Merge the modalities of a container by decode time; each keeps its own order.

    Containers interleave loosely (MPEG program streams by half a second). A modality that shows nothing while
    another runs 3 s ahead is not waited for.
    """
    waiting: dict[str, deque[tuple[float, Packet]]] = {m: deque() for m in modalities}
    queues = list(waiting.values())
    newest = float("-inf")
    for packet in packets:
        sent = packet.decode_seconds
        waiting[packet.modality].append((sent, packet))
        if sent > newest:
            newest = sent
        while _ready(queues, newest):
            yield _earliest(queues)
    while any(queues):
        yield _earliest(queues)


def _ready(queues: list[deque[tuple[float, Packet]]], newest: float) -> bool:
    """Whether nothing earlier than the earliest waiting packet is to be expected."""
    for queue in queues:
        if not queue:
            break
    else:
        return True
    return any(q and (newest - q[0][0] > _AHEAD or len(q) > _AHEAD_PACKETS) for q in queues)


def _earliest(queues: list[deque[tuple[float, Packet]]]) -> Packet:
    """Of the packets in front, the one sent first; of two sent together that of the first modality."""
    best = None
    for queue in queues:
        if queue and (best is None or queue[0][0] < best[0][0]):
            best = queue
    assert best is not None
    return best.popleft()[1]


def _open(path: Path, tracks: Tracks | None, name: str | None) -> Source:
    if path.is_dir():
        raise SourceError(f"{path} is a folder; open_sources takes folders, open_source takes one file of it")
    if path.suffix.lower() == RECORDING_SUFFIX:
        return RecordingSource(path)
    if path.suffix.lower() in CAPTURE_SUFFIXES:
        from runtime.sources.pcap import CaptureSource  # late: dpkt

        return CaptureSource(path, name=name)
    return FileSource(path, tracks=tracks, name=name)


def _local(target: str | os.PathLike[str]) -> Path:
    """A path of this machine; addresses of any kind are refused, so that no file name reaches the network."""
    text = os.fspath(target)
    if text.lower().startswith("rtp:") or text.lower().endswith(".sdp"):
        raise SourceError(f"{text} is a live stream, not a recording; use legato live --camera {text}")
    if "://" in text and not Path(text).exists():
        raise SourceError(f"{text} is an address, not a local path; download the file first")
    if not text or "\0" in text:
        raise SourceError(f"source {text!r} is not a path; give a media file, a folder or a *.legato recording")
    return Path(text)


def _profile(loss: str | None, clip_seconds: float, origin: Fraction) -> "Profile | None":
    if loss is None or loss == "":
        return None
    from imputation.profiles import open_profile  # late: numpy

    return open_profile(loss, clip_seconds=clip_seconds, origin=float(origin))


def _config(track: object) -> CodecConfig:
    return CodecConfig(**{f.name: getattr(track, f.name) for f in fields(CodecConfig)})


def _media_in(folder: Path) -> list[Path]:
    suffixes = MEDIA_SUFFIXES | {RECORDING_SUFFIX, *CAPTURE_SUFFIXES}
    try:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
    except OSError as error:
        raise SourceError(f"folder {folder} cannot be read ({error.strerror})") from None


def _new_name(name: str, file: Path, others: Sequence[Source]) -> str:
    """A name that no other source of the folder has: results are kept by it."""
    taken = {other.info.name for other in others}
    choices = (name, file.name, *(f"{name} {number}" for number in range(2, len(taken) + 3)))
    return next(choice for choice in choices if choice not in taken)


def _nothing(folder: Path, failures: Sequence[SourceError]) -> SourceError:
    if not failures:
        return SourceError(
            f"folder {folder} holds no media file and no *{RECORDING_SUFFIX} recording; name another, or a file"
        )
    return SourceError(f"none of the {len(failures)} media files in {folder} can be read; the first: {failures[0]}")
