"""The engine: one encode per clip version, filling only what is absent, abstention, provenance, determinism."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from encoders.clips import AudioSpec, VideoSpec
from imputation.features import Standardiser
from imputation.imputer import build
from imputation.ladder import Ladder
from runtime.clip import Clip
from runtime.config import WindowSettings
from runtime.engine import Engine, Task
from runtime.errors import ConfigError, DataError, UsageError
from runtime.forward import choose_device
from runtime.stream import Encoded, Stream, Windows

LABELS = ("nobody", "on screen", "off screen")


class Mean(nn.Module):
    """An encoder whose feature says which clip it saw: the mean brightness or loudness, D times."""

    dim, clip_seconds, context_seconds = 4, Fraction(2, 5), Fraction(0)

    def __init__(self, spec: VideoSpec | AudioSpec) -> None:
        super().__init__()
        self.spec, self.seen = spec, 0

    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        assert len(clips) == 1, "deterministic mode runs at batch size 1"
        self.seen += 1
        return clips.float().flatten(1).mean(1, keepdim=True).expand(-1, self.dim)


class Last(nn.Module):
    """A head that reads the last clip: label 0 if its first number is below 0.5, else 1."""

    def forward(self, features: Any, presence: Any, variance: Any, exists: Any) -> torch.Tensor:
        self.view = (features, presence, variance, exists)
        value = features[:, -1, 0, 0]
        return torch.stack([torch.full_like(value, 0.5), value, torch.zeros_like(value)], -1) * 10


def plain(logits: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    return logits.softmax(-1), torch.zeros(len(logits), dtype=torch.bool)


def models(face: Any = None, region: str = "frame") -> Any:
    return SimpleNamespace(
        video_encoder=Mean(VideoSpec(frames=2, size=4, region=region)),
        audio_encoder=Mean(AudioSpec(sample_rate=100)),
        face=face,
        standardiser=Standardiser(torch.zeros(2, 4), torch.full((2, 4), 2.0)),
        ladder=Ladder([build("lerp")]).eval(),
        heads={"last": Last(), "other": Last()},
        calibration={"provisional": plain, "final": plain},
    )


def engine(made: Any = None, policy: dict[str, Sequence[str]] | None = None, **options: Any) -> Engine:
    task = Task(bundle="b", labels=LABELS, clip_seconds=Fraction(2, 5), window=4, ahead=2, content_policy=policy or {})
    return Engine(made or models(), task, **options)


def stream(lookahead: int = 0, min_clips: int = 1) -> Stream:
    return Stream("s", Windows(WindowSettings(clips=4, lookahead=lookahead, min_clips=min_clips)))


def clip(
    index: int, value: int = 2, *, lost: str = "", version: int = 0, epoch: int = 0, flags: tuple[str, ...] = ()
) -> Clip:
    """A clip of uniform brightness ``value``; ``lost`` names the modality that did not come ("both": neither)."""
    here = {m: lost not in (m, "both") for m in ("video", "audio")}
    return Clip(
        index=index,
        epoch=epoch,
        start=index * Fraction(2, 5),
        seconds=Fraction(2, 5),
        video=np.full((2, 4, 4), value, np.uint8) if here["video"] else None,
        audio=np.full(40, value, np.float32) if here["audio"] else None,
        presence=here,
        coverage={m: float(h) for m, h in here.items()},
        state={m: "observed" if h else "lost" for m, h in here.items()},
        flags={"video": flags, "audio": ()},
        severity={"video": 0.0, "audio": 0.0},
        version=version,
    )


def play(served: Engine, clips: list[Clip], to: Stream) -> list[Any]:
    out = []
    for item in clips:
        served.submit(to, item)
        out += served.run()
    served.end(to)
    return out + served.run()


def test_features_are_standardised_and_absent_places_are_zero():
    made = engine().encode(stream(), clip(0, 6, lost="audio"))
    assert made.raw.tolist() == [[6.0] * 4, [0.0] * 4]
    assert made.features.tolist() == [[3.0] * 4, [0.0] * 4]
    assert made.presence.tolist() == [True, False]


def test_a_clip_is_encoded_once_per_version_and_only_where_it_changed():
    made = models()
    served, to = engine(made), stream(lookahead=2)
    play(served, [clip(0), clip(1, lost="audio"), clip(1, version=1)], to)
    assert (made.video_encoder.seen, made.audio_encoder.seen) == (2, 2)


def test_windows_are_laid_out_with_their_last_clip_at_the_window_s_end():
    made = models()
    play(engine(made), [clip(0, 2), clip(1, 4)], stream())
    features, presence, variance, exists = made.heads["last"].view
    assert features[0, :, 0, 0].tolist() == [0, 0, 1, 2]
    assert exists[0].tolist() == [False, False, True, True] and variance.sum() == 0
    assert presence.shape == (1, 4, 2) and features.shape == (1, 4, 2, 4)


def test_an_absent_clip_is_filled_and_says_by_which_rung():
    last = play(engine(), [clip(0, 2), clip(1, 2, lost="video"), clip(2, 6)], stream())[-1]
    assert [c.rung["video"] for c in last.clips] == ["observed", "lerp", "observed"]
    assert [c.rung["audio"] for c in last.clips] == ["observed"] * 3
    assert last.observed_share == {"video": pytest.approx(2 / 3), "audio": 1.0}
    assert last.longest_gap_ms == pytest.approx(400)
    assert (last.start_seconds, last.end_seconds) == (0.0, pytest.approx(1.2))


def test_a_final_prediction_sees_the_clips_after_it():
    made = models()
    clips = [clip(0, 0), clip(1, 0, lost="video"), clip(2, 8)]
    first, last = [p for p in play(engine(made), clips, stream(lookahead=1)) if p.clip == 1]
    assert (first.status, first.revision, first.label) == ("provisional", 0, "nobody")
    assert (last.status, last.revision, last.label) == ("final", 1, "on screen")  # half way to the bright clip


def test_a_window_in_which_nothing_was_observed_abstains():
    said = play(engine(), [clip(k, lost="both") for k in range(2)] + [clip(2)], stream())
    assert [p.abstained for p in said] == [True, True, False]
    assert said[0].label is None and said[0].confidence == pytest.approx(1 / 3)
    assert sum(said[0].probabilities.values()) == pytest.approx(1)


def test_nothing_observed_abstains_even_if_the_lookahead_was():
    said = play(engine(), [clip(0, lost="both"), clip(1)], stream(lookahead=1))
    assert [(p.clip, p.status, p.abstained) for p in said][:3] == [
        (0, "provisional", True),
        (0, "final", True),
        (1, "provisional", False),
    ]


@pytest.mark.parametrize("lookahead", [0, 1])
def test_windows_in_which_nothing_was_observed_cost_no_model_and_say_the_same(lookahead, monkeypatch):
    lost = [clip(k, lost="both") for k in range(6)]
    many = engine(deterministic=False, precision="fp32")
    monkeypatch.setattr(many.together.ladder, "forward", lambda *_: pytest.fail("nothing was to be filled"))
    for head in many.together.heads.values():
        monkeypatch.setattr(head, "forward", lambda *_: pytest.fail("there was nothing to judge"))
    alone, together = (play(e, lost, stream(lookahead)) for e in (engine(), many))
    assert len(together) == len(alone) == 6 * (1 + lookahead)
    for a, b in zip(alone, together, strict=True):
        assert b.abstained
        assert replace(a, timings=None) == replace(b, timings=None)  # the rungs too


def test_the_default_is_the_first_head_and_an_unknown_one_is_named():
    assert {p.head for p in play(engine(), [clip(0)], stream())} == {"last"}
    assert [p.head for p in play(engine(heads=("other", "last")), [clip(0)], stream())] == ["other", "last"]
    with pytest.raises(UsageError, match="head 'gru' is not in this bundle; choose from last, other"):
        engine(heads=("gru",))


def test_another_fill_on_the_same_features_needs_no_second_encode():
    made = models()
    served, trace = engine(made), []
    to = stream()
    for item in [clip(0, 8), clip(1, lost="video")]:
        served.submit(to, item)
    said, seen = served.run(trace.append), made.video_encoder.seen
    zero = served.refilled(build("zero")).replay("s", trace, to.windows.settings)
    assert made.video_encoder.seen == seen
    assert said[-1].label == "on screen" and zero[-1].label == "nobody"
    assert zero[-1].clips[-1].rung == {"video": "zero", "audio": "observed"}


def test_content_policy_makes_a_flagged_feature_unbelievable():
    made = engine(policy={"frozen": ["video"]}).encode(stream(), clip(0, flags=("frozen",)))
    assert made.presence.tolist() == [False, True]
    assert made.state == {"video": "shed", "audio": "observed"} and made.features[0].sum() == 0
    assert engine().encode(stream(), clip(0, flags=("frozen",))).presence.all()


def test_a_feature_that_is_not_finite_is_refused_in_one_sentence():
    made = models()
    made.audio_encoder.encode = lambda clips: torch.full((1, 4), float("nan"))
    with pytest.raises(DataError, match="audio encoder gave a feature that is not finite for clip 5 of stream 's'"):
        engine(made).encode(stream(), clip(5))


class Finder:
    """Finds a face in bright clips only, and counts the clips it was shown."""

    def initial_state(self) -> int:
        return 0

    def locate(self, clip: Clip, state: int) -> tuple[np.ndarray | None, int, bool]:
        assert clip.video is not None
        found = bool(clip.video.max() > 1)
        return (clip.video if found else None), state + 1, found


def test_no_face_is_an_observed_fact_of_its_own():
    made = models(Finder(), "face")
    made.video_encoder.no_face = torch.full((4,), 10.0)
    to = stream()
    to.face = 0
    served = engine(made)
    seen, unseen = served.encode(to, clip(0, 6)), served.encode(to, clip(1, 0))
    assert seen.raw[0, 0] == 6 and "no_face" not in seen.flags["video"]
    assert unseen.raw[0, 0] == 10 and unseen.flags["video"] == ("no_face",) and unseen.presence[0]
    assert to.face == 2
    served.encode(to, clip(2, lost="video"))
    assert to.face == 2  # an absent clip shows no face and moves no box


def test_without_a_learned_vector_the_encoder_sees_a_black_crop():
    to = stream()
    to.face = 0
    made = models(Finder(), "face")
    assert engine(made).encode(to, clip(1, 1)).raw[0, 0] == 0 and made.video_encoder.seen == 1


def test_a_modality_without_encoder_is_not_spoken_of():
    made = models()
    made.audio_encoder = None
    said = play(engine(made), [clip(0), clip(1)], stream())[-1]
    assert set(said.observed_share) == {"video"} and set(said.clips[0].rung) == {"video"}
    assert not said.abstained and said.longest_gap_ms == 0


def test_two_runs_say_the_same_without_their_timings():
    clips = [clip(k, k % 5, lost="video" if k % 3 == 1 else "") for k in range(9)]
    first, second = (
        [p.as_dict(timings=False) for p in play(engine(), clips, stream(lookahead=2, min_clips=2))] for _ in range(2)
    )
    assert first == second and len(first) == 16


def test_warm_up_runs_every_model_and_leaves_no_trace():
    made = models()
    engine(made).warm_up()
    assert made.video_encoder.seen == made.audio_encoder.seen == 1
    assert made.heads["last"].view[0].shape == (1, 4, 2, 4)


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="device 'warp' is unknown"):
        choose_device("warp")
    assert choose_device("cpu") == "cpu"


def test_state_kept_for_repairs_is_bounded():
    to, served = stream(lookahead=2), engine()
    kept: list[Encoded] = [served.encode(to, clip(k)) for k in range(10)]
    assert sorted(to.latest) == [7, 8, 9] and len(kept) == 10
