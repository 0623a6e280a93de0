"""What a server offers: one bundle, its settings, and the thread that runs its models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from encoders.clips import ClipSpec
from protos import stream_pb2 as pb
from runtime.config import DelaySettings, RuntimeConfig
from runtime.errors import SourceError
from runtime.lane import build_parts
from runtime.packet import CodecConfig
from runtime.receive import Receiver
from runtime.serve.limits import Limits, Plan
from runtime.serve.status import invalid
from runtime.stream import Stream, Windows

__all__ = ["Offer"]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A bundle ready to serve; ``dispatcher`` is a ``runtime.dispatch.Dispatcher`` or acts like one."""

    name: str
    heads: Sequence[str]
    lookahead: int  # clips, the most that the imputer knows
    description: pb.BundleDescription
    config: RuntimeConfig
    spec: ClipSpec
    dispatcher: Any
    face: Callable[[], Any] = lambda: None
    parts: Callable[..., tuple[Any, Any]] = build_parts

    @property
    def default_lookahead(self) -> int:
        """Clips, where a config names none."""
        return self.config.window.lookahead

    @property
    def modalities(self) -> tuple[str, ...]:
        """What its encoders look at."""
        return tuple(m for m in ("video", "audio") if getattr(self.spec, m) is not None)

    def delay(self, plan: Plan) -> DelaySettings:
        """How long a stream's jitter buffer waits: the server's settings, under the client's ceiling."""
        delay = self.config.delay
        if plan.playout_delay is None:
            return delay
        return DelaySettings(floor=min(delay.floor, plan.playout_delay), cap=plan.playout_delay)

    def open(self, ident: str, plan: Plan, limits: Limits) -> Stream:
        """The state of a new stream; opens its decoders. Raises Refused where a codec cannot be opened."""
        try:
            receiver = Receiver(
                plan.info,
                self.spec,
                self.config.presence.rule,
                delay=self.delay(plan).policy,
                lookahead=plan.lookahead,
                late_repair=self.config.delay.late_repair,
                parts=self.bounded_parts(limits),
            )
        except SourceError as error:
            raise invalid("codecs", str(error)) from None
        windows = Windows(replace(self.config.window, lookahead=plan.lookahead))
        face = self.face()
        if face is not None and plan.resumption is not None and plan.resumption.face:
            face = replace(face, box=plan.resumption.face)
        return Stream(ident, windows, receiver, face=face)

    def bounded_parts(self, limits: Limits) -> Callable[..., tuple[Any, Any]]:
        """Decoders that refuse pictures larger than is served, whatever the bitstream says of itself."""

        def build(modality: str, config: CodecConfig, spec: Any, sequenced: bool) -> tuple[Any, Any]:
            damage, decoder = self.parts(modality, config, spec, sequenced)
            if modality == "video" and hasattr(decoder, "limit_pixels"):
                decoder.limit_pixels(limits.pixels)
            return damage, decoder

        return build
