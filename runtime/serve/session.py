"""Session: one client's stream behind the transport. Requests in, responses out; no gRPC here.

    receive -> inbox -> intake -> clips -> dispatcher -> answered -> outbox
    (event     (bounded) (a thread (event   (model        (event     (bounded)
     loop)               of a pool) loop)    thread)       loop)

Everything here runs in the event loop's thread but the inbox's turns, which run in the pool, one at a time. A
packet's arrival is the moment its message was read, on a clock that stands still while *we* do not read (our queues
are full) or nobody is connected: what we made wait is not late. Flow control is the whole receive policy: a full inbox
is not read from, so a flooder waits in its own buffers, and nothing that was read is dropped. At most ``in_flight``
clips of a stream wait for the model. A recorded stream has no clock but that of its packets: what is late in it was so
when it was recorded; and as its sender can wait, nothing is dropped for one that reads slowly.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from protos import stream_pb2 as pb
from runtime import logs
from runtime.clip import Clip
from runtime.clock import Clock
from runtime.observe import Observer
from runtime.prediction import Prediction
from runtime.serve.answers import (
    ClipReport,
    StreamStats,
    clip_report_to_wire,
    key_from_wire,
    prediction_to_wire,
    stats_to_wire,
)
from runtime.serve.convert import MODALITY_FROM_WIRE
from runtime.serve.inbox import Inbox, Turn
from runtime.serve.intake import Intake
from runtime.serve.limits import Plan, check_codec, refuse_batch
from runtime.serve.manners import Manners
from runtime.serve.offer import Offer
from runtime.serve.outbox import Outbox
from runtime.serve.pacing import Latency, Pace, PausableClock
from runtime.serve.progress import Progress
from runtime.serve.settings import Settings
from runtime.serve.status import Refused, failed, invalid, out_of_order, timed_out, unexpected
from runtime.stream import FINAL, Stream

__all__ = ["Session", "Settings"]

log = logs.of(__name__)


class Session:
    """One stream. ``submit`` runs a function in the decode pool, ``post`` one in the event loop, from any thread."""

    def __init__(
        self,
        stream: Stream,
        plan: Plan,
        offer: Offer,
        settings: Settings,
        *,
        clock: Clock,
        submit: Callable[[Callable[[], object]], object],
        post: Callable[..., object],
        observer: Observer | None = None,
        tap: Any = None,
    ) -> None:
        self.stream, self.plan, self.offer, self.settings = stream, plan, offer, settings
        self.observer = observer or Observer()
        self.outbox = Outbox(settings.outbox)
        self.readable = asyncio.Event()  # there is room for more
        self.cut = asyncio.Event()  # the connection must end, whatever it is doing
        self.failure: Refused | None = None
        self.hung_up: Refused | None = None  # why this connection must end, though the stream may be resumed
        self.done = False  # everything was answered
        self.draining = False
        self.connection = 0  # which of its connections is served; 0: none
        self.recording = tap is not None
        self._connections = 0
        self._real, self._clock = clock, PausableClock(clock)
        self._submit, self._post = submit, post
        windows = stream.windows.settings
        self._progress = Progress(stream.name, windows.clips, windows.lookahead, plan.resumption)
        self._pace = Pace(settings.answer_within)
        now = None if plan.recorded else self._clock.now
        self._intake = Intake(
            stream.receiver, plan.info, settings.limits, self.observer, tap, now=now, behind=settings.behind
        )
        self._inbox = Inbox(self._intake, stream.name, packets=settings.inbox_packets, size=settings.inbox_bytes)
        self._working = self._finished = self._closed = False
        self._in_flight = 0
        self._latency = Latency()
        self._deadline: float | None = None
        self._newest: dict[int, int] = {}  # by modality, the highest number that was read
        self._said: set[str] = set()  # modalities that were ended on this connection
        self._finals = self._shed = 0
        self.manners = Manners(plan, settings, clock.now())
        self._heard = clock.now()
        self._next_stats = self._heard + settings.report_interval
        self.readable.set()
        offer.dispatcher.attach(stream, lambda answer: post(self._answered, answer))

    @property
    def ident(self) -> str:
        """The stream's id."""
        return self.stream.name

    @property
    def acknowledged(self) -> bool:
        """Whether the client was told that it may forget something."""
        return self.outbox.acknowledged

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.failure is not None or self.done

    # -- connections --------------------------------------------------------------------------------------------------

    def attach(self) -> int:
        """A connection takes the stream over; its number, with which ``detach`` is to be called."""
        self.cut.set()  # of the connection before, if it still believes to be one
        self.cut = asyncio.Event()
        self._connections += 1
        self.connection = self._connections
        self.hung_up = None
        self.manners.connected()
        self._said.clear()
        self._heard = self._real.now()
        self._clock.go("away")
        self._clock.go("full")
        self.outbox.ready.set()
        return self.connection

    def resume(self, plan: Plan) -> None:
        """Somebody came back: what may not have arrived is sent again. Raises Refused where that is not possible."""
        if self.failure is not None:
            raise self.failure
        self.outbox.rewind(plan.resumption.next_clip if plan.resumption is not None else None)
        self._empty()
        self._clock.pause("again")  # until something comes that had not been read before
        self._put(self._intake.rewind)

    def detach(self, connection: int) -> bool:
        """A connection ended; True if it was the one that is served.

        Time stops, and what was read but not decoded is let go, since its sender has it still. The few clips that are
        on their way to the model are answered; no others follow them.
        """
        if connection != self.connection:
            return False
        self.connection = 0
        self._clock.pause("away")
        self._empty()
        return True

    def close(self) -> None:
        """Give everything back; nothing of it reaches the model any more."""
        self.offer.dispatcher.detach(self.stream)
        self._empty()
        tap, self._intake.tap = self._intake.tap, None
        if tap is not None:
            tap.close()
        self._closed = True
        if not self._working:
            self._settle()

    def supersede(self) -> None:
        """Another session goes on with the stream; whoever is connected here is told so."""
        self.connection = 0
        self.cut.set()
        self._wake()

    def fail(self, refused: Refused) -> None:
        """The stream ends with a status, and its work on the device with it."""
        if self.ended:
            return
        self.failure = refused
        self.offer.dispatcher.detach(self.stream)
        self._empty()
        self._wake()
        self.cut.set()

    def drain(self) -> None:
        """Nothing more is read; what was read is answered, and then the stream can go elsewhere."""
        self.draining = True
        self._wake()

    def going_away(self, going: pb.GoingAway) -> None:
        """Tell the client that the server stops."""
        self.outbox.put("going_away", pb.StreamResponse(going_away=going))
        self.drain()

    @property
    def parting(self) -> bool:
        """Whether a drained stream has been told everything about what was read, and is to go elsewhere."""
        busy = self._inbox or self._working or self._in_flight or self._finished
        return self.draining and not busy

    def part(self) -> None:
        """Totals last of all, of a stream that goes elsewhere."""
        self._report(self._intake.stats())

    def _settle(self) -> None:
        self._working = True  # for good
        with suppress(RuntimeError):  # the server stops, and its pool has: nobody watches any more
            self._submit(self._intake.settle)

    def _empty(self) -> None:
        self._inbox.empty()
        self.readable.set()

    def _wake(self) -> None:
        self.readable.set()
        self.outbox.ready.set()

    # -- requests -----------------------------------------------------------------------------------------------------

    @property
    def room(self) -> bool:
        """Whether more may be read."""
        return self._inbox.room and not self.manners.too_fast(self._real.now())

    def wait(self) -> None:
        """Our queues are full: nothing is read, and time stands still, until ``readable``."""
        self.readable.clear()
        self._clock.pause("full")

    def go_on(self) -> None:
        """Reading again."""
        self._clock.go("full")
        self._heard = self._real.now()

    def receive(self, request: pb.StreamRequest) -> None:
        """One message, the moment it was read. Raises Refused where it ends the stream."""
        self._heard = self._real.now()
        kind = request.WhichOneof("request")
        if kind == "packets":
            self._packets(request.packets)
        elif kind == "ack":
            self._acknowledge(request.ack)
        elif kind == "end_of_stream":
            self._end_of_stream(request.end_of_stream)
        elif kind == "codec":
            self._codec(request.codec)
        else:
            raise unexpected(kind)

    def no_more(self) -> None:
        """The client closed its side: as if it had ended every modality."""
        self._said |= set(self.plan.info.codecs)
        if not self._finished:
            self._put(self._intake.finish)

    def _packets(self, batch: pb.PacketBatch) -> None:
        refused = refuse_batch(len(batch.packets), self.settings.limits)
        if refused is not None:
            raise refused
        newest = self._newest
        self.manners.sent(batch.packets, self._real.now())
        for wire in batch.packets:
            if wire.seq > newest.get(wire.modality, -1):
                newest[wire.modality] = wire.seq
                self._clock.go("again")
        arrival = None if self.plan.recorded else self._clock.now()
        for wire in batch.packets:
            self._inbox.put(self._intake.packet, wire, arrival, size=len(wire.payload), packets=1, came=arrival)
        self._schedule()

    def _codec(self, wire: pb.CodecConfig) -> None:
        modality, codec = check_codec("codec", wire, self.settings.limits)
        if modality not in self.plan.info.codecs:
            raise invalid("codec.modality", f"the stream has no {modality} track; name it in StreamConfig.codecs")
        arrival = None if self.plan.recorded else self._clock.now()
        self._put(self._intake.change, modality, codec, arrival, size=len(codec.extradata), packets=1)

    def _acknowledge(self, ack: pb.Ack) -> None:
        stream, epoch, clip, head, revision = key_from_wire(ack.prediction)
        if stream != self.ident or head not in self.plan.heads:
            raise invalid("ack.prediction", "no prediction of this stream; ack what was received", "ack")
        key = (epoch, clip, head, revision)
        if self.plan.resumption is None or self.outbox.has_sent(key):  # else the server before this one said it
            self.outbox.acknowledge(key)

    def _end_of_stream(self, end: pb.EndOfStream) -> None:
        modality = MODALITY_FROM_WIRE.get(end.modality)
        if modality is None or modality not in self.plan.info.codecs:
            raise invalid("end_of_stream.modality", f"{end.modality} is no track of this stream", "request")
        if modality in self._said:
            raise out_of_order(f"end_of_stream: a second one of {modality}; a modality ends once", "end_of_stream")
        self._said.add(modality)
        if not self._finished:
            self._put(self._intake.end, modality, end.last_seq if end.HasField("last_seq") else None)

    def _put(self, act: Callable[..., list[Clip]], *arguments: Any, size: int = 0, packets: int = 0) -> None:
        self._inbox.put(act, *arguments, size=size, packets=packets)
        self._schedule()

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let time pass: clips close though nothing arrives, totals are reported, silence ends the stream."""
        now = self._real.now()
        if self.ended or not self.connection:
            return
        if self.manners.due(now):
            self._bound(now)
        waiting = self.readable.is_set() and not self.draining and self._said < set(self.plan.info.codecs)
        if waiting and now - self._heard >= self.settings.idle:
            self.fail(timed_out(f"nothing came for {self.settings.idle:g} s; send packets, or end the stream", "idle"))
        elif not (self._inbox or self._working or self._finished):
            local = self._clock.now()
            due = self._deadline is not None and self._deadline <= local and not self.plan.recorded
            if due and not self.draining:
                self._put(self._intake.advance, local)
            elif now >= self._next_stats:
                self._next_stats = now + self.settings.report_interval
                self._working = True
                self._submit(lambda: self._post(self._worked, self._inbox.count(self._deadline)))

    def _bound(self, now: float) -> None:
        """A client without manners goes; one that was held back, or made us wait, goes on."""
        if (refused := self.manners.refused(now, self.outbox.crowded)) is not None:
            self.fail(refused)
        elif (deaf := self.manners.deaf(now)) is not None:
            self.hung_up = deaf
            self.cut.set()
        elif self.room and not self.readable.is_set():
            self.readable.set()
        self._schedule()

    # -- the pool's thread --------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        full = self._in_flight >= self.settings.in_flight
        unread = self.plan.recorded and self.outbox.crowded
        if self._inbox and not (self._working or full or unread or self.ended):
            self._working = True
            self._submit(lambda: self._post(self._worked, self._inbox.work()))

    # -- what came of it ----------------------------------------------------------------------------------------------

    def _worked(self, turn: Turn) -> None:
        self._working = False
        self._inbox.settle(turn)
        if self._closed:
            self._settle()
        if self.ended or self._closed:
            return
        self._deadline = turn.deadline
        waited = 0.0 if turn.came is None else max(0.0, self._clock.now() - turn.came)
        try:
            for clip, needed in turn.clips:
                self._hand_on(self._progress.rename(clip), needed, waited)
            if turn.stats is not None:
                self._report(turn.stats)
        except Refused as refused:
            turn.failure = refused
        if turn.failure is not None:
            self.fail(turn.failure)
            return
        if turn.finished and not self._finished:
            self._finished = True
            self.offer.dispatcher.end(self.stream)
        if self.room and not self.readable.is_set():
            self.readable.set()
        self._schedule()
        if self.draining:
            self.outbox.ready.set()

    def _hand_on(self, clip: Clip, needed: dict[str, int], waited: float) -> None:
        """A clip closed, ``waited`` seconds after what closed it was read: say so, and give it to the model."""
        now = self._real.now()
        self._progress.closed(clip, needed)
        if self._progress.useless(clip):
            return
        self._latency.closed(clip, now)
        self.observer.stage("wait", clip.wait_ms / 1e3)
        self.observer.stage("decode", clip.decode_ms / 1e3)
        if not self._progress.foreign(clip.index):
            report = pb.StreamResponse(clip_report=clip_report_to_wire(ClipReport.of(clip)))
            self.outbox.put("report", report)
        self._in_flight += 1
        self.offer.dispatcher.submit(self.stream, clip, self._pace.deadline(clip, now - waited))

    def _answered(self, answer: Any) -> None:
        """What the model said; called in the event loop."""
        if self.ended or self._closed:
            return
        try:
            self._take(answer)
        except Refused as refused:
            self.fail(refused)
        else:
            self._schedule()
            if self.draining:
                self.outbox.ready.set()

    def _take(self, answer: Any) -> None:
        if answer.error is not None:
            log.error("the model failed", stream=self.ident, why=str(answer.error))
            raise failed(str(answer.error))
        if answer.shed is not None:
            self._shed += 1
            self._intake.decided(self._progress.own(answer.shed))
        now = self._real.now()
        for prediction in answer.predictions:
            if prediction.head in self.plan.heads and not self._progress.foreign(prediction.clip):
                self._say(prediction, now)
        if answer.encoded is not None:
            self._in_flight = max(0, self._in_flight - 1)
            ack = None
            if not answer.encoded.version:
                box = getattr(answer.encoded.face, "box", None) or ()
                ack = self._progress.answered(answer.encoded.clip, answer.encoded.epoch, box)
            if ack is not None:
                self.outbox.progress(ack)
        if answer.last:
            self._conclude()

    def _say(self, prediction: Prediction, now: float) -> None:
        final = prediction.status == FINAL
        key = (prediction.epoch, prediction.clip, prediction.head, prediction.revision)
        response = pb.StreamResponse(prediction=prediction_to_wire(prediction))
        self.outbox.put("final" if final else "provisional", response, key, now)
        if final:
            self._finals += 1

    def sent(self, clip: int, since: float) -> None:
        """A prediction about ``clip`` that was ready at ``since`` has left."""
        now = self._real.now()
        self.observer.stage("send", now - since)
        self.manners.read_something()
        if self.plan.recorded:
            self._schedule()
        if (took := self._latency.sent(clip, now)) is not None:
            self.observer.end_to_end(took)

    def _report(self, stats: StreamStats) -> None:
        shed, dropped = self._shed + self._intake.shed, self.outbox.dropped
        known = replace(stats, clips_shed=shed, predictions_final=self._finals, responses_dropped=dropped)
        self.outbox.put("stats", pb.StreamResponse(stats=stats_to_wire(known)))

    def _conclude(self) -> None:
        """Everything was answered: totals last of all."""
        self.outbox.progress(self._progress.finished(self._intake.received()))
        self._report(self._intake.stats())
        self.done = True
        self._wake()
