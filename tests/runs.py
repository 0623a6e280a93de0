"""A run made up for tests of reports: three labels, bursty losses, three ways of filling; seeded."""

import numpy as np

from imputation.channel import open_profile
from imputation.masks import network
from runtime.prediction import ClipProvenance, Prediction, Timings
from runtime.receive import Event
from runtime.run_log import LoggedClip, Run, Span

LABELS = ("nobody", "on screen", "off screen")
T, WINDOW = 0.4, 8


def a_run(clips: int = 150, *, seed: int = 3, loss: str = "wifi-poor", truth: bool = True, epochs: int = 1) -> Run:
    """A finished run of ``clips`` clips with all that a report can show."""
    rng = np.random.default_rng(seed)
    absent = network(open_profile(loss), seed, batch=1, length=clips)[0]
    absent[40:51] = True  # one outage longer than a window
    logged = [_clip(i, absent[i], rng, epochs, clips) for i in range(clips)]
    spans = _spans(clips * T, rng)
    run = Run(
        stream="team-meeting.legato",
        bundle="talk",
        bundle_hash="9f2c4be1" * 8,
        labels=LABELS,
        modalities=("video", "audio"),
        clip_seconds=T,
        settings={"window": {"clips": WINDOW, "lookahead": 1}, "delay": {"floor": 0.04, "cap": 0.4}},
        loss=loss,
        seed=seed,
        truth=spans if truth else (),
        clips=logged,
        ledger={
            "video": _counts(clips * 10, int(absent[:, 0].sum()) * 4, damaged=212, late=17),
            "audio": _counts(clips * 20, int(absent[:, 1].sum()) * 12, late=9, duplicate=3),
        },
        events=[
            Event(kind="started", modality="audio", arrival=0.1, clip=0),
            Event(kind="remap", modality="audio", arrival=31.0, clip=77, detail="drift 140 ppm"),
        ],
        wall_seconds=clips * T / 63,
        attribution="Made of sentences of the GRID corpus (CC BY 4.0).",
        card={
            "description": "Who speaks: nobody, the person on screen, or someone off screen.",
            "licence": "CC-BY-4.0",
            "training": {"data": "grid", "command": "legato train head --preset talk", "seed": 0},
        },
    )
    for arm, worth in (("bundle", 0.9), ("lerp", 0.45), ("zero", 0.1)):
        run.arms[arm] = [_prediction(run, i, worth, spans, np.random.default_rng((seed, i))) for i in range(2, clips)]
    return run


def _clip(i: int, absent: np.ndarray, rng: np.random.Generator, epochs: int, clips: int) -> LoggedClip:
    causes = rng.choice(["lost", "damaged", "late"], p=[0.55, 0.35, 0.1], size=2)
    state = {m: str(causes[j]) if absent[j] else "observed" for j, m in enumerate(("video", "audio"))}
    filler = "curri_mae" if not absent.all() or i % 2 else "hold"
    epoch = i * epochs // clips
    first = -(-epoch * clips // epochs)
    return LoggedClip(
        clip=i,
        epoch=epoch,
        start_seconds=1000.0 * epoch + (i - first) * T,
        provenance=ClipProvenance(
            clip=i,
            state=state,
            flags={"video": ("no_face",) if 60 <= i < 70 else (), "audio": ("silent",) if 100 <= i < 112 else ()},
            rung={m: "observed" if s == "observed" else filler for m, s in state.items()},
            coverage={m: 1.0 if s == "observed" else 0.2 for m, s in state.items()},
        ),
    )


def _spans(seconds: float, rng: np.random.Generator) -> tuple[Span, ...]:
    spans, start, label = [], 0.0, 1
    while start < seconds:
        end = min(seconds, start + float(rng.uniform(3, 9)))
        spans.append(Span(start, end, LABELS[label]))
        start, label = end, int((label + rng.integers(1, 3)) % 3)
    return tuple(spans)


def _prediction(run: Run, i: int, worth: float, spans: tuple[Span, ...], rng: np.random.Generator) -> Prediction:
    window = run.clips[max(0, i - WINDOW + 1) : i + 1]
    seen = {m: float(np.mean([c.provenance.state[m] == "observed" for c in window])) for m in run.modalities}
    share, end = float(np.mean(list(seen.values()))), run.clips[i].start_seconds + T
    true = next((n for n, s in enumerate(spans) if s.start <= max(0.0, end - 1.6) < s.end), 0)
    scores = rng.normal(0, 0.6 + 2.6 * (1 - share) * (1 - worth), 3)
    scores[LABELS.index(spans[true].label)] += 0.3 + 2.4 * (share + (1 - share) * worth)
    chances = np.exp(scores) / np.exp(scores).sum()
    abstained = share == 0
    ms = np.abs(rng.normal((41, 3.1, 6.4, 1.9), (20, 1, 2, 0.6)))
    return Prediction(
        stream=run.stream, epoch=run.clips[i].epoch, clip=i, start_seconds=window[0].start_seconds, end_seconds=end,
        head="gru", label=None if abstained else LABELS[int(chances.argmax())],
        probabilities=dict(zip(LABELS, chances.tolist(), strict=True)), confidence=float(chances.max()),
        status="final", revision=0, abstained=abstained, observed_share=seen,
        clips=tuple(c.provenance for c in window), bundle=run.bundle_hash,
        timings=Timings(wait_ms=ms[0], decode_ms=ms[1], encode_ms=ms[2], fill_ms=ms[3], total_ms=ms.sum()),
    )  # fmt: skip


def _counts(received: int, lost: int, **fates: int) -> dict[str, int]:
    counts = {"expected": received + lost, "received": received, "lost": lost, "unused": lost // 3, **fates}
    counts["used"] = received - counts["unused"] - sum(fates.values())
    return counts
