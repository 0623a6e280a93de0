"""The client against a server that fails in every way: every final prediction once, the same ones, or one sentence."""

import random
import threading
import time
from dataclasses import replace
from fractions import Fraction

import grpc
import pytest

from runtime.errors import ServiceError, SourceError, UsageError
from runtime.packet import Gap, Packet, StreamInfo
from runtime.serve.answers import ClipReport, StreamStats
from runtime.serve.client import Client, Tls, parse_address
from runtime.serve.client_session import Retrying, Started
from runtime.serve.client_state import Progress
from runtime.serve.refusals import Backoff
from tests.fake_service import CLIP, Act, start
from tests.fakes import CODECS, INFO, ListSource, packet

CLIPS = 6
PACKETS = [p for i in range(CLIPS * CLIP) for p in (packet(seq=i), packet("audio", i))]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No test waits for a back-off."""
    monkeypatch.setattr(Backoff, "FIRST", 0.001)
    monkeypatch.setattr(Backoff, "MOST", 0.01)


def source(items=None, info=INFO):
    return ListSource(PACKETS if items is None else items, info)


def run(server, what=source, **options):
    with Client(server.address, rng=random.Random(1), **options.pop("client", {})) as client:
        return list(client.run(what, **options))


def finals(predictions):
    return [(p.clip, p.label, p.confidence) for p in predictions if p.status == "final"]


@pytest.fixture(scope="module")
def undisturbed():
    server = start()
    try:
        return finals(run(server))
    finally:
        server.server.stop(None)


def test_an_undisturbed_stream_gives_every_prediction(serve, undisturbed):
    assert [clip for clip, _, _ in undisturbed] == list(range(CLIPS))
    assert {confidence for _, _, confidence in undisturbed} == {1.0}
    events = []
    predictions = run(serve(), observe=events.append)
    assert [(p.clip, p.status) for p in predictions] == [
        (0, "provisional"),
        *(pair for k in range(1, CLIPS) for pair in ((k - 1, "final"), (k, "provisional"))),
        (CLIPS - 1, "final"),
    ]
    assert {p.stream for p in predictions} == {"fake"}  # under the source's name, as a replay says it
    assert list(predictions[0].probabilities) == ["a", "b"]  # in the bundle's order
    assert isinstance(events[0], Started)
    assert events[0].bundle.name == "counting"
    assert isinstance(events[-1], StreamStats)
    assert sum(isinstance(event, ClipReport) for event in events) == CLIPS


def test_five_lines_of_python():
    import runtime

    assert runtime.Client is Client
    assert "Client" in runtime.__all__


def test_the_config_comes_first_and_says_what_is_sent(serve):
    server = serve()
    run(server, bundle="counting", heads=["count"], lookahead=2, consent=True)
    first = server.service.heard[0][0].config
    assert (first.bundle, list(first.heads), first.lookahead, first.recording_consent) == (
        "counting",
        ["count"],
        2,
        True,
    )
    assert first.name == "fake"
    assert [codec.codec for codec in first.codecs] == ["mjpeg", "pcm_s16le"]
    assert not first.resume_token
    assert not first.HasField("resume_point")
    last = [r for r in server.service.heard[0] if r.WhichOneof("request") == "end_of_stream"]
    assert [(r.end_of_stream.modality, r.end_of_stream.last_seq) for r in last] == [(1, 59), (2, 59)]


@pytest.mark.parametrize("fresh", [False, True], ids=["the server survives", "the server is replaced"])
@pytest.mark.parametrize("once", [False, True], ids=["read again", "kept"])
@pytest.mark.parametrize("after", range(0, 20, 3))
def test_a_cut_anywhere_loses_and_doubles_nothing(serve, undisturbed, after, once, fresh):
    server = serve([Act(after=after), Act(fresh=fresh, after=after + 1), Act(fresh=fresh)])
    assert finals(run(server, source() if once else source)) == undisturbed


def test_random_cuts_lose_and_double_nothing(serve, undisturbed):
    rng = random.Random(7)
    for _ in range(8):
        codes = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, None]
        acts = [Act(after=rng.randrange(12), fresh=rng.random() < 0.5, code=rng.choice(codes)) for _ in range(6)]
        assert finals(run(serve(acts))) == undisturbed


def test_every_prediction_has_its_own_key(serve):
    acts = [Act(after=n, fresh=n % 2 == 0) for n in (5, 7, 9)]
    keys = [(p.clip, p.head, p.revision) for p in run(serve(acts))]
    assert len(keys) == len(set(keys))


def test_going_away_is_followed_with_its_token_and_delay(serve, undisturbed):
    server, events = serve([Act(after=4, going=True, retry_ms=30)]), []
    assert finals(run(server, observe=events.append)) == undisturbed
    assert server.service.heard[1][0].config.resume_token
    [retrying] = [event for event in events if isinstance(event, Retrying)]
    assert retrying.delay >= 0.03


def test_retry_info_is_waited_for(serve, undisturbed):
    events = []
    full = Act(after=0, code=grpc.StatusCode.RESOURCE_EXHAUSTED, details="all streams are taken", retry_ms=50)
    assert finals(run(serve([full]), observe=events.append)) == undisturbed
    [retrying] = [event for event in events if isinstance(event, Retrying)]
    assert retrying.reason == "all streams are taken"
    assert retrying.delay >= 0.05


def test_a_forgotten_stream_begins_afresh_from_what_is_needed(serve, undisturbed):
    server = serve([Act(after=12), Act(after=0, fresh=True, code=grpc.StatusCode.DATA_LOSS), Act()])
    assert finals(run(server)) == undisturbed
    assert server.service.heard[1][0].config.resume_token
    assert not server.service.heard[2][0].config.resume_token
    sent = [p.seq for r in server.service.heard[2] for p in r.packets.packets if p.modality == 1]
    assert sent[0] > 0  # what was acknowledged is not sent again
    assert sent == list(range(sent[0], CLIPS * CLIP))


@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (
            Act(
                after=0, code=grpc.StatusCode.INVALID_ARGUMENT, details="codec 'xyz' is not allowed", field="codecs[0]"
            ),
            r"refused: codec 'xyz' is not allowed \(codecs\[0\]\)$",
        ),
        (
            Act(after=0, code=grpc.StatusCode.PERMISSION_DENIED, details="no scope"),
            "no scope; ask for a token that may",
        ),
        (Act(after=0, code=grpc.StatusCode.RESOURCE_EXHAUSTED, details="message too large"), "too large; send less"),
        (Act(after=3, code=grpc.StatusCode.FAILED_PRECONDITION, details="packet before config."), "before config$"),
    ],
)
def test_what_no_retry_helps_is_one_sentence(serve, act, complaint):
    server = serve([act])
    with pytest.raises(ServiceError, match=complaint):
        run(server)
    assert len(server.service.heard) == 1


def test_tokens_travel_and_a_wrong_one_is_told(serve, undisturbed):
    server = serve(token="secret")
    assert finals(run(server, client={"token": "secret"})) == undisturbed
    with pytest.raises(ServiceError, match="token is not known; give a token that it knows with --token"):
        run(server, client={"token": "wrong"})


def test_an_answer_that_makes_no_sense_is_told(serve):
    with pytest.raises(ServiceError, match="answered wrongly: status is missing"):
        run(serve([Act(wrong=True)]))


def test_a_server_that_is_not_there_is_given_up(serve):
    began = time.monotonic()
    with pytest.raises(ServiceError, match=r"localhost:1 could not be reached for \d s .* legato serve runs there"):
        list(Client("localhost:1", patience=0.1).run(source))
    assert time.monotonic() - began < 5


def test_a_silent_server_is_left(serve, undisturbed, monkeypatch):
    from runtime.serve import client_session

    monkeypatch.setattr(client_session.Session.__init__, "__kwdefaults__",
                        {**client_session.Session.__init__.__kwdefaults__, "silence": 0.2})  # fmt: skip
    server, events = serve([Act(silent=True)]), []
    assert finals(run(server, observe=events.append)) == undisturbed
    assert any(isinstance(event, Retrying) and "nothing was heard" in event.reason for event in events)


def test_a_server_that_never_acknowledges_does_not_fill_memory(serve, undisturbed):
    server = serve([Act(acks=False)])
    with pytest.raises(ServiceError, match="acknowledged nothing for 0 s, and what is kept for it is full"):
        run(server, source(), client={"patience": 0.0}, keep_bytes=20_000)
    assert finals(run(serve([Act(acks=False, after=9), Act()]), keep_bytes=1)) == undisturbed  # a path needs no memory


def test_losses_of_the_source_stay_losses(serve):
    kept = [p for p in PACKETS if not (p.modality == "video" and 12 <= p.seq < 17)]
    told = finals(run(serve([Act(after=9), Act(fresh=True)]), lambda: source(kept)))
    assert told == finals(run(serve(), lambda: source(kept)))
    assert told[1][2] == 0.75


def test_a_broken_source_is_told_and_ends_the_call(serve):
    def broken():
        yield from PACKETS[:30]
        raise SourceError("the disk is gone")

    class Broken(ListSource):
        def packets(self):
            return broken()

    with pytest.raises(SourceError, match="the disk is gone"):
        run(serve(), Broken([]))


def test_stopping_early_ends_every_thread_and_closes_the_source(serve):
    before = set(threading.enumerate())
    mine = source()
    predictions = Client(serve().address).run(mine)
    assert next(predictions).clip == 0
    began = time.monotonic()
    predictions.close()
    assert time.monotonic() - began < 1
    assert mine.closed
    ours = [t for t in set(threading.enumerate()) - before if t.name.startswith("legato")]
    assert not ours


def test_a_slow_reader_loses_nothing(serve, undisturbed):
    told = []
    for prediction in Client(serve().address).run(source):
        time.sleep(0.005)
        told.append(prediction)
    assert finals(told) == undisturbed


def test_what_is_stored_is_said_after_it_was_stored(serve, monkeypatch):
    monkeypatch.setattr("runtime.serve.client_session.STORE_SECONDS", 0.0)
    monkeypatch.setattr("runtime.serve.outgoing.ACK_SECONDS", 0.0)
    server, saved = serve(), []
    run(server, speed="realtime", what=lambda: source(PACKETS[:90]),
        stored=lambda progress: saved.append(progress.finals.get("count", -1)))  # fmt: skip
    acks = [r.ack.prediction.clip for r in server.service.heard[0] if r.WhichOneof("request") == "ack"]
    assert acks
    assert saved[-1] >= 1
    assert max(acks) <= saved[-1] + 1  # a provisional one is one clip ahead


@pytest.mark.parametrize("at", range(1, 11, 2))
@pytest.mark.parametrize("fresh", [False, True])
def test_a_restarted_client_goes_on_from_its_progress(serve, undisturbed, at, fresh):
    """The first client dies after its progress was saved for the ``at``-th time; what it did later is forgotten."""
    server, saved, told = serve([Act(), Act(fresh=fresh)]), [], []

    def keep(progress):
        saved.append((Progress.from_dict(progress.as_dict()), len(told)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runtime.serve.client_session.STORE_SECONDS", 0.0)
        predictions = Client(server.address).run(source, progress=Progress(), stored=keep)
        for prediction in predictions:
            told.append(prediction)
            if len(saved) > at:
                break
        predictions.close()
        progress, had = saved[min(at, len(saved) - 1)]
        more = list(Client(server.address).run(source, progress=progress, stored=keep))
    assert finals(told[:had] + more) == undisturbed


def test_a_complete_progress_sends_nothing(serve):
    server = serve()
    assert run(server, progress=Progress(complete=True)) == []
    assert server.service.heard == []


def test_a_change_of_format_is_told_again_after_a_cut(serve, undisturbed):
    from runtime.packet import Decision

    change = Decision(
        kind="format_change", modality="video", arrival=0.0, codec=replace(CODECS["video"], width=64, height=48)
    )
    items = [*PACKETS[:20], change, *PACKETS[20:]]
    for what in (lambda: source(items), source(items)):
        server = serve([Act(after=14), Act(fresh=True)])
        assert finals(run(server, what)) == undisturbed
        told = [r.codec.width for r in server.service.heard[0] if r.WhichOneof("request") == "codec"]
        assert told == [64]
        assert [c.width for c in server.service.heard[1][0].config.codecs if c.modality == 1] == [64]


def test_real_time_sends_no_packet_before_its_time(serve):
    server = serve()
    began = time.monotonic()
    run(server, lambda: source(PACKETS[:60]), speed="realtime", batch_ms=100)
    assert time.monotonic() - began >= 1.1
    batches = [r for r in server.service.heard[0] if r.WhichOneof("request") == "packets"]
    assert 3 <= len(batches) <= 16  # a loaded machine is late, never early


class FakeLive(ListSource):
    """A camera that has taken pictures already, and goes on until it is closed."""

    ended = False

    def read(self, timeout):
        return None

    def packets(self):
        yield from self.items


def test_a_live_source_reports_what_it_gave_up(serve, undisturbed):
    items = [replace(p, arrival=p.seconds) for p in PACKETS]
    events = []
    told = run(serve(), FakeLive(items), observe=events.append, keep_bytes=12_000)
    gaps = [event for event in events if isinstance(event, Gap)]
    assert gaps
    assert {gap.modality for gap in gaps} == {"video", "audio"}
    assert sum(gap.count for gap in gaps if gap.modality == "video") == gaps[0].count
    assert gaps[0].first_seq == 0
    assert finals(told)


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("localhost:5", "localhost:5", True),
        ("localhost", "localhost:50051", True),
        ("127.0.0.2:80", "127.0.0.2:80", True),
        ("[::1]:80", "[::1]:80", True),
        ("::1", "[::1]:50051", True),
        ("unix:/tmp/x", "unix:/tmp/x", True),
        ("example.org:443", "example.org:443", False),
        ("192.168.1.2", "192.168.1.2:50051", False),
        ("localhost.example.org", "localhost.example.org:50051", False),
    ],
)
def test_addresses(text, address, loopback):
    assert parse_address(text) == (address, loopback)


@pytest.mark.parametrize("text", ["", "a b", "http://x", "x:y", "x:0", "x:70000", "unix:", "[::1", "x:1:2"])
def test_what_is_no_address_is_told(text):
    with pytest.raises(UsageError, match=r"is not host:port|is not between"):
        parse_address(text)


def test_another_machine_is_spoken_to_with_tls_only():
    assert Client("192.0.2.1")._credentials is not None
    assert Client("192.0.2.1", insecure=True)._credentials is None
    assert Client("localhost")._credentials is None
    assert Client("localhost", tls=Tls())._credentials is not None


def test_wrong_options_are_told(tmp_path):
    with pytest.raises(UsageError, match="contradict"):
        Client("localhost", tls=Tls(), insecure=True)
    with pytest.raises(UsageError, match="both --tls-cert and --tls-key"):
        Client("localhost", tls=Tls(cert=tmp_path / "x"))
    with pytest.raises(UsageError, match="cannot be read"):
        Client("localhost", tls=Tls(ca=tmp_path / "none.pem"))
    with pytest.raises(UsageError, match="copy it again"):
        Client("localhost", token="two words")
    with pytest.raises(UsageError, match="speed 'fast' is unknown"):
        Client("localhost").run(source, speed="fast")
    with pytest.raises(UsageError, match="batch_ms 200"):
        Client("localhost").run(source, batch_ms=200)


def test_a_bundle_is_described(serve):
    server = serve()
    served = Client(server.address).describe()
    assert (served.name, served.clip_seconds, served.heads) == ("counting", Fraction(2, 5), {"count": ("a", "b")})
    with pytest.raises(ServiceError, match="'other' is not offered"):
        Client(server.address).describe("other")


def test_an_oversized_packet_is_told(serve, monkeypatch):
    monkeypatch.setattr("runtime.serve.outgoing.PACKET_BYTES", 10)
    large = replace(PACKETS[0], payload=b"\1" * 11)
    with pytest.raises(SourceError, match="video packet 0 has 11 bytes and a message holds 10"):
        run(serve(), lambda: source([large]))


def test_large_packets_go_alone(serve):
    server = serve()
    big = [replace(packet(seq=i), payload=b"\1" * (200 << 10)) for i in range(4)]
    info = StreamInfo(name="x" * 300, codecs={"video": CODECS["video"]}, origin=Fraction(0))
    run(server, lambda: source(big, info))
    batches = [r.packets.packets for r in server.service.heard[0] if r.WhichOneof("request") == "packets"]
    assert [len(batch) for batch in batches] == [1, 1, 1, 1]
    assert len(server.service.heard[0][0].config.name) == 256
    assert all(isinstance(p, Packet) for p in big)
