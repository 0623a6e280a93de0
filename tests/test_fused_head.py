"""A head that attends: what is absent is dropped, what is filled may be believed, and the whole way to a bundle."""

import json

import pytest
import torch
from torch import nn

from encoders.errors import ConfigError, DataError, UsageError
from encoders.fused_head import FusedHead, FusedHeadConfig
from encoders.heads import build_head
from imputation.baselines import Zero
from imputation.features import FeatureSet
from imputation.stored import load_head, load_imputer
from imputation.train_head import HeadTraining, train_head
from runtime import cli
from runtime.bundle import Bundle
from tests.test_transformer_bundles import make, replayed, start_of_the_demo

B, W, D, K = 3, 5, 6, 4
FUSIONS = {
    "bottleneck": {},
    "early": {"fusion_layer": 0},
    "late": {"fusion_layer": 4},
    "cross": {"bottlenecks": 0},
    "one sequence": {"bottlenecks": 0, "share_encoder": True},
}


def head(**changes):
    torch.manual_seed(1)
    made = FusedHead(FusedHeadConfig(**{"classes": K, "dim": D, "width": 16, "heads": 2, "mlp_dim": 32, **changes}))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


def window(seed=0, batch=B):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, W, 2, D, generator=draw)
    return features, torch.rand(batch, W, 2, generator=draw) < 0.6


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_an_absent_clip_holds_does_not_matter(fusion):
    features, presence = window()
    made = head(**FUSIONS[fusion])
    before = made(features, presence)
    torch.testing.assert_close(made(torch.where(presence[..., None], features, torch.nan), presence), before)
    assert before.isfinite().all() and (made(features) - before).abs().amax() > 1e-3


@pytest.mark.parametrize("fusion", FUSIONS)
def test_without_one_modality_the_other_answers_alone(fusion):
    """Nothing that the bottlenecks, or the other modality's weights, hold is in its answer."""
    features, _ = window()
    made = head(**FUSIONS[fusion])
    presence = torch.zeros(B, W, 2, dtype=torch.bool)
    presence[..., 0] = True
    before = made(features, presence)
    torch.testing.assert_close(before, made.each(features, presence)[0][:, 0])
    for name, parameter in made.named_parameters():
        if "audio" in name or "bottleneck" in name:
            nn.init.normal_(parameter, std=5.0)
    torch.testing.assert_close(made(features, presence), before)
    late = head(**{**FUSIONS[fusion], "fusion_layer": 4})
    late.load_state_dict(made.state_dict())
    torch.testing.assert_close(late(features, presence), before)


def test_filled_clips_are_attended_to_where_the_head_believes_them():
    features, presence = window()
    drop, filled = head(), head(absent="filled")
    torch.testing.assert_close(filled(features, presence), filled(features))
    torch.testing.assert_close(filled(features), drop(features))
    assert (filled(features, presence) - drop(features, presence)).abs().amax() > 1e-3


def test_a_clip_that_does_not_exist_is_no_token():
    """A shorter window, its newest clip last, gives what the longer one gives whose first clips are not there."""
    features, presence = window()
    exists = torch.ones(B, W, dtype=torch.bool)
    exists[:, :2] = False
    for made in (head(), head(absent="filled")):
        torch.testing.assert_close(
            made(features, presence, exists=exists), made(features[:, 2:], presence[:, 2:]), atol=1e-5, rtol=1e-4
        )


def test_a_window_with_nothing_says_what_the_bias_says():
    features, _ = window()
    made = head()
    none = made(features, torch.zeros(B, W, 2, dtype=torch.bool))
    torch.testing.assert_close(none, made.classifier.bias.expand(B, -1))


def test_order_is_heard_and_rows_are_independent():
    features, presence = window()
    made = head()
    assert (made(features) - made(features.flip(1))).abs().amax() > 1e-3
    alone = torch.cat([made(features[i : i + 1], presence[i : i + 1]) for i in range(B)])
    torch.testing.assert_close(made(features, presence), alone)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"absent": "zero"}, "absent 'zero' is unknown; use drop or filled"),
        ({"classes": 0}, "a head with 0 classes over features of width 6 cannot be built; give both >= 1"),
        ({"heads": 3}, "heads 3 do not divide dim 16; use a divisor"),
        ({"fusion_layer": 5}, r"fusion_layer 5 of 4 blocks cannot be; use 0 \(early\) to 4 \(late\)"),
    ],
)
def test_contradictions_are_one_sentence(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        head(**changes)


def test_features_that_do_not_fit_are_one_sentence():
    with pytest.raises(DataError, match="features are 7 wide but the head reads 6; use features of its own encoder"):
        head()(torch.zeros(1, W, 2, 7))
    with pytest.raises(DataError, match=r"features hold 1 modalities but the head reads \['video', 'audio'\]; give"):
        head()(torch.zeros(1, W, 1, D))
    with pytest.raises(UsageError, match="setting 'widht' is unknown; did you mean width"):
        build_head("mbt", classes=2, widht=3)


# --- trained, kept, judged, served ---


def emotions(windows=96, dim=D, seed=0):
    """A class in the video of one clip, or in its sound: the head must look at all of them."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.arange(windows) % 2
    features = torch.randn(windows, W, 2, dim, generator=draw) * 0.3
    place = torch.randint(W, (windows,), generator=draw)
    for m in range(2):
        features[torch.arange(windows), place, m, 0] = 3.0 * (2 * label - 1).float()
    splits = ["train" if i < windows * 2 // 3 else "test" for i in range(windows)]
    speaker = [f"s{i % 4}" for i in range(windows)]
    names = [f"w{i}" for i in range(windows)]
    return FeatureSet.of(features, label, ["no", "yes"], split=splits, speaker=speaker, names=names).fitted()


def small(**changes):
    sizes = {"width": 16, "heads": 2, "mlp_dim": 32, "depth": 2, "fusion_layer": 1}
    return HeadTraining(kind="mbt", overrides=sizes, sampling="all", epochs=12, lr=3e-3, **changes)


def trained(tmp_path, data):
    train, test = data.of_split("train"), data.of_split("test")
    return train_head(small(), train, test, tmp_path / "head", imputer=Zero())[0]


def test_it_is_trained_with_drops_and_kept(tmp_path):
    data = emotions()
    made = trained(tmp_path, data)
    test = data.of_split("test")
    with torch.no_grad():
        right = made(test.standardised()).argmax(1) == test.label
        assert right.float().mean() > 0.9
        again = load_head(tmp_path / "head")
        torch.testing.assert_close(again(test.standardised()), made(test.standardised()))
    about = json.loads((tmp_path / "head" / "head.json").read_text())
    assert (about["kind"], about["config"]["absent"]) == ("mbt", "drop")


def test_it_is_an_arm_of_eval_beside_others(tmp_path, capsys):
    data = emotions()
    trained(tmp_path, data)
    data.save(tmp_path / "f.safetensors")
    arm = f"masked={tmp_path / 'head'}+zero"
    command = ["eval", str(tmp_path / "f.safetensors"), "--arm", arm, "--draws", "2", "--json"]
    assert cli.run(command) == 0
    scores = {(s["arm"], s["condition"]): s["accuracy"] for s in json.loads(capsys.readouterr().out)["scores"]}
    assert scores["masked", "0/5"] > 0.9
    assert scores["masked", "0/5"] >= scores["masked", "4/5"]


@pytest.mark.slow
def test_a_bundle_of_it_replays_a_lossy_recording(tmp_path, capsys):
    """MBT's own encoders, one network for both, and the fused head, with and without an imputer before it."""
    made = head(classes=2, dim=128)
    folder = tmp_path / "fused"
    from imputation.stored import save_head

    save_head(folder, made, labels=["a", "b"])
    recording = start_of_the_demo(tmp_path / "start.legato", 4)
    for name, more in {"masked": [], "filled": ["--imputer", "lerp"]}.items():
        options = ["--video", "mbt_tiny", "--audio", "mbt_tiny", "--labels", "a,b", "--window", 3, "--head", folder]
        assert make(tmp_path / name, *options, *more) == 0
        said = replayed(tmp_path / name, recording, capsys, "--loss", "wifi-poor", "--seed", "1")
        assert len(said) >= 6 and all(abs(sum(p["probabilities"].values()) - 1) < 1e-5 for p in said)
        kept = Bundle.load(tmp_path / name)
        assert kept.manifest.heads["fused"].kind == "mbt"
        assert (kept.manifest.ladder[0].rung if kept.manifest.ladder else "") == ("lerp" if more else "")
    assert load_imputer("lerp").rung == "lerp"
