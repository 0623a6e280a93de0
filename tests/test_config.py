"""Settings: what a bundle fixes, what a preset and --set change, and contradictions refused in one sentence."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from imputation.presence import PresenceRule
from runtime.config import PRESETS, RuntimeConfig, WindowSettings, resolve
from runtime.errors import ConfigError, LegatoError, UsageError
from runtime.jitter import AdaptiveDelay


def bundle(**changes: Any) -> Any:
    facts = {"name": "talk", "clip_seconds": 0.4, "window": 10, "lookahead": 3, "min_clips": 3}
    return SimpleNamespace(**(facts | {"thresholds": {"video": 0.5, "audio": 0.8}, "forgive": {}} | changes))


def test_a_bundle_s_own_values_are_the_default():
    config = resolve(bundle())
    assert config.clip.seconds == Fraction(2, 5) and config.window_seconds == 4
    assert config.window == WindowSettings(clips=10, lookahead=3, min_clips=3)
    assert config.presence.audio == 0.8


def test_what_a_bundle_forgives_is_in_the_rule_of_a_run():
    assert resolve(bundle()).presence.rule == PresenceRule(video=0.5, audio=0.8)
    config = resolve(bundle(forgive={"video": 1.0}), overrides=["presence.forgive_audio=0.5"])
    assert config.presence.rule == PresenceRule(video=0.5, audio=0.8, forgive_video=1.0, forgive_audio=0.5)


def test_overrides_win_over_the_preset_and_the_preset_over_the_bundle():
    assert resolve(bundle(), "interactive").window.lookahead == 0
    assert resolve(bundle(), "interactive", lookahead=1).window.lookahead == 1
    assert resolve(bundle(), "interactive", ["window.lookahead=2"], lookahead=1).window.lookahead == 2
    assert resolve(bundle(), overrides=["delay.floor=0.1", "delay.cap=0.1"]).delay.policy == 0.1
    assert resolve(bundle(), overrides=["delay.late_repair=true"]).delay.late_repair


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_and_states_its_latency(preset):
    config = resolve(bundle(), preset)
    least, most = config.provisional_latency
    lookahead = float(config.window.lookahead * config.clip.seconds)
    assert 0 <= least <= most and config.final_latency == (least + lookahead, most + lookahead)
    assert isinstance(config.delay.policy, AdaptiveDelay)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("clip.seconds=0.5", "clip.seconds is 0.5, but bundle talk was trained on clips of 0.4 s"),
        ("clip.second=0.4", "'clip.second' is unknown; did you mean clip.seconds"),
        ("clips.seconds=0.4", "'clips' is unknown"),
        ("clip.seconds=soon", "'soon' is not of type Fraction"),
        ("clip.seconds=1/0", "is not of type Fraction"),
        ("clip=0.4", "names no section; write section.name=value"),
        ("clip.seconds", "is not key=value"),
        ("window.lookahead=1.5", "'1.5' is not of type int"),
        ("window.lookahead=4", "lookahead 4 is more than the 3 clips"),
        ("window.lookahead=-1", "window.lookahead is -1; use 0 or more"),
        ("window.clips=9", "window.clips is 9, but bundle talk was trained on windows of 10"),
        ("window.min_clips=0", "window.min_clips is 0, but the window holds 10 clips; use 1 to 10"),
        ("delay.floor=2", "delay.floor 2 and delay.cap 0.5 contradict each other"),
        ("delay.cap=NaN", "delay.cap nan contradict"),
        ("presence.audio=1", "presence.audio is 1; use a share from 0 to below 1"),
        ("presence.forgive_video=1.5", "presence.forgive_video is 1.5; use a share from 0 to 1"),
        ("engine.threads=4", "engine.threads is 4; deterministic runs use 1"),
        ("engine.deterministic=maybe", "'maybe' is not of type bool"),
        ("engine.decode_ahead=-1", "engine.decode_ahead is -1"),
    ],
)
def test_a_wrong_override_is_refused_in_one_sentence(override, sentence):
    with pytest.raises(LegatoError) as refused:
        resolve(bundle(), overrides=[override])
    assert sentence in str(refused.value) and "\n" not in str(refused.value)
    assert isinstance(refused.value, UsageError | ConfigError) and refused.value.exit_code == 2


def test_an_unknown_preset_names_those_that_exist():
    with pytest.raises(UsageError, match="no preset 'fast'; choose one of replay, interactive, patient"):
        resolve(bundle(), "fast")


def test_a_config_is_plain_values_for_json():
    plain = RuntimeConfig().as_dict()
    assert plain["clip"] == {"seconds": 0.4}
    assert plain["delay"] == {"floor": 0.05, "cap": 0.5, "late_repair": False}
