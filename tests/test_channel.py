"""The channel: shared state in continuous time, statistics of every profile, and the same bits for ever."""

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import UsageError
from imputation.channel import PROFILES, Channel, Profile, open_profile, read_trace
from imputation.gilbert import from_dwell
from imputation.profiles import Link

AUDIO = 0.02  # seconds between packets
LINKS = {name: p for name, p in PROFILES.items() if isinstance(p.process, Link) and p.process.bad_share > 0}


def audio_times(count: int) -> np.ndarray:
    return np.arange(count) * AUDIO


# --- statistics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wifi-good", "wifi-burst", "wifi-poor", "congestion", "congestion-severe"])
def test_mean_loss_and_chance_of_any_loss_follow_the_formulas(name):
    link = PROFILES[name].process
    model = from_dwell(link.good_seconds, link.bad_seconds, AUDIO, link.loss_good, link.loss_bad)
    n = 400_000
    lost = Channel(PROFILES[name], seed=12).lost("audio", audio_times(n))

    # Correlated draws are worth fewer independent ones: variance of the state's mean over n packets.
    state = model.bad_share * (1 - model.bad_share) * (link.loss_bad - link.loss_good) ** 2
    variance = model.loss * (1 - model.loss) / n + state * 2 / (model.p + model.r) / n
    assert abs(lost.mean() - model.loss) < 4 * variance**0.5
    runs = np.count_nonzero(lost[1:] & ~lost[:-1])
    assert lost.sum() / runs == pytest.approx(model.burst, rel=0.05)
    for packets in (20, 25):
        touched = lost.reshape(-1, packets).any(axis=1).mean()
        worth = n / packets / (1 + 2 / (packets * (model.p + model.r)))
        assert abs(touched - model.any_loss(packets)) < 4 * (0.25 / worth) ** 0.5


@pytest.mark.parametrize("name", ["lte-handover", "lte-driving", "camera-stall", "mic-mute", "both-drop"])
def test_outages_with_a_long_tail_have_the_mean_of_their_profile(name):
    profile = PROFILES[name]
    modality = profile.modalities[0]
    hours = 12
    lost = Channel(profile, seed=5).lost(modality, np.arange(hours * 36_000) * 0.1)
    cycles = hours * 3600 / (profile.process.good_seconds + profile.process.bad_seconds)
    assert lost.mean() == pytest.approx(profile.loss, rel=4 * 1.7 / cycles**0.5)


def test_mean_losses_are_those_of_the_table():
    percent = {name: round(100 * profile.loss, 2) for name, profile in PROFILES.items()}
    assert percent == {
        "clean": 0, "wired": 0.05, "iid-1": 1, "iid-5": 5, "iid-10": 10, "iid-20": 20, "wifi-good": 1.09,
        "wifi-burst": 2.88, "wifi-poor": 8.67, "lte-handover": 1.77, "lte-driving": 7.01, "congestion": 7.18,
        "congestion-severe": 19.2, "camera-stall": 5.66, "mic-mute": 9.09, "both-drop": 7.59,
    }  # fmt: skip


def test_a_stream_starts_in_the_stationary_state_and_not_in_the_good_one():
    link = PROFILES["congestion-severe"]
    first = [Channel(link, seed).bad("audio", np.zeros(1))[0] for seed in range(250)]
    assert np.mean(first) == pytest.approx(0.4, abs=4 * (0.24 / 250) ** 0.5)


def test_what_is_left_of_a_long_tailed_outage_at_the_start_is_longer_than_an_outage():
    link = Link(good_seconds=40, bad_seconds=40, loss_good=0, loss_bad=1, bad_sigma=0.8)
    profile, times = Profile(name="dead half of the time", process=link), np.arange(0, 400, 0.5)
    first = [Channel(profile, seed).bad("audio", times) for seed in range(400)]
    left = [np.argmin(bad) * 0.5 for bad in first if bad[0]]
    assert len(left) == pytest.approx(200, abs=40)
    # E[X^2] / 2 E[X] = 40 exp(0.64) / 2 = 37.9 s for a log-normal outage; half a mean outage would be 20
    assert np.mean(left) == pytest.approx(37.9, abs=4 * 45 / len(left) ** 0.5)


def test_modalities_of_one_link_fail_together_and_devices_fail_alone():
    times = audio_times(200_000)
    both = Channel(PROFILES["both-drop"], 3)
    phi = np.corrcoef(both.lost("audio", times), both.lost("video", times))[0, 1]
    assert phi > 0.9
    stall = Channel(PROFILES["camera-stall"], 3)
    assert not stall.lost("audio", times).any() and stall.lost("video", times).any()
    alone = Channel(open_profile("iid-20"), 3)
    assert abs(np.corrcoef(alone.lost("audio", times), alone.lost("video", times))[0, 1]) < 0.01


# --- laws -----------------------------------------------------------------------------------------------------

SPELLINGS = [*PROFILES, "iid-7.5", "clips-30", "ge:0.1,0.4,0.02,0.9", "wifi-poor+reorder+dup"]


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(SPELLINGS),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    start=st.sampled_from([-5.0, 0.0, 3595.0, 1.7e9]),
    other_first=st.booleans(),
)
def test_chunking_and_the_other_modality_change_nothing(name, cuts, start, other_first):
    profile, times = open_profile(name), start + audio_times(400)
    whole, parts = Channel(profile, 8), Channel(profile, 8)
    if other_first:
        parts.lost("video", times[::3])
        parts.arrivals("video", times[::3])
    pieces = np.split(times, sorted(cuts))
    assert whole.lost("audio", times).tolist() == np.concatenate([parts.lost("audio", p) for p in pieces]).tolist()
    expected = whole.arrivals("audio", times).tolist()
    assert expected == np.concatenate([parts.arrivals("audio", p) for p in pieces]).tolist()
    again = np.concatenate([parts.copies("audio", len(p)) for p in pieces])
    np.testing.assert_array_equal(whole.copies("audio", 400), again)


@given(st.sampled_from(SPELLINGS), st.integers(0, 2**63))
@settings(max_examples=15, deadline=None)
def test_delays_are_never_negative_and_the_queue_keeps_its_order(name, seed):
    profile, times = open_profile(name), audio_times(300)
    channel = Channel(profile, seed)
    arrivals = channel.arrivals("audio", times)
    assert (arrivals >= times - 1e-12).all()
    assert profile.reordered or (np.diff(arrivals) >= 0).all()


def test_delays_and_arrivals_tell_the_same():
    times = audio_times(1000)
    delays = Channel(PROFILES["wifi-poor"], 1).delays("audio", times)
    np.testing.assert_allclose(times + delays, Channel(PROFILES["wifi-poor"], 1).arrivals("audio", times), atol=1e-12)
    assert 0.03 < delays.mean() < 0.045  # 30 ms, and what the queue adds


def test_an_added_variant_leaves_the_losses_alone():
    times = audio_times(5000)
    plain = Channel(open_profile("wifi-burst"), 4).lost("video", times)
    assert (Channel(open_profile("wifi-burst+reorder+dup"), 4).lost("video", times) == plain).all()
    assert (Channel(open_profile("wifi-burst"), 5).lost("video", times) != plain).any()


def test_whole_clips_are_lost_on_the_grid_and_each_modality_for_itself():
    profile = open_profile("clips-40", clip_seconds=0.4, origin=0.1)
    times = 0.1 + 0.02 * np.arange(20 * 500)
    channel = Channel(profile, 2)
    audio, video = channel.lost("audio", times).reshape(500, 20), channel.lost("video", times).reshape(500, 20)
    assert (audio.all(axis=1) == audio.any(axis=1)).all()
    assert audio[:, 0].mean() == pytest.approx(0.4, abs=4 * (0.24 / 500) ** 0.5)
    assert abs(np.corrcoef(audio[:, 0], video[:, 0])[0, 1]) < 0.2


def test_a_packet_on_a_clip_boundary_belongs_to_the_clip_it_starts():
    profile = open_profile("clips-50", clip_seconds=0.4)
    channel, clips = Channel(profile, 0), np.arange(3000)
    inside = channel.bad("audio", clips * 0.4 + 0.2)
    np.testing.assert_array_equal(channel.bad("audio", clips * 0.4), inside)  # 3 * 0.4 / 0.4 is not quite 3


def test_a_chain_in_slots_holds_its_p_and_r_exactly_even_where_no_link_in_time_could():
    lost = Channel(open_profile("ge:0.9,0.8"), 6).lost("audio", audio_times(200_000))
    assert lost.mean() == pytest.approx(0.9 / 1.7, abs=0.005)
    assert lost[1:][lost[:-1]].mean() == pytest.approx(0.2, abs=0.006)


# --- the same bits for ever -------------------------------------------------------------------------------------

GOLDEN = {
    "clean": "9032c9263c41",
    "wired": "b5523b6a15c0",
    "iid-1": "87bc5ca74b9f",
    "iid-5": "9fae4f09bee5",
    "iid-10": "20a8f32e3c7e",
    "iid-20": "9c75044ebe5d",
    "wifi-good": "25183735163a",
    "wifi-burst": "04a9cd9e4e63",
    "wifi-poor": "3feeff875db0",
    "lte-handover": "6e48538c8e12",
    "lte-driving": "dc32aad850af",
    "congestion": "2c1051bcfb60",
    "congestion-severe": "3bae677b78ff",
    "camera-stall": "949dd677b3b1",
    "mic-mute": "00b82b1c202e",
    "both-drop": "c0df00df0058",
    "iid-7.5": "8f2c51195c21",
    "clips-30": "6ca23514fde0",
    "ge:0.1,0.4,0.02,0.9": "55db112fa4ad",
    "wifi-poor+reorder+dup": "a70ce905bff0",
}


def fingerprint(name: str) -> str:
    """Both modalities' losses and arrivals, over a border between two hours, at packet times that are no round."""
    channel = Channel(open_profile(name), seed=2026)
    digest = hashlib.sha256()
    for modality, spacing in (("video", 1 / 150), ("audio", 0.02)):
        times = 3590.0 + np.arange(4000) * spacing
        digest.update(np.packbits(channel.lost(modality, times)).tobytes())
        digest.update(np.packbits(channel.bad(modality, np.arange(-2000, 2000) * 1.7)).tobytes())
        digest.update(channel.arrivals(modality, times).astype("<f8").tobytes())
        digest.update(channel.copies(modality, 4000).astype("<f8").tobytes())
    return digest.hexdigest()[:12]


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_seed_means_the_same_losses_for_ever(name):
    assert fingerprint(name) == GOLDEN[name]


# --- spellings --------------------------------------------------------------------------------------------------


def test_an_unknown_profile_lists_close_names_in_one_sentence():
    with pytest.raises(UsageError) as caught:
        open_profile("wifi-brust")
    assert str(caught.value) == (
        "unknown loss profile 'wifi-brust'; use wifi-burst, wifi-poor, wifi-good, "
        "or iid-N, clips-N, ge:p,r,loss_good,loss_bad or trace:FILE"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("iid-x", "unknown loss profile 'iid-x'"),
        ("iid-120", "'iid-120' asks for 120 %; give a percentage from 0 to 100"),
        ("clips--5", "give a percentage"),
        ("iid-nan", "give a percentage"),
        ("ge:0.1", "does not hold 2 or 4 numbers"),
        ("ge:0.1,b", "does not hold 2 or 4 numbers"),
        ("ge:0.1,4", "r=4 is not a probability"),
        ("wifi-good+rainy", r"unknown variant \+rainy of loss profile wifi-good"),
        ("wifi-good+frozen", r"\+frozen is a rendering of camera-stall, not of wifi-good"),
        ("trace:/no/such/file", "cannot be read .*No such file"),
        ("no/such/trace.txt", "cannot be read"),
        ("", "unknown loss profile ''"),
    ],
)
def test_what_cannot_be_spelled_is_refused_in_a_sentence(text, says):
    with pytest.raises(UsageError, match=says):
        open_profile(text)


def test_variants_add_up_and_the_text_is_kept():
    profile = open_profile(" camera-stall+frozen+dup ")
    assert (profile.name, profile.rendering, profile.duplicated) == ("camera-stall", "frozen", 0.001)
    assert profile.text == "camera-stall+frozen+dup"


# --- traces -----------------------------------------------------------------------------------------------------


def test_a_trace_repeats_for_ever_from_a_random_start(tmp_path: Path):
    path = tmp_path / "office+wifi.txt"
    slots = (np.random.default_rng(0).random(1000) < 0.1).astype(int)
    path.write_text("\n".join(map(str, slots)) + "\n")
    profile = open_profile(str(path))  # a plus sign in a path is no variant
    lost = Channel(profile, 1).lost("audio", audio_times(3000))
    assert (lost[:1000] == lost[1000:2000]).all() and lost.sum() == 3 * slots.sum()
    offset = next(k for k in range(1000) if (np.roll(slots, -k) == lost[:1000]).all())
    assert offset != 0
    assert open_profile(f"lte-trace:{path}+dup").duplicated


def test_a_trace_is_known_by_its_content_and_may_be_compressed(tmp_path: Path):
    (tmp_path / "a.txt").write_text("0\n1\n1\n0\n")
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"0\r\n1\r\n1\r\n0", mtime=0))
    one, two = open_profile(f"trace:{tmp_path / 'a.txt'}"), open_profile(f"trace:{tmp_path / 'b.gz'}")
    assert one.name == two.name
    assert one.loss == 0.5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"0\n1\n7\n", "has '7' in line 3"),
        (b"0\n12\n", "has '12' in line 2"),
        (b"\xff\xfe\x00", "in line 1"),
        (gzip.compress(b"0\n" * 999, mtime=0)[:-9], "cannot be read"),
        (b"\x1f\x8bnonsense", "cannot be read"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_the_line(tmp_path: Path, content: bytes, says: str):
    path = tmp_path / "trace.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        open_profile(str(path))


def test_a_folder_is_no_trace(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be read"):
        open_profile(f"trace:{tmp_path}")


@pytest.mark.skipif("LEGATO_DATA" not in os.environ, reason="LEGATO_DATA names no folder of recordings")
def test_recorded_lte_traces_lose_what_their_summary_says():
    folder = Path(os.environ["LEGATO_DATA"]) / "loss-traces" / "derived-masks"
    profile = open_profile(str(folder / "ATT-LTE-driving-2016.up.audio.d200ms.audio_is_lost.txt.gz"))
    assert 100 * profile.loss == pytest.approx(11.6, abs=0.06)
    capacity = folder.parent / "mahimahi" / "ATT-LTE-driving-2016.down.gz"
    with pytest.raises(UsageError, match="write 0 or 1"):
        read_trace(capacity)
