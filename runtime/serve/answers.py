"""Answers of a server as messages of ``legato.v1`` and back: predictions, clip reports, totals, bundles.

Field by field the same as the dataclasses, without loss (tests/test_answers.py). A protobuf map has no order, so what
is read from the wire is put in order again: modalities as everywhere, labels as the bundle has them.

A newer server may say what this client has no word for: an unknown clip state reads as ``lost`` (it was not observed),
an unknown status as ``provisional`` (it may change). What is missing or makes no sense is a ValueError.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

from imputation.presence import STATES
from protos import stream_pb2 as pb
from runtime.metrics import Counts
from runtime.packet import MODALITIES
from runtime.prediction import ClipProvenance, Prediction, Timings
from runtime.serve.convert import build, finite, fraction, rational, text
from runtime.stream import FINAL, PROVISIONAL

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.clip import Clip

T = TypeVar("T")

_STATE_TO_WIRE = {state: pb.ClipState.Value(f"CLIP_STATE_{state.upper()}") for state in STATES}
_STATE_FROM_WIRE = {number: state for state, number in _STATE_TO_WIRE.items()}
_STATUS_TO_WIRE = {PROVISIONAL: pb.PREDICTION_STATUS_PROVISIONAL, FINAL: pb.PREDICTION_STATUS_FINAL}
_TIMES = tuple(f.name for f in fields(Timings))
_COUNTS = tuple(f.name for f in fields(Counts))

PredictionKey = tuple[str, int, int, str, int]  # stream, epoch, clip, head, revision


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityReport:
    """What came of one modality of a clip."""

    state: str  # observed, damaged, late, lost, shed
    coverage: float  # 0 to 1
    flags: tuple[str, ...] = ()
    severity: float = 0.0  # 0 to 1, how visible or audible the damage is thought to be


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipReport:
    """What came of one clip, whether or not a prediction follows."""

    epoch: int
    clip: int
    start_seconds: float  # capture time
    end_seconds: float
    version: int = 0  # +1 for each repair by late packets
    modalities: dict[str, ModalityReport] = field(default_factory=dict)

    @classmethod
    def of(cls, clip: "Clip") -> "ClipReport":
        """The report of a closed clip."""
        return cls(
            epoch=clip.epoch,
            clip=clip.index,
            start_seconds=float(clip.start),
            end_seconds=float(clip.start + clip.seconds),
            version=clip.version,
            modalities={
                m: ModalityReport(
                    state=state,
                    coverage=clip.coverage.get(m, 0.0),
                    flags=tuple(clip.flags.get(m, ())),
                    severity=clip.severity.get(m, 0.0),
                )
                for m, state in clip.state.items()
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStats:
    """Totals since a stream's start; dictionaries are by modality."""

    packets: dict[str, Counts] = field(default_factory=dict)
    av_offset_ms: float = 0.0  # audio behind video
    drift_ppm: float = 0.0  # audio's clock against video's
    jitter_ms: dict[str, float] = field(default_factory=dict)  # RFC 3550 interarrival jitter
    playout_delay_ms: dict[str, float] = field(default_factory=dict)
    clips_shed: int = 0
    predictions_final: int = 0
    responses_dropped: int = 0  # never sent, since the client did not read: provisional ones, reports


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBundle:
    """What a client learns of the bundle that serves it."""

    name: str
    description: str = ""
    hash: str = ""
    heads: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name -> labels, the default head first
    clip_seconds: Fraction = Fraction(2, 5)
    window: int = 1  # clips
    lookahead: int = 0  # clips, the most that the imputer knows
    min_clips: int = 1
    thresholds: dict[str, float] = field(default_factory=dict)  # by modality of the bundle
    ladder: tuple[str, ...] = ()
    licence: str = ""
    attribution: str = ""

    @classmethod
    def of(cls, bundle: "Bundle") -> "ServedBundle":
        """What a server tells of a bundle."""
        manifest = bundle.manifest
        return cls(
            name=manifest.name,
            description=manifest.description,
            hash=bundle.hash,
            heads={head: manifest.labels for head in manifest.heads},
            clip_seconds=Fraction(manifest.clip_seconds),
            window=manifest.window,
            lookahead=manifest.lookahead,
            min_clips=manifest.min_clips,
            thresholds={m: manifest.thresholds[m] for m in MODALITIES if m in manifest.encoders},
            ladder=tuple(rung.rung for rung in manifest.ladder),
            licence=manifest.licence,
            attribution=manifest.attribution,
        )


# -- predictions ----------------------------------------------------------------------------------------------------


def prediction_key(prediction: Prediction) -> PredictionKey:
    """What names a prediction: two with the same key are the same."""
    return prediction.stream, prediction.epoch, prediction.clip, prediction.head, prediction.revision


def key_to_wire(key: PredictionKey) -> pb.PredictionId:
    """A key as a message."""
    stream, epoch, clip, head, revision = key
    what = f"prediction of clip {clip}"
    return build(pb.PredictionId, what, stream=text(stream), epoch=epoch, clip=clip, head=text(head), revision=revision)


def key_from_wire(wire: pb.PredictionId) -> PredictionKey:
    """A message as a key."""
    return wire.stream, wire.epoch, wire.clip, wire.head, wire.revision


def prediction_to_wire(prediction: Prediction) -> pb.Prediction:
    """A prediction as a message. Raises OutputError where a value does not fit its field."""
    what = f"prediction of clip {prediction.clip}"
    return build(
        pb.Prediction,
        what,
        stream=text(prediction.stream),
        epoch=prediction.epoch,
        clip=prediction.clip,
        start_seconds=prediction.start_seconds,
        end_seconds=prediction.end_seconds,
        head=text(prediction.head),
        label=None if prediction.label is None else text(prediction.label),
        probabilities=prediction.probabilities,
        confidence=prediction.confidence,
        status=_STATUS_TO_WIRE[prediction.status],
        revision=prediction.revision,
        abstained=prediction.abstained,
        observed_share=prediction.observed_share,
        clips=[_provenance_to_wire(clip) for clip in prediction.clips],
        longest_gap_ms=prediction.longest_gap_ms,
        bundle=prediction.bundle,
        timings=pb.Timings(**{name: getattr(prediction.timings, name) for name in _TIMES}),
    )


def prediction_from_wire(wire: pb.Prediction, labels: Sequence[str] = ()) -> Prediction:
    """A message as a prediction; probabilities come in the order of ``labels`` where given.

    Raises:
        ValueError: a number is not finite, or the status or a clip's state is missing.
    """
    return Prediction(
        stream=wire.stream,
        epoch=wire.epoch,
        clip=wire.clip,
        start_seconds=finite(wire.start_seconds),
        end_seconds=finite(wire.end_seconds),
        head=wire.head,
        label=wire.label if wire.HasField("label") else None,
        probabilities=_numbers(wire.probabilities, labels),
        confidence=finite(wire.confidence),
        status=FINAL if _given(wire.status, "status") == pb.PREDICTION_STATUS_FINAL else PROVISIONAL,
        revision=wire.revision,
        abstained=wire.abstained,
        observed_share=_numbers(wire.observed_share),
        clips=tuple(_provenance_from_wire(clip) for clip in wire.clips),
        longest_gap_ms=finite(wire.longest_gap_ms),
        bundle=wire.bundle,
        timings=Timings(**{name: finite(getattr(wire.timings, name)) for name in _TIMES}),
    )


def _provenance_to_wire(clip: ClipProvenance) -> pb.ClipProvenance:
    return build(
        pb.ClipProvenance,
        f"clip {clip.clip}",
        clip=clip.clip,
        state={m: _STATE_TO_WIRE[state] for m, state in clip.state.items()},
        flags={m: pb.Flags(flags=flags) for m, flags in clip.flags.items()},
        rung=clip.rung,
        coverage=clip.coverage,
    )


def _provenance_from_wire(wire: pb.ClipProvenance) -> ClipProvenance:
    return ClipProvenance(
        clip=wire.clip,
        state={m: _state(number) for m, number in _ordered(wire.state)},
        flags={m: tuple(flags.flags) for m, flags in _ordered(wire.flags)},
        rung=dict(_ordered(wire.rung)),
        coverage=_numbers(wire.coverage),
    )


# -- clip reports and totals ----------------------------------------------------------------------------------------


def clip_report_to_wire(report: ClipReport) -> pb.ClipReport:
    """A clip report as a message. Raises OutputError where a value does not fit its field."""
    return build(
        pb.ClipReport,
        f"report of clip {report.clip}",
        epoch=report.epoch,
        clip=report.clip,
        start_seconds=report.start_seconds,
        end_seconds=report.end_seconds,
        version=report.version,
        modalities={
            name: pb.ModalityReport(
                state=_STATE_TO_WIRE[m.state], coverage=m.coverage, flags=m.flags, severity=m.severity
            )
            for name, m in report.modalities.items()
        },
    )


def clip_report_from_wire(wire: pb.ClipReport) -> ClipReport:
    """A message as a clip report. Raises ValueError where a number is not finite or a state is missing."""
    return ClipReport(
        epoch=wire.epoch,
        clip=wire.clip,
        start_seconds=finite(wire.start_seconds),
        end_seconds=finite(wire.end_seconds),
        version=wire.version,
        modalities={
            name: ModalityReport(
                state=_state(m.state), coverage=finite(m.coverage), flags=tuple(m.flags), severity=finite(m.severity)
            )
            for name, m in _ordered(wire.modalities)
        },
    )


def stats_to_wire(stats: StreamStats) -> pb.StreamStats:
    """Totals as a message. Raises OutputError where a value does not fit its field."""
    return build(
        pb.StreamStats,
        "totals",
        packets={m: pb.PacketCounts(**{n: getattr(c, n) for n in _COUNTS}) for m, c in stats.packets.items()},
        av_offset_ms=stats.av_offset_ms,
        drift_ppm=stats.drift_ppm,
        jitter_ms=stats.jitter_ms,
        playout_delay_ms=stats.playout_delay_ms,
        clips_shed=stats.clips_shed,
        predictions_final=stats.predictions_final,
        responses_dropped=stats.responses_dropped,
    )


def stats_from_wire(wire: pb.StreamStats) -> StreamStats:
    """A message as totals. Raises ValueError where a number is not finite."""
    return StreamStats(
        packets={m: Counts(**{n: getattr(counts, n) for n in _COUNTS}) for m, counts in _ordered(wire.packets)},
        av_offset_ms=finite(wire.av_offset_ms),
        drift_ppm=finite(wire.drift_ppm),
        jitter_ms=_numbers(wire.jitter_ms),
        playout_delay_ms=_numbers(wire.playout_delay_ms),
        clips_shed=wire.clips_shed,
        predictions_final=wire.predictions_final,
        responses_dropped=wire.responses_dropped,
    )


# -- bundles --------------------------------------------------------------------------------------------------------


def bundle_to_wire(bundle: "Bundle | ServedBundle") -> pb.BundleDescription:
    """What there is to know of a bundle, as a message."""
    served = bundle if isinstance(bundle, ServedBundle) else ServedBundle.of(bundle)
    return build(
        pb.BundleDescription,
        f"bundle {served.name}",
        name=served.name,
        description=text(served.description),
        hash=served.hash,
        heads=[pb.HeadDescription(name=text(name), labels=labels) for name, labels in served.heads.items()],
        clip_seconds=rational(served.clip_seconds),
        window=served.window,
        lookahead=served.lookahead,
        min_clips=served.min_clips,
        thresholds=served.thresholds,
        ladder=served.ladder,
        licence=text(served.licence),
        attribution=text(served.attribution),
    )


def bundle_from_wire(wire: pb.BundleDescription) -> ServedBundle:
    """A message as a bundle's description. Raises ValueError where a number makes no sense."""
    return ServedBundle(
        name=wire.name,
        description=wire.description,
        hash=wire.hash,
        heads={head.name: tuple(head.labels) for head in wire.heads},
        clip_seconds=fraction(wire.clip_seconds),
        window=wire.window,
        lookahead=wire.lookahead,
        min_clips=wire.min_clips,
        thresholds=_numbers(wire.thresholds),
        ladder=tuple(wire.ladder),
        licence=wire.licence,
        attribution=wire.attribution,
    )


# -- parts ----------------------------------------------------------------------------------------------------------


def _state(number: int) -> str:
    """A clip's state; one that only a newer server knows is an absence."""
    return _STATE_FROM_WIRE.get(_given(number, "state"), "lost")


def _given(number: int, what: str) -> int:
    if number == 0:
        raise ValueError(f"{what} is missing")
    return number


def _numbers(wire: Mapping[str, float], order: Iterable[str] = MODALITIES) -> dict[str, float]:
    return {name: finite(value) for name, value in _ordered(wire, order)}


def _ordered(wire: Mapping[str, T], order: Iterable[str] = MODALITIES) -> list[tuple[str, T]]:
    """The entries of a map: those named in ``order`` first and so, the rest by name."""
    known = [(name, wire[name]) for name in order if name in wire]
    return known + [(name, wire[name]) for name in sorted(wire) if name not in dict(known)]
