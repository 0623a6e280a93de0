"""Answers on the wire: everything a dataclass says comes back, in its order; what makes no sense is refused."""

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imputation.presence import FLAGS, STATES
from protos import stream_pb2 as pb
from runtime.bundle import Bundle
from runtime.errors import OutputError
from runtime.metrics import Counts
from runtime.packet import MODALITIES
from runtime.prediction import ClipProvenance, Prediction, Timings
from runtime.serve.answers import (
    ClipReport,
    ModalityReport,
    ServedBundle,
    StreamStats,
    bundle_from_wire,
    bundle_to_wire,
    clip_report_from_wire,
    clip_report_to_wire,
    key_from_wire,
    key_to_wire,
    prediction_from_wire,
    prediction_key,
    prediction_to_wire,
    stats_from_wire,
    stats_to_wire,
)

INDEX = st.integers(0, 2**32 - 1)
COUNT = st.integers(0, 2**64 - 1)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
SHARE = st.floats(0, 1)
NAME = st.sampled_from(["", "tuned", "on_screen", "Straße ☂", "a\nb", "\0"])
few = settings(max_examples=50)
SOME_FLAGS = st.lists(st.sampled_from(FLAGS), max_size=3).map(tuple)


def by_modality(values: st.SearchStrategy) -> st.SearchStrategy:
    """A dictionary for none, one or both modalities, in their order."""
    return st.tuples(st.sampled_from([(), ("video",), ("audio",), MODALITIES]), values, values).map(
        lambda drawn: {m: drawn[1 + MODALITIES.index(m)] for m in drawn[0]}
    )


PROVENANCE = st.builds(
    ClipProvenance,
    clip=COUNT,
    state=by_modality(st.sampled_from(STATES)),
    flags=by_modality(SOME_FLAGS),
    rung=by_modality(NAME),
    coverage=by_modality(SHARE),
)
TIMINGS = st.builds(Timings, **{f.name: NUMBER for f in dataclasses.fields(Timings)})
PREDICTION = st.builds(
    Prediction,
    stream=NAME,
    epoch=INDEX,
    clip=COUNT,
    start_seconds=NUMBER,
    end_seconds=NUMBER,
    head=NAME,
    label=st.none() | NAME,
    probabilities=st.dictionaries(NAME, SHARE, max_size=4),
    confidence=SHARE,
    status=st.sampled_from(["provisional", "final"]),
    revision=INDEX,
    abstained=st.booleans(),
    observed_share=by_modality(SHARE),
    clips=st.lists(PROVENANCE, max_size=3).map(tuple),
    longest_gap_ms=NUMBER,
    bundle=NAME,
    timings=TIMINGS,
)
REPORT = st.builds(
    ClipReport,
    epoch=INDEX,
    clip=COUNT,
    start_seconds=NUMBER,
    end_seconds=NUMBER,
    version=INDEX,
    modalities=by_modality(
        st.builds(ModalityReport, state=st.sampled_from(STATES), coverage=SHARE, flags=SOME_FLAGS, severity=SHARE)
    ),
)
STATS = st.builds(
    StreamStats,
    packets=by_modality(st.builds(Counts, **{f.name: COUNT for f in dataclasses.fields(Counts)})),
    av_offset_ms=NUMBER,
    drift_ppm=NUMBER,
    jitter_ms=by_modality(NUMBER),
    playout_delay_ms=by_modality(NUMBER),
    clips_shed=COUNT,
    predictions_final=COUNT,
    responses_dropped=COUNT,
)
SERVED = st.builds(
    ServedBundle,
    name=NAME,
    description=NAME,
    hash=NAME,
    heads=st.dictionaries(NAME, st.lists(NAME, max_size=3).map(tuple), max_size=3),
    clip_seconds=st.fractions(Fraction(1, 100), 100, max_denominator=1000),
    window=INDEX,
    lookahead=INDEX,
    min_clips=INDEX,
    thresholds=by_modality(SHARE),
    ladder=st.lists(NAME, max_size=3).map(tuple),
    licence=NAME,
    attribution=NAME,
)


def over_the_wire(message):
    """A message as its receiver reads it."""
    return type(message).FromString(message.SerializeToString())


@few
@given(PREDICTION)
def test_a_prediction_comes_back_whole_and_in_its_order(prediction):
    back = prediction_from_wire(over_the_wire(prediction_to_wire(prediction)), list(prediction.probabilities))
    assert back == prediction
    assert repr(back) == repr(prediction)  # dictionaries compare without their order
    assert back.as_dict() == prediction.as_dict()


@few
@given(REPORT)
def test_a_clip_report_comes_back_whole(report):
    assert clip_report_from_wire(over_the_wire(clip_report_to_wire(report))) == report


@few
@given(STATS)
def test_totals_come_back_whole(stats):
    assert stats_from_wire(over_the_wire(stats_to_wire(stats))) == stats


@few
@given(SERVED)
def test_a_bundle_comes_back_whole(served):
    back = bundle_from_wire(over_the_wire(bundle_to_wire(served)))
    assert back == served
    assert list(back.heads) == list(served.heads)


@few
@given(PREDICTION)
def test_a_key_names_a_prediction(prediction):
    key = prediction_key(prediction)
    assert key_from_wire(over_the_wire(key_to_wire(key))) == key
    assert prediction_key(prediction_from_wire(prediction_to_wire(prediction))) == key


@pytest.mark.parametrize(
    ("message", "dataclass"),
    [
        (pb.Prediction, Prediction),
        (pb.ClipProvenance, ClipProvenance),
        (pb.Timings, Timings),
        (pb.ClipReport, ClipReport),
        (pb.ModalityReport, ModalityReport),
        (pb.StreamStats, StreamStats),
        (pb.PacketCounts, Counts),
        (pb.BundleDescription, ServedBundle),
    ],
)
def test_messages_and_dataclasses_have_the_same_fields(message, dataclass):
    assert [f.name for f in dataclasses.fields(dataclass)] == [f.name for f in message.DESCRIPTOR.fields]


def test_the_shipped_bundle_is_described():
    bundle = Bundle.load("talk")
    served = bundle_from_wire(over_the_wire(bundle_to_wire(bundle)))
    assert served == ServedBundle.of(bundle)
    assert served.hash == bundle.hash
    assert served.clip_seconds == bundle.manifest.clip_seconds
    assert set(served.heads) == set(bundle.manifest.heads)
    assert set(served.heads.values()) == {bundle.manifest.labels}


def plain(**changed) -> pb.Prediction:
    values = {"stream": "s", "status": pb.PREDICTION_STATUS_FINAL, "confidence": 0.5, **changed}
    return pb.Prediction(**values)


def test_a_newer_servers_words_are_read_carefully():
    state = pb.ClipProvenance(clip=3)
    state.state["video"] = 99
    wire = plain(status=99, clips=[state])
    read = prediction_from_wire(over_the_wire(wire))
    assert read.status == "provisional"
    assert read.clips[0].state == {"video": "lost"}


def test_a_modality_that_is_not_ours_comes_after_ours():
    wire = plain(observed_share={"touch": 0.25, "audio": 0.5, "video": 1.0})
    assert list(prediction_from_wire(wire).observed_share) == ["video", "audio", "touch"]


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        (plain(status=0), "status is missing"),
        (plain(confidence=float("nan")), "nan is not"),
        (plain(start_seconds=float("inf")), "inf is not"),
        (plain(clips=[pb.ClipProvenance(state={"video": 0})]), "state is missing"),
        (plain(probabilities={"a": float("nan")}), "nan is not"),
    ],
)
def test_what_makes_no_sense_is_refused(wire, complaint):
    with pytest.raises(ValueError, match=complaint):
        prediction_from_wire(wire)


def test_a_bundle_without_a_clip_length_is_refused():
    with pytest.raises(ValueError, match="denominator 0"):
        bundle_from_wire(pb.BundleDescription(name="x"))


def test_a_number_that_does_not_fit_is_named():
    with pytest.raises(OutputError, match="report of clip -1 does not fit the wire"):
        clip_report_to_wire(ClipReport(epoch=0, clip=-1, start_seconds=0.0, end_seconds=0.4))
