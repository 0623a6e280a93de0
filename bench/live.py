"""Devices without hardware, in real time: ``python -m bench.live`` (about two minutes; needs pulseaudio).

A microphone that is a pipe into a sound server of our own, and a camera over HTTP, both play a flash with a beep once a
second (tests/devices.py). One run of ``--seconds`` through ``legato live``'s own parts tells how far sound and picture
lie apart on the capture clock once one calibration (the median of the first ten flashes) is taken off, whether they
drift, how soon the first answer comes, and whether every packet and clip is accounted for; its recording is replayed.
Then each source is killed and restarted ``--restarts`` times under a second run.
"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bench.record import write_results
from runtime.live import LiveRun, Recorder
from runtime.live_view import only_our_own_words
from runtime.packet import Decision, Packet
from runtime.pipeline import Pipeline
from runtime.recording import RecordingReader
from runtime.sources import open_devices, open_source
from runtime.sources.device import DeviceSource
from tests.devices import FLASH, FPS, PERIOD, MjpegCamera, VirtualMicrophone, environment, missing_for_sound

RESULTS = Path(__file__).parent / "results"
CALIBRATION = 10  # flashes
BRIGHT, LOUD = 128, 0.1  # of 255, of full scale
BACK_SECONDS = 40.0  # the longest wait between two tries is 30 s


@contextlib.contextmanager
def desk(folder: Path) -> Iterator[tuple[MjpegCamera, VirtualMicrophone]]:
    """Both stand-ins, playing."""
    start = time.monotonic()
    with VirtualMicrophone(folder, start) as mic, MjpegCamera(start) as camera, environment(mic.environment):
        yield camera, mic


def flashes(packets: Sequence[Packet]) -> list[float]:
    """Capture times at which the picture turned bright, seconds; half a frame before, where it did on average."""
    times, before = [], True
    for packet in packets:
        picture = cv2.imdecode(np.frombuffer(packet.payload, np.uint8), cv2.IMREAD_GRAYSCALE)
        bright = picture is not None and float(picture.mean()) > BRIGHT
        if bright and not before:
            times.append(packet.seconds)
        before = bright
    return times


def beeps(packets: Sequence[Packet], rate: int) -> list[float]:
    """Capture times at which sound grew loud after a silence, seconds, to the millisecond."""
    times: list[float] = []
    for packet in packets:
        samples = np.frombuffer(packet.payload, "<i2").astype(np.float32) / 32768
        (loud,) = np.nonzero(np.abs(samples) > LOUD)
        for sample in loud[:1]:
            at = packet.seconds + float(sample) / rate
            if not times or at - times[-1] > PERIOD / 2:
                times.append(at)
            elif at - times[-1] > 2 * FLASH:
                times[-1] = at
    return times


def offsets(video: Sequence[float], audio: Sequence[float]) -> list[tuple[float, float]]:
    """(when, by how much sound lies after the picture) in seconds, for each flash with a beep near it."""
    pairs = []
    for flash in video:
        nearest = min(audio, key=lambda beep: abs(beep - flash), default=None)
        if nearest is not None and abs(nearest - flash) < PERIOD / 2:
            pairs.append((flash, nearest - flash))
    return pairs


def sync(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """A/V offset before and after one calibration, and drift over the run; milliseconds."""
    values = np.array([offset for _, offset in pairs]) * 1e3
    when = np.array([at for at, _ in pairs])
    calibration = float(np.median(values[:CALIBRATION]))
    rest = values[CALIBRATION:] - calibration if len(values) > CALIBRATION else values - calibration
    slope = float(np.polyfit(when, values, 1)[0])
    return {
        "flashes": len(pairs),
        "calibration_ms": round(calibration, 1),
        "offset_median_ms": round(float(np.median(np.abs(rest))), 1),
        "offset_most_ms": round(float(np.abs(rest).max()), 1),
        "drift_ms_per_minute": round(slope * 60, 1),
    }


def first_answer(run: LiveRun) -> dict[str, float]:
    """Seconds from the end of the window's first ``min_clips`` clips to the first prediction, and later latencies."""
    return {"answers": run.tally.windows, **{f"latency_{k}": v for k, v in run.tally.latency.as_dict().items()}}


def real_time(bundle: str, seconds: float) -> dict[str, Any]:
    """One run of both stand-ins, and the replay of its recording."""
    pipeline = Pipeline.from_bundle(bundle, preset="interactive")
    with tempfile.TemporaryDirectory() as name, desk(Path(name)) as (camera, _):
        source = open_devices(camera.address, "default", seed=0)
        kept = Path(name) / "desk.legato"
        recorder = Recorder(kept, source.info)
        with source, contextlib.closing(recorder), LiveRun(pipeline, source, tap=recorder) as run:
            said, first = _play(run, seconds)
        replayed = list(pipeline.run(open_source(kept)))
        items = list(RecordingReader(kept).packets())
        rate = source.info.codecs["audio"].sample_rate
    packets = [i for i in items if isinstance(i, Packet)]
    run.stream.receiver.ledger.check()
    clips = run.tally
    pairs = offsets(
        flashes([p for p in packets if p.modality == "video"]),
        beeps([p for p in packets if p.modality == "audio"], rate),
    )
    return {
        "seconds": seconds,
        "sync": sync(pairs),
        "first_answer_ms": round(first, 1),
        **first_answer(run),
        "packets": {m: dict(c) for m, c in run.counts().items()},
        "clips": {"closed": clips.closed, **{f"{m} {state}": n for (m, state), n in sorted(clips.clips.items())}},
        "every_clip_accounted_for": all(
            sum(n for (m, _), n in clips.clips.items() if m == modality) == clips.closed
            for modality in source.info.codecs
        ),
        "receiver": {"av_offset_ms": run.stream.receiver.av_offset_ms, "drift_ppm": run.stream.receiver.drift_ppm},
        "dropped": dict(source.dropped),
        "replay_says_the_same": _agree(said, replayed),
    }


def _play(run: LiveRun, seconds: float) -> tuple[list[Any], float]:
    """Predictions, and how long after its window's end the first of them came, milliseconds."""
    said, until, first = [], run.clock.now() + seconds, 0.0
    while not run.over:
        prediction = run.read(0.05)
        if prediction is not None:
            first = first or (run.clock.now() - prediction.end_seconds) * 1e3
            said.append(prediction)
        if run.clock.now() >= until:
            run.stop()
    return said, first


def _agree(said: Sequence[Any], replayed: Sequence[Any]) -> bool:
    """States, rungs, revisions and abstentions exactly; probabilities to 1e-4."""
    if len(said) != len(replayed):
        return False
    for a, b in zip(said, replayed, strict=True):
        plain = [replace(p, stream="", timings=b.timings, probabilities={}, confidence=0.0, label=None) for p in (a, b)]
        close = max((abs(a.probabilities[k] - b.probabilities[k]) for k in a.probabilities), default=0.0) <= 1e-4
        if plain[0] != plain[1] or not close:
            return False
    return True


def restarts(count: int) -> dict[str, Any]:
    """Kill and restart each source, one after the other; how often it came back and how long that took."""
    out: dict[str, Any] = {"times": count, "back": 0, "seconds": []}
    errors = io.StringIO()
    with tempfile.TemporaryDirectory() as name, desk(Path(name)) as (camera, mic), contextlib.redirect_stderr(errors):
        with open_devices(camera.address, "default", seed=0) as source:
            for _ in range(count):
                for device, modality in ((camera, "video"), (mic, "audio")):
                    device.kill()
                    lost = _wait_for(source, "device_lost", modality)
                    device.start()
                    took = _wait_for(source, "device_back", modality)
                    out["back"] += lost is not None and took is not None
                    out["seconds"].append(None if took is None else round(took, 2))
            began = time.monotonic()
        out["closing_seconds"] = round(time.monotonic() - began, 2)
    out["of"] = 2 * count
    out["traceback"] = "Traceback" in errors.getvalue()
    return out


def _wait_for(source: DeviceSource, kind: str, modality: str) -> float | None:
    began = time.monotonic()
    while time.monotonic() - began < BACK_SECONDS:
        item = source.read(0.05)
        if isinstance(item, Decision) and (item.kind, item.modality) == (kind, modality):
            return time.monotonic() - began
    return None


def lines(run: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """Markdown."""
    sync_, frame = run["sync"], float(Fraction(1, FPS)) * 1e3
    back = [s for s in again["seconds"] if s is not None]
    return [
        "# Live devices: a virtual microphone and a camera over HTTP, in real time",
        "",
        f"{run['seconds']:g} s; a flash and a beep every {PERIOD:g} s; {FPS} pictures a second ({frame:g} ms each).",
        "",
        "| | measured | asked for |",
        "|---|---|---|",
        f"| A/V offset after one calibration, median | {sync_['offset_median_ms']} ms | 40 ms |",
        f"| the largest of {sync_['flashes']} | {sync_['offset_most_ms']} ms | |",
        f"| drift in 60 s | {abs(sync_['drift_ms_per_minute'])} ms | 20 ms |",
        f"| first answer after its window's end | {run['first_answer_ms']} ms | 1000 ms |",
        f"| every clip accounted for | {'yes' if run['every_clip_accounted_for'] else '**no**'} | yes |",
        f"| the recording's replay says the same | {'yes' if run['replay_says_the_same'] else '**no**'} | yes |",
        f"| killed and restarted, came back | {again['back']} of {again['of']} | all |",
        f"| the slowest to come back | {max(back, default=float('nan'))} s | |",
        f"| a traceback | {'**yes**' if again['traceback'] else 'never'} | never |",
        "",
        f"Clips: {run['clips']}. Answers {run['latency_p50_ms']:g} ms after their clip "
        f"(99 %: {run['latency_p99_ms']:g} ms). Calibration: {sync_['calibration_ms']} ms.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--bundle", default="talk")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for live.json and live.md")
    options = parser.parse_args()
    if reason := missing_for_sound():
        parser.error(f"there is no virtual microphone here: {reason}")
    with only_our_own_words():
        run, again = real_time(options.bundle, options.seconds), restarts(options.restarts)
    write_results(options.out, "live", {"seed": 0, "run": run, "restarts": again}, lines(run, again))


if __name__ == "__main__":
    main()
