"""MMT starts from MViTv2's public weights: of clips or of pictures, for one encoder or both."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from encoders.audiovisual.mmt import MMT, PRESETS
from encoders.checkpoint import save_weights
from encoders.errors import DataError, UsageError
from encoders.registry import build
from encoders.starts import carried
from encoders.video.mvitv2 import MViTv2
from encoders.weights import mvitv2
from encoders.weights.mmt import initialise, read_start
from runtime import cli
from tests.test_mvitv2_weights import CLIP, SOUND, imported, public, saved

CONFIG = replace(PRESETS["mmt_tiny"], video=replace(CLIP, classes=0), audio=SOUND, heads=4)


def fresh():
    torch.manual_seed(0)
    return MMT(CONFIG).eval()


def test_clips_start_what_sees_and_pictures_what_hears():
    model, clip, picture = fresh(), public(3), public(2)
    fusion = {k: v.clone() for k, v in model.fusion.state_dict().items()}
    initialise(model, [read_start(clip), read_start(picture)])
    video = torch.randn(1, 3, 4, 32, 32)
    torch.testing.assert_close(model.video(video), imported(CLIP, clip).features(video))
    alone = type(model.audio)(model.audio.config)
    mvitv2.initialise(alone, mvitv2.read_start(picture))
    for name, value in alone.state_dict().items():
        if name != "cls":
            assert torch.equal(value, model.audio.state_dict()[name]), name
    assert all(torch.equal(v, fusion[k]) for k, v in model.fusion.state_dict().items())


def test_one_model_of_pictures_starts_both():
    model, picture = fresh(), read_start(public(2))
    initialise(model, [picture], inflation="average")
    alone = MViTv2(model.video.config)
    mvitv2.initialise(alone, picture, inflation="average")
    assert torch.equal(alone.embed.weight, model.video.embed.weight)
    torch.testing.assert_close(model.audio.embed.weight, picture["embed.weight"].sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("files", "kind", "sentence"),
    [
        ([public(3)], UsageError, "sound cannot start from a MViTv2 of clips"),
        ([public(2), public(3)], UsageError, "give one of pictures as the second file"),
        ([public(2)] * 3, UsageError, "3 files are given; MMT starts from one, or video's and then sound"),
        ([public(3), public(2, depth=2, widening=(1,))], DataError, "choose the preset of its depth and widths"),
        ([public(3, depth=2), public(2)], DataError, "choose the preset, classes and"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_and_changes_nothing(files, kind, sentence):
    model = fresh()
    with pytest.raises(kind, match=sentence):
        initialise(model, [read_start(file) for file in files])
    before = fresh().state_dict()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_command_takes_one_file_for_each_encoder(tmp_path, capsys):
    sizes = {"dim": 32, "depth": 4, "widening": (1, 2, 3)}
    files = [saved(tmp_path / f"{n}.safetensors", public(2, **sizes, side=8)) for n in ("video", "sound")]
    out = tmp_path / "mmt.safetensors"
    command = ["import-weights", "mmt_tiny", *map(str, files), "--layout", "image_vit", "--out", str(out)]
    assert cli.run(command) == 0
    MMT(PRESETS["mmt_tiny"]).load_state_dict(load_file(out))
    assert "read as image_vit" in capsys.readouterr().out


def trained(path, preset, encoder, classifier=None):
    """What a finished run of an encoder by itself leaves, as far as a start needs it."""
    if classifier is not None:
        save_weights(path / "model.safetensors", classifier.state_dict())
    file = path / f"{encoder.modalities[0]}.safetensors"
    save_weights(file, encoder.state_dict(), {"preset": preset, "config": "{}"})
    return path


def test_each_encoder_starts_from_a_run_of_its_own_kind(tmp_path):
    torch.manual_seed(1)
    seen = trained(tmp_path / "seen", "mvitv2_tiny", build("mvitv2_tiny"))
    heard = trained(tmp_path / "heard", "mat_tiny", build("mat_tiny"))
    torch.manual_seed(0)
    model = build("mmt_tiny")
    fusion = {k: v.clone() for k, v in model.fusion.state_dict().items()}
    assert carried(model, seen)
    assert carried(model, heard)
    for part, folder in ((model.video, seen / "video.safetensors"), (model.audio, heard / "audio.safetensors")):
        stored = load_file(folder)
        assert all(torch.equal(v, stored[k]) for k, v in part.state_dict().items())
    assert all(torch.equal(v, fusion[k]) for k, v in model.fusion.state_dict().items())


def test_an_encoder_of_another_size_is_refused_and_changes_nothing(tmp_path):
    other = trained(tmp_path / "other", "mat_tiny", build("mat_tiny", dim=16))
    torch.manual_seed(0)
    model, before = build("mmt_tiny"), build("mmt_tiny")
    before.load_state_dict(model.state_dict())
    with pytest.raises(DataError, match="other"):
        carried(model, other)
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in model.state_dict().items())


def test_classifiers_that_come_along_have_each_their_half_of_the_say(tmp_path):
    torch.manual_seed(1)
    starts = {}
    for preset, name in (("mvitv2_tiny", "video"), ("mat_tiny", "audio")):
        whole = build(preset, classes=5)
        torch.nn.init.normal_(whole.head.bias)
        own = build(preset).state_dict()
        encoder = build(preset)
        encoder.load_state_dict({k: v for k, v in whole.state_dict().items() if k in own})
        starts[name] = whole, trained(tmp_path / name, preset, encoder, whole)
    model, mean = build("mmt_tiny", classes=5), build("mmt_tiny", classes=5, fusion="average")
    for _, folder in starts.values():
        assert carried(model, folder)
        assert carried(mean, folder)
    heads = [starts[m][0].head for m in ("video", "audio")]
    assert torch.equal(model.head.weight, torch.cat([h.weight / 2 for h in heads], 1))
    torch.testing.assert_close(model.head.bias, sum(h.bias / 2 for h in heads))
    assert all(torch.equal(mean.heads[m].weight, starts[m][0].head.weight) for m in ("video", "audio"))


def test_a_classifier_of_other_classes_is_left_out(tmp_path):
    whole = build("mat_tiny", classes=3)
    own = build("mat_tiny")
    own.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("head.")})
    model = build("mmt_tiny", classes=5)
    before = model.head.weight.clone()
    assert carried(model, trained(tmp_path / "heard", "mat_tiny", own, whole))
    assert torch.equal(model.head.weight, before)
