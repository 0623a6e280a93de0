from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Modality(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODALITY_UNSPECIFIED: _ClassVar[Modality]
    MODALITY_VIDEO: _ClassVar[Modality]
    MODALITY_AUDIO: _ClassVar[Modality]

class PredictionStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PREDICTION_STATUS_UNSPECIFIED: _ClassVar[PredictionStatus]
    PREDICTION_STATUS_PROVISIONAL: _ClassVar[PredictionStatus]
    PREDICTION_STATUS_FINAL: _ClassVar[PredictionStatus]

class ClipState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLIP_STATE_UNSPECIFIED: _ClassVar[ClipState]
    CLIP_STATE_OBSERVED: _ClassVar[ClipState]
    CLIP_STATE_DAMAGED: _ClassVar[ClipState]
    CLIP_STATE_LATE: _ClassVar[ClipState]
    CLIP_STATE_LOST: _ClassVar[ClipState]
    CLIP_STATE_SHED: _ClassVar[ClipState]

class DecisionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DECISION_KIND_UNSPECIFIED: _ClassVar[DecisionKind]
    DECISION_KIND_SHED: _ClassVar[DecisionKind]
    DECISION_KIND_DEVICE_LOST: _ClassVar[DecisionKind]
    DECISION_KIND_DEVICE_BACK: _ClassVar[DecisionKind]
    DECISION_KIND_FORMAT_CHANGE: _ClassVar[DecisionKind]
    DECISION_KIND_CLOCK_REMAP: _ClassVar[DecisionKind]
MODALITY_UNSPECIFIED: Modality
MODALITY_VIDEO: Modality
MODALITY_AUDIO: Modality
PREDICTION_STATUS_UNSPECIFIED: PredictionStatus
PREDICTION_STATUS_PROVISIONAL: PredictionStatus
PREDICTION_STATUS_FINAL: PredictionStatus
CLIP_STATE_UNSPECIFIED: ClipState
CLIP_STATE_OBSERVED: ClipState
CLIP_STATE_DAMAGED: ClipState
CLIP_STATE_LATE: ClipState
CLIP_STATE_LOST: ClipState
CLIP_STATE_SHED: ClipState
DECISION_KIND_UNSPECIFIED: DecisionKind
DECISION_KIND_SHED: DecisionKind
DECISION_KIND_DEVICE_LOST: DecisionKind
DECISION_KIND_DEVICE_BACK: DecisionKind
DECISION_KIND_FORMAT_CHANGE: DecisionKind
DECISION_KIND_CLOCK_REMAP: DecisionKind

class Rational(_message.Message):
    __slots__ = ("numerator", "denominator")
    NUMERATOR_FIELD_NUMBER: _ClassVar[int]
    DENOMINATOR_FIELD_NUMBER: _ClassVar[int]
    numerator: int
    denominator: int
    def __init__(self, numerator: _Optional[int] = ..., denominator: _Optional[int] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("config", "packets", "codec", "end_of_stream", "ack")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    END_OF_STREAM_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    config: StreamConfig
    packets: PacketBatch
    codec: CodecConfig
    end_of_stream: EndOfStream
    ack: Ack
    def __init__(self, config: _Optional[_Union[StreamConfig, _Mapping]] = ..., packets: _Optional[_Union[PacketBatch, _Mapping]] = ..., codec: _Optional[_Union[CodecConfig, _Mapping]] = ..., end_of_stream: _Optional[_Union[EndOfStream, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ...) -> None: ...

class StreamConfig(_message.Message):
    __slots__ = ("bundle", "heads", "origin", "codecs", "lookahead", "resume_token", "recording_consent", "name", "playout_delay_ms", "resume_point", "recorded", "duration_seconds", "sequence_numbers")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    RECORDING_CONSENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLAYOUT_DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    RESUME_POINT_FIELD_NUMBER: _ClassVar[int]
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    heads: _containers.RepeatedScalarFieldContainer[str]
    origin: Rational
    codecs: _containers.RepeatedCompositeFieldContainer[CodecConfig]
    lookahead: int
    resume_token: bytes
    recording_consent: bool
    name: str
    playout_delay_ms: float
    resume_point: ResumePoint
    recorded: bool
    duration_seconds: float
    sequence_numbers: bool
    def __init__(self, bundle: _Optional[str] = ..., heads: _Optional[_Iterable[str]] = ..., origin: _Optional[_Union[Rational, _Mapping]] = ..., codecs: _Optional[_Iterable[_Union[CodecConfig, _Mapping]]] = ..., lookahead: _Optional[int] = ..., resume_token: _Optional[bytes] = ..., recording_consent: _Optional[bool] = ..., name: _Optional[str] = ..., playout_delay_ms: _Optional[float] = ..., resume_point: _Optional[_Union[ResumePoint, _Mapping]] = ..., recorded: _Optional[bool] = ..., duration_seconds: _Optional[float] = ..., sequence_numbers: _Optional[bool] = ...) -> None: ...

class ResumePoint(_message.Message):
    __slots__ = ("stream", "epoch", "first_clip", "origin", "next_clip", "oldest_clip", "face")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_CLIP_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    NEXT_CLIP_FIELD_NUMBER: _ClassVar[int]
    OLDEST_CLIP_FIELD_NUMBER: _ClassVar[int]
    FACE_FIELD_NUMBER: _ClassVar[int]
    stream: str
    epoch: int
    first_clip: int
    origin: Rational
    next_clip: int
    oldest_clip: int
    face: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, stream: _Optional[str] = ..., epoch: _Optional[int] = ..., first_clip: _Optional[int] = ..., origin: _Optional[_Union[Rational, _Mapping]] = ..., next_clip: _Optional[int] = ..., oldest_clip: _Optional[int] = ..., face: _Optional[_Iterable[float]] = ...) -> None: ...

class CodecConfig(_message.Message):
    __slots__ = ("modality", "codec", "time_base", "extradata", "sample_rate", "channels", "sample_format", "width", "height", "pixel_format", "frame_rate", "rotation", "pre_skip")
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    TIME_BASE_FIELD_NUMBER: _ClassVar[int]
    EXTRADATA_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    PIXEL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    FRAME_RATE_FIELD_NUMBER: _ClassVar[int]
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    PRE_SKIP_FIELD_NUMBER: _ClassVar[int]
    modality: Modality
    codec: str
    time_base: Rational
    extradata: bytes
    sample_rate: int
    channels: int
    sample_format: str
    width: int
    height: int
    pixel_format: str
    frame_rate: Rational
    rotation: int
    pre_skip: int
    def __init__(self, modality: _Optional[_Union[Modality, str]] = ..., codec: _Optional[str] = ..., time_base: _Optional[_Union[Rational, _Mapping]] = ..., extradata: _Optional[bytes] = ..., sample_rate: _Optional[int] = ..., channels: _Optional[int] = ..., sample_format: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., pixel_format: _Optional[str] = ..., frame_rate: _Optional[_Union[Rational, _Mapping]] = ..., rotation: _Optional[int] = ..., pre_skip: _Optional[int] = ...) -> None: ...

class PacketBatch(_message.Message):
    __slots__ = ("packets",)
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    packets: _containers.RepeatedCompositeFieldContainer[Packet]
    def __init__(self, packets: _Optional[_Iterable[_Union[Packet, _Mapping]]] = ...) -> None: ...

class Packet(_message.Message):
    __slots__ = ("modality", "seq", "capture_time", "duration", "keyframe", "disposable", "payload", "fragment_index", "fragment_count", "decode_time", "corrupt", "time_base", "skip", "padding", "arrival_seconds")
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    KEYFRAME_FIELD_NUMBER: _ClassVar[int]
    DISPOSABLE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    DECODE_TIME_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    TIME_BASE_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    modality: Modality
    seq: int
    capture_time: int
    duration: int
    keyframe: bool
    disposable: bool
    payload: bytes
    fragment_index: int
    fragment_count: int
    decode_time: int
    corrupt: bool
    time_base: Rational
    skip: int
    padding: int
    arrival_seconds: float
    def __init__(self, modality: _Optional[_Union[Modality, str]] = ..., seq: _Optional[int] = ..., capture_time: _Optional[int] = ..., duration: _Optional[int] = ..., keyframe: _Optional[bool] = ..., disposable: _Optional[bool] = ..., payload: _Optional[bytes] = ..., fragment_index: _Optional[int] = ..., fragment_count: _Optional[int] = ..., decode_time: _Optional[int] = ..., corrupt: _Optional[bool] = ..., time_base: _Optional[_Union[Rational, _Mapping]] = ..., skip: _Optional[int] = ..., padding: _Optional[int] = ..., arrival_seconds: _Optional[float] = ...) -> None: ...

class EndOfStream(_message.Message):
    __slots__ = ("modality", "last_seq")
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    modality: Modality
    last_seq: int
    def __init__(self, modality: _Optional[_Union[Modality, str]] = ..., last_seq: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("prediction",)
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    prediction: PredictionId
    def __init__(self, prediction: _Optional[_Union[PredictionId, _Mapping]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("started", "prediction", "clip_report", "stats", "going_away", "ack_through_seq", "resume_point")
    class AckThroughSeqEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    CLIP_REPORT_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    GOING_AWAY_FIELD_NUMBER: _ClassVar[int]
    ACK_THROUGH_SEQ_FIELD_NUMBER: _ClassVar[int]
    RESUME_POINT_FIELD_NUMBER: _ClassVar[int]
    started: StreamStarted
    prediction: Prediction
    clip_report: ClipReport
    stats: StreamStats
    going_away: GoingAway
    ack_through_seq: _containers.ScalarMap[str, int]
    resume_point: ResumePoint
    def __init__(self, started: _Optional[_Union[StreamStarted, _Mapping]] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ..., clip_report: _Optional[_Union[ClipReport, _Mapping]] = ..., stats: _Optional[_Union[StreamStats, _Mapping]] = ..., going_away: _Optional[_Union[GoingAway, _Mapping]] = ..., ack_through_seq: _Optional[_Mapping[str, int]] = ..., resume_point: _Optional[_Union[ResumePoint, _Mapping]] = ...) -> None: ...

class StreamStarted(_message.Message):
    __slots__ = ("stream", "resume_token", "origin", "lookahead", "bundle", "recording", "playout_delay_ms", "resumed", "report_interval_ms")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    PLAYOUT_DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    REPORT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    stream: str
    resume_token: bytes
    origin: Rational
    lookahead: int
    bundle: BundleDescription
    recording: bool
    playout_delay_ms: float
    resumed: bool
    report_interval_ms: float
    def __init__(self, stream: _Optional[str] = ..., resume_token: _Optional[bytes] = ..., origin: _Optional[_Union[Rational, _Mapping]] = ..., lookahead: _Optional[int] = ..., bundle: _Optional[_Union[BundleDescription, _Mapping]] = ..., recording: _Optional[bool] = ..., playout_delay_ms: _Optional[float] = ..., resumed: _Optional[bool] = ..., report_interval_ms: _Optional[float] = ...) -> None: ...

class PredictionId(_message.Message):
    __slots__ = ("stream", "epoch", "clip", "head", "revision")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    stream: str
    epoch: int
    clip: int
    head: str
    revision: int
    def __init__(self, stream: _Optional[str] = ..., epoch: _Optional[int] = ..., clip: _Optional[int] = ..., head: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("stream", "epoch", "clip", "start_seconds", "end_seconds", "head", "label", "probabilities", "confidence", "status", "revision", "abstained", "observed_share", "clips", "longest_gap_ms", "bundle", "timings")
    class ProbabilitiesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ObservedShareEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STREAM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    START_SECONDS_FIELD_NUMBER: _ClassVar[int]
    END_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ABSTAINED_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_SHARE_FIELD_NUMBER: _ClassVar[int]
    CLIPS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_GAP_MS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    stream: str
    epoch: int
    clip: int
    start_seconds: float
    end_seconds: float
    head: str
    label: str
    probabilities: _containers.ScalarMap[str, float]
    confidence: float
    status: PredictionStatus
    revision: int
    abstained: bool
    observed_share: _containers.ScalarMap[str, float]
    clips: _containers.RepeatedCompositeFieldContainer[ClipProvenance]
    longest_gap_ms: float
    bundle: str
    timings: Timings
    def __init__(self, stream: _Optional[str] = ..., epoch: _Optional[int] = ..., clip: _Optional[int] = ..., start_seconds: _Optional[float] = ..., end_seconds: _Optional[float] = ..., head: _Optional[str] = ..., label: _Optional[str] = ..., probabilities: _Optional[_Mapping[str, float]] = ..., confidence: _Optional[float] = ..., status: _Optional[_Union[PredictionStatus, str]] = ..., revision: _Optional[int] = ..., abstained: _Optional[bool] = ..., observed_share: _Optional[_Mapping[str, float]] = ..., clips: _Optional[_Iterable[_Union[ClipProvenance, _Mapping]]] = ..., longest_gap_ms: _Optional[float] = ..., bundle: _Optional[str] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class ClipProvenance(_message.Message):
    __slots__ = ("clip", "state", "flags", "rung", "coverage")
    class StateEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: ClipState
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[ClipState, str]] = ...) -> None: ...
    class FlagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Flags
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Flags, _Mapping]] = ...) -> None: ...
    class RungEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class CoverageEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    CLIP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    clip: int
    state: _containers.ScalarMap[str, ClipState]
    flags: _containers.MessageMap[str, Flags]
    rung: _containers.ScalarMap[str, str]
    coverage: _containers.ScalarMap[str, float]
    def __init__(self, clip: _Optional[int] = ..., state: _Optional[_Mapping[str, ClipState]] = ..., flags: _Optional[_Mapping[str, Flags]] = ..., rung: _Optional[_Mapping[str, str]] = ..., coverage: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Flags(_message.Message):
    __slots__ = ("flags",)
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    flags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, flags: _Optional[_Iterable[str]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("wait_ms", "decode_ms", "encode_ms", "fill_ms", "total_ms")
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_MS_FIELD_NUMBER: _ClassVar[int]
    FILL_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    wait_ms: float
    decode_ms: float
    encode_ms: float
    fill_ms: float
    total_ms: float
    def __init__(self, wait_ms: _Optional[float] = ..., decode_ms: _Optional[float] = ..., encode_ms: _Optional[float] = ..., fill_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class ClipReport(_message.Message):
    __slots__ = ("epoch", "clip", "start_seconds", "end_seconds", "version", "modalities")
    class ModalitiesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: ModalityReport
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[ModalityReport, _Mapping]] = ...) -> None: ...
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    START_SECONDS_FIELD_NUMBER: _ClassVar[int]
    END_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODALITIES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    clip: int
    start_seconds: float
    end_seconds: float
    version: int
    modalities: _containers.MessageMap[str, ModalityReport]
    def __init__(self, epoch: _Optional[int] = ..., clip: _Optional[int] = ..., start_seconds: _Optional[float] = ..., end_seconds: _Optional[float] = ..., version: _Optional[int] = ..., modalities: _Optional[_Mapping[str, ModalityReport]] = ...) -> None: ...

class ModalityReport(_message.Message):
    __slots__ = ("state", "coverage", "flags", "severity")
    STATE_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    state: ClipState
    coverage: float
    flags: _containers.RepeatedScalarFieldContainer[str]
    severity: float
    def __init__(self, state: _Optional[_Union[ClipState, str]] = ..., coverage: _Optional[float] = ..., flags: _Optional[_Iterable[str]] = ..., severity: _Optional[float] = ...) -> None: ...

class StreamStats(_message.Message):
    __slots__ = ("packets", "av_offset_ms", "drift_ppm", "jitter_ms", "playout_delay_ms", "clips_shed", "predictions_final", "responses_dropped")
    class PacketsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: PacketCounts
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[PacketCounts, _Mapping]] = ...) -> None: ...
    class JitterMsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class PlayoutDelayMsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PACKETS_FIELD_NUMBER: _ClassVar[int]
    AV_OFFSET_MS_FIELD_NUMBER: _ClassVar[int]
    DRIFT_PPM_FIELD_NUMBER: _ClassVar[int]
    JITTER_MS_FIELD_NUMBER: _ClassVar[int]
    PLAYOUT_DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    CLIPS_SHED_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FINAL_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_DROPPED_FIELD_NUMBER: _ClassVar[int]
    packets: _containers.MessageMap[str, PacketCounts]
    av_offset_ms: float
    drift_ppm: float
    jitter_ms: _containers.ScalarMap[str, float]
    playout_delay_ms: _containers.ScalarMap[str, float]
    clips_shed: int
    predictions_final: int
    responses_dropped: int
    def __init__(self, packets: _Optional[_Mapping[str, PacketCounts]] = ..., av_offset_ms: _Optional[float] = ..., drift_ppm: _Optional[float] = ..., jitter_ms: _Optional[_Mapping[str, float]] = ..., playout_delay_ms: _Optional[_Mapping[str, float]] = ..., clips_shed: _Optional[int] = ..., predictions_final: _Optional[int] = ..., responses_dropped: _Optional[int] = ...) -> None: ...

class PacketCounts(_message.Message):
    __slots__ = ("expected", "received", "lost", "used", "unused", "damaged", "late", "duplicate", "malformed", "shed", "unfinished")
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    UNUSED_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    MALFORMED_FIELD_NUMBER: _ClassVar[int]
    SHED_FIELD_NUMBER: _ClassVar[int]
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    expected: int
    received: int
    lost: int
    used: int
    unused: int
    damaged: int
    late: int
    duplicate: int
    malformed: int
    shed: int
    unfinished: int
    def __init__(self, expected: _Optional[int] = ..., received: _Optional[int] = ..., lost: _Optional[int] = ..., used: _Optional[int] = ..., unused: _Optional[int] = ..., damaged: _Optional[int] = ..., late: _Optional[int] = ..., duplicate: _Optional[int] = ..., malformed: _Optional[int] = ..., shed: _Optional[int] = ..., unfinished: _Optional[int] = ...) -> None: ...

class GoingAway(_message.Message):
    __slots__ = ("resume_token", "retry_after_ms", "reason")
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    resume_token: bytes
    retry_after_ms: float
    reason: str
    def __init__(self, resume_token: _Optional[bytes] = ..., retry_after_ms: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class DescribeBundleRequest(_message.Message):
    __slots__ = ("bundle",)
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    def __init__(self, bundle: _Optional[str] = ...) -> None: ...

class DescribeBundleResponse(_message.Message):
    __slots__ = ("bundle",)
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    bundle: BundleDescription
    def __init__(self, bundle: _Optional[_Union[BundleDescription, _Mapping]] = ...) -> None: ...

class BundleDescription(_message.Message):
    __slots__ = ("name", "description", "hash", "heads", "clip_seconds", "window", "lookahead", "min_clips", "thresholds", "ladder", "licence", "attribution")
    class ThresholdsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    CLIP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    LOOKAHEAD_FIELD_NUMBER: _ClassVar[int]
    MIN_CLIPS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    LADDER_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    hash: str
    heads: _containers.RepeatedCompositeFieldContainer[HeadDescription]
    clip_seconds: Rational
    window: int
    lookahead: int
    min_clips: int
    thresholds: _containers.ScalarMap[str, float]
    ladder: _containers.RepeatedScalarFieldContainer[str]
    licence: str
    attribution: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., hash: _Optional[str] = ..., heads: _Optional[_Iterable[_Union[HeadDescription, _Mapping]]] = ..., clip_seconds: _Optional[_Union[Rational, _Mapping]] = ..., window: _Optional[int] = ..., lookahead: _Optional[int] = ..., min_clips: _Optional[int] = ..., thresholds: _Optional[_Mapping[str, float]] = ..., ladder: _Optional[_Iterable[str]] = ..., licence: _Optional[str] = ..., attribution: _Optional[str] = ...) -> None: ...

class HeadDescription(_message.Message):
    __slots__ = ("name", "labels")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class RecordingRecord(_message.Message):
    __slots__ = ("header", "packet", "decision")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PACKET_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    header: RecordingHeader
    packet: RecordedPacket
    decision: RecordedDecision
    def __init__(self, header: _Optional[_Union[RecordingHeader, _Mapping]] = ..., packet: _Optional[_Union[RecordedPacket, _Mapping]] = ..., decision: _Optional[_Union[RecordedDecision, _Mapping]] = ...) -> None: ...

class RecordingHeader(_message.Message):
    __slots__ = ("format_version", "name", "codecs", "origin", "duration_seconds", "labels", "sequence_numbers", "writer")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    name: str
    codecs: _containers.RepeatedCompositeFieldContainer[CodecConfig]
    origin: Rational
    duration_seconds: float
    labels: _containers.ScalarMap[str, str]
    sequence_numbers: bool
    writer: str
    def __init__(self, format_version: _Optional[int] = ..., name: _Optional[str] = ..., codecs: _Optional[_Iterable[_Union[CodecConfig, _Mapping]]] = ..., origin: _Optional[_Union[Rational, _Mapping]] = ..., duration_seconds: _Optional[float] = ..., labels: _Optional[_Mapping[str, str]] = ..., sequence_numbers: _Optional[bool] = ..., writer: _Optional[str] = ...) -> None: ...

class RecordedPacket(_message.Message):
    __slots__ = ("packet", "arrival_seconds")
    PACKET_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    packet: Packet
    arrival_seconds: float
    def __init__(self, packet: _Optional[_Union[Packet, _Mapping]] = ..., arrival_seconds: _Optional[float] = ...) -> None: ...

class RecordedDecision(_message.Message):
    __slots__ = ("kind", "modality", "arrival_seconds", "epoch", "clip", "codec", "offset", "drift_ppm", "reason")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DRIFT_PPM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    kind: DecisionKind
    modality: Modality
    arrival_seconds: float
    epoch: int
    clip: int
    codec: CodecConfig
    offset: Rational
    drift_ppm: float
    reason: str
    def __init__(self, kind: _Optional[_Union[DecisionKind, str]] = ..., modality: _Optional[_Union[Modality, str]] = ..., arrival_seconds: _Optional[float] = ..., epoch: _Optional[int] = ..., clip: _Optional[int] = ..., codec: _Optional[_Union[CodecConfig, _Mapping]] = ..., offset: _Optional[_Union[Rational, _Mapping]] = ..., drift_ppm: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...
