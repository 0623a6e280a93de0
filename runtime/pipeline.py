"""The page to read first: from a source of packets to predictions.

    source -> Packet -> Receiver -> Clip -> Engine -> Prediction
              (in       (reorder,   (400 ms (face, encode,
              arrival    decode,     of     fill,
              order)     cut)        both)  classify)

Left of the clip everything belongs to one stream and lives on the capture clock; right of it one engine serves.
A replay runs on the packets' own arrival times: nothing depends on how fast it runs, nor on which thread does what.
"""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.clip import Clip
from runtime.config import RuntimeConfig, resolve
from runtime.errors import SourceError, UsageError
from runtime.packet import Decision, Packet, StreamInfo
from runtime.prediction import Prediction
from runtime.receive import Receiver
from runtime.sources.base import LiveSource
from runtime.stream import Encoded, Stream, Windows

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.live import Tap
    from runtime.sources.base import Source

SPEEDS = ("max", "realtime")


class Pipeline:
    """A bundle ready to run: ``run`` turns a source into predictions.

    One pipeline may run many sources one after the other; each gets a ``Stream`` of its own.
    """

    def __init__(self, bundle: "Bundle", config: RuntimeConfig, *, heads: Sequence[str] = (), fill: str = "") -> None:
        from runtime.engine import Engine, Task
        from runtime.forward import choose_device

        manifest = bundle.manifest
        self.bundle, self.config = bundle, config
        device = choose_device(config.engine.device)
        models = bundle.models(device)
        self.engine = Engine(
            models,
            Task.of(manifest, bundle.hash),
            device=device,
            deterministic=config.engine.deterministic,
            threads=config.engine.threads,
            precision=config.engine.precision,
            heads=heads,
            fill=choose_fill(models, fill) if fill else None,
        )
        self.engine.warm_up()

    @classmethod
    def from_bundle(
        cls,
        name: "str | Path | Bundle" = "talk",
        *,
        device: str = "auto",
        preset: str = "replay",
        lookahead: int | None = None,
        heads: Sequence[str] = (),
        fill: str = "",
        overrides: Iterable[str] = (),
    ) -> "Pipeline":
        """Load a bundle by name or path. ``fill`` replaces its ladder ("lerp", "zero", ...); see runtime.config."""
        from runtime.bundle import Bundle

        bundle = name if isinstance(name, Bundle) else Bundle.load(name)
        overrides = [f"engine.device={device}", *overrides]
        return cls(bundle, resolve(bundle.manifest, preset, overrides, lookahead), heads=heads, fill=fill)

    def open(self, info: StreamInfo) -> Stream:
        """The state of a new stream."""
        config = self.config
        receiver = Receiver(
            info,
            self.engine.spec,
            config.presence.rule,
            delay=config.delay.policy,
            lookahead=config.window.lookahead,
            late_repair=config.delay.late_repair,
        )
        return Stream(info.name, Windows(config.window), receiver, face=self.engine.initial_face())

    def run(
        self,
        source: "Source",
        *,
        speed: str = "max",
        trace: Callable[[Encoded], None] | None = None,
        stream: Stream | None = None,
    ) -> Iterator[Prediction]:
        """Predictions as they fall due, while the source still plays.

        ``trace`` is shown every encoded clip; a ``stream`` from ``open`` shows its ledger and events afterwards.
        Raises SourceError when the source ends and there was nothing to predict from.
        """
        stream = stream or self.open(source.info)
        with closing(self.clips(source, stream, speed)) as clips:
            for clip in clips:
                self.engine.submit(stream, clip)
                yield from self.engine.run(trace)
        self.engine.end(stream)
        yield from self.engine.run(trace)
        if not stream.observed or not stream.windows.predicted:
            raise SourceError(_nothing_to_say(source.info, stream, self.config))

    def features(self, source: "Source", stream: Stream | None = None) -> Iterator[Encoded]:
        """Encoded clips only: what ``run`` would show its ``trace``, without filling or classifying."""
        stream = stream or self.open(source.info)
        with closing(self.clips(source, stream)) as clips:
            for clip in clips:
                yield self.engine.encode(stream, clip)

    def refill(self, name: str, clips: Iterable[Encoded], fill: str) -> list[Prediction]:
        """Predictions over clips that ``run`` traced, filled in another way; nothing is decoded or encoded again."""
        imputer = choose_fill(self.engine.models, fill)
        return self.engine.refilled(imputer).replay(name, clips, self.config.window)

    def clips(
        self,
        source: "Source",
        stream: Stream,
        speed: str = "max",
        *,
        stop: threading.Event | None = None,
        tap: "Tap | None" = None,
    ) -> Generator[Clip]:
        """Closed clips, decoded up to ``engine.decode_ahead`` clips ahead in a thread of their own.

        A live source sets its own pace; ``stop`` ends it, and ``tap`` is shown every item of it (``runtime.live``).
        """
        if speed not in SPEEDS:
            raise UsageError(f"speed {speed!r} is unknown; use {' or '.join(SPEEDS)}")
        if isinstance(source, LiveSource):
            return self._live(source, stream, stop or threading.Event(), tap)
        stop = threading.Event()
        items = paced(source.packets(), sleep=stop.wait) if speed == "realtime" else source.packets()
        return ahead(receive(items, stream.receiver), self.config.engine.decode_ahead, stop)

    def _live(self, source: LiveSource, stream: Stream, stop: threading.Event, tap: "Tap | None") -> Generator[Clip]:
        from runtime.live import clock_of, receive_live

        live = receive_live(source, stream.receiver, clock_of(source), stop, tap)
        clips = ahead(live, self.config.engine.decode_ahead)
        try:
            for clip in clips:  # noqa: UP028 - closing this must first set ``stop``, then close ``clips``
                yield clip
        finally:
            stop.set()  # first, so that the thread that waits for packets ends
            clips.close()


def receive(items: Iterable[Packet | Decision], receiver: Receiver) -> Iterator[Clip]:
    """Feed a receiver in arrival order, on the clock that the arrivals themselves tell."""
    now = float("-inf")
    for item in items:
        now = max(now, arrival(item))
        yield from receiver.push(item, now)
    yield from receiver.finish()


def arrival(item: Packet | Decision) -> float:
    """Seconds on the receiver's clock; a packet without an arrival comes the moment it was sent."""
    return item.decode_seconds if item.arrival is None else item.arrival


def paced(
    items: Iterable[Packet | Decision],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[Packet | Decision]:
    """The same items, none before its arrival time. Pace changes when they come, never what follows from them.

    A ``sleep`` that returns True was woken to stop (``Event.wait``): nothing more comes.
    """
    start: float | None = None
    for item in items:
        due = arrival(item)
        start = clock() - due if start is None else start
        if (wait := start + due - clock()) > 0 and sleep(wait) is True:
            return
        yield item


def ahead(clips: Iterator[Clip], depth: int, stop: threading.Event | None = None) -> Generator[Clip]:
    """The same clips, made up to ``depth`` ahead by a thread (PyAV and torch both let go of the interpreter lock).

    The thread blocks when the queue is full: nothing is dropped. What it raises is raised here. ``stop`` is set when
    nobody reads any more; what the clips wait for should wait on it.
    """
    if depth == 0:
        yield from clips
        return
    ready: queue.SimpleQueue[tuple[Clip | None, BaseException | None]] = queue.SimpleQueue()
    free: queue.SimpleQueue[None] = queue.SimpleQueue()  # one entry for each free place; neither queue polls
    stop = stop or threading.Event()

    def work() -> None:
        try:
            for clip in clips:
                free.get()
                if stop.is_set():
                    return
                ready.put((clip, None))
            ready.put((None, None))
        except BaseException as error:  # handed to the reader, whatever it is
            ready.put((None, error))

    thread = threading.Thread(target=work, name="legato-decode", daemon=True)
    for _ in range(depth):
        free.put(None)
    thread.start()
    try:
        while True:
            clip, error = ready.get()
            if error is not None:
                raise error
            if clip is None:
                return
            free.put(None)
            yield clip
    finally:
        stop.set()
        free.put(None)
        thread.join(timeout=5)


def choose_fill(models: Any, name: str) -> Any:
    """An imputer by name: ``ladder`` (the bundle's), a rung of it, or a rule that needs no training."""
    from imputation.imputer import build

    rungs = {imputer.rung: imputer for imputer in models.ladder.imputers}
    if name == "ladder":
        return models.ladder
    if name in rungs:
        return rungs[name]
    if name in ("zero", "hold", "lerp", "observed_mean"):
        return build(name).eval()
    known = ", ".join(dict.fromkeys(("ladder", *rungs, "zero", "hold", "lerp", "observed_mean")))
    raise UsageError(f"fill {name!r} is unknown to this bundle; use one of {known}")


def _nothing_to_say(info: StreamInfo, stream: Stream, config: RuntimeConfig) -> str:
    """Why a source that could be opened gave no answer."""
    need, clip, made = config.window.min_clips, float(config.clip.seconds), stream.windows.total
    if made and not stream.observed:
        counts = stream.receiver.ledger.as_dict()
        packets = ", ".join(f"{c['received']} of {m}" for m, c in sorted(counts.items())) or "none"
        return (
            f"{info.name}: nothing of its {made} clips could be seen or heard (packets that came: {packets}); "
            "it is damaged, encrypted, or lost too much"
        )
    length = f"{made} clip{'' if made == 1 else 's'}" if made else "less than one clip"
    return (
        f"{info.name} gave {length} of {clip:g} s, and a prediction needs {need} ({need * clip:g} s); "
        "use a longer recording"
    )
