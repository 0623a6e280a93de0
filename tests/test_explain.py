"""Explaining: maps against differences, clusters against counted pairs, and the pages that `legato explain` writes."""

import json
import sys
from itertools import combinations

import numpy as np
import pytest
import torch

from encoders.clusters import agreement, map_of
from encoders.errors import ConfigError, DataError, MissingExtraError, UsageError
from encoders.explain import Question, explain
from encoders.finetune import finetune
from encoders.grad_cam import grad_cam, looks_of
from encoders.recipes import recipe
from encoders.registry import build
from runtime import cli
from runtime.report import explained
from tests.test_finetune_pairs import heard

SMALL = {
    "model.video.dim": 8, "model.video.depth": 2, "model.video.pooled": (1,), "model.video.strides": ((1, 2, 2),),
    "model.video.frames": 4, "model.video.size": 32, "model.audio.dim": 8, "model.audio.depth": 2,
    "model.audio.pooled": (1,), "model.audio.strides": ((2, 2),), "model.audio.bins": 16,
}  # fmt: skip
TINY = {"epochs": 1, "batch": 4, "warmup": 0.0, "workers": 0, "views": "1x1", "stochastic_depth": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return heard(tmp_path_factory.mktemp("heard"), deaf={("val", 1)}, broken={("val", 3)}, val=6)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """One epoch of the smallest MMT, on bars that move and tones that say where."""
    out = tmp_path_factory.mktemp("runs") / "mmt"
    return finetune(recipe("mmt_tiny", data, **TINY, **SMALL), out)


# --- maps -------------------------------------------------------------------------------------------------------


def small(preset="mmt_tiny", **changes):
    torch.manual_seed(0)
    own = {k.removeprefix("model."): v for k, v in SMALL.items()} if preset.startswith("mmt") else {}
    return build(preset, classes=3, **{**own, **changes}).eval()


def clips(model, batch=2):
    torch.manual_seed(1)
    seen = {}
    if "video" in model.modalities:
        spec = getattr(model, "specs", {}).get("video", model.spec)
        shape = batch, spec.frames, spec.size, spec.size, *[3] * (spec.pixel_format == "rgb24")
        seen["rgb"] = torch.randint(0, 256, shape, dtype=torch.uint8)
    if "audio" in model.modalities:
        seen["audio"] = 0.1 * torch.randn(batch, 6400)
    return seen


def answer_of(model):
    """A call that gives the logits of two clips, whatever the model takes."""
    raw = clips(model)
    if hasattr(model, "logits"):
        seen = {}
        for name, clip in raw.items():
            seen |= model.prepare(clip, "video" if name == "rgb" else "audio")
        return lambda: model.logits(seen)
    (clip,) = raw.values()
    x = model.prepare(clip)
    return lambda: model(x)


def test_maps_are_channels_weighted_by_the_slope_of_the_score():
    model = small().double()
    raw = clips(model)
    seen = {**model.prepare(raw["rgb"]), **model.prepare(raw["audio"], "audio")}
    seen = {name: x.double() for name, x in seen.items()}
    maps = grad_cam(model, lambda: model.logits(seen), torch.tensor([0, 2]))
    for modality, look in looks_of(model).items():
        norm, shift = look.block.norm1, torch.zeros(8, dtype=torch.float64)
        tokens = []
        first = look.first

        def moved(module, given, y, first=first, shift=shift, tokens=tokens):
            tokens.append(y)
            return torch.cat((y[:, :first], y[:, first:] + shift), 1)

        hook = norm.register_forward_hook(moved)
        slopes = torch.zeros(2, 8, dtype=torch.float64)
        with torch.no_grad():
            for channel in range(8):  # all places moved together: the sum of their slopes
                for sign in (1, -1):
                    shift.zero_()[channel] = sign * 1e-5
                    slopes[:, channel] += sign * model.logits(seen)[[0, 1], [0, 2]] / 2e-5
        hook.remove()
        shift.zero_()
        places = tokens[0][:, first:]
        expected = (places * slopes[:, None] / places.shape[1]).sum(-1).clamp_min(0)
        torch.testing.assert_close(maps[modality].flatten(1), expected, rtol=1e-5, atol=1e-9)


GRIDS = {  # frames, rows, columns; frequency, time
    "mvitv2_tiny": {"video": (5, 4, 4)},
    "mat_tiny": {"audio": (4, 3)},
    "mmt_tiny": {"video": (2, 8, 8), "audio": (4, 12)},
    "mbt_tiny": {"video": (5, 4, 4), "audio": (6, 5)},
    "ast_tiny": {"audio": None},
    "vivit_tiny": {"video": (5, 4, 4)},
}


@pytest.mark.parametrize("preset", GRIDS)
def test_every_transformer_on_a_grid_can_be_looked_into(preset):
    model = small(preset)
    if getattr(model, "head", None) is not None:
        torch.nn.init.normal_(model.head.weight)  # many begin with zeros, which nothing speaks for
    answer = answer_of(model)
    with torch.no_grad():
        before = answer()
    maps = grad_cam(model, answer, torch.tensor([0, 1]))
    for modality, shape in GRIDS[preset].items():
        found = maps[modality]
        assert (found.shape[1:] == shape if shape else found.ndim == 3), (modality, found.shape)
        assert (found >= 0).all() and found.amax() > 0 and not found.requires_grad
    with torch.no_grad():
        assert torch.equal(answer(), before)  # and nothing is left behind
    assert all(p.grad is None for p in model.parameters())


def test_a_modality_that_is_not_there_has_no_map():
    model = small()
    seen = model.prepare(clips(model)["rgb"])
    assert set(grad_cam(model, lambda: model.logits(seen), torch.tensor([0, 1]))) == {"video"}


def test_a_frozen_model_can_be_looked_into():
    model = small().requires_grad_(False)
    with torch.no_grad():
        assert grad_cam(model, answer_of(model), torch.tensor([0, 1]))["audio"].amax() > 0


@pytest.mark.parametrize("preset", ["r2plus1d_tiny", "mtv_tiny", "vivit_tiny_fe"])
def test_a_model_without_a_grid_of_tokens_is_refused_by_name(preset):
    with pytest.raises(ConfigError, match="has no tokens on one grid to look at; explain a run of MViTv2"):
        looks_of(build(preset))


# --- clusters ---------------------------------------------------------------------------------------------------


def blobs(per_class=8, classes=3, apart=10.0):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), per_class)
    return apart * np.eye(classes, 5)[labels] + random.normal(size=(len(labels), 5)), labels


def test_classes_far_apart_are_found_and_mixed_ones_are_not():
    pytest.importorskip("sklearn")
    features, labels = blobs()
    assert agreement(features, labels, 3) == {"ari": 1.0, "homogeneity": pytest.approx(1.0)}
    assert agreement(features * [1, 1e-3, 1e3, 1, 1], labels, 3)["ari"] == 1.0  # no channel drowns the others
    mixed = agreement(features, np.random.default_rng(1).permutation(labels), 3)
    assert abs(mixed["ari"]) < 0.2 and mixed["homogeneity"] < 0.3


def test_the_scores_are_those_of_counted_pairs(monkeypatch):
    cluster = pytest.importorskip("sklearn.cluster")
    features, labels = blobs(per_class=4, apart=1.0)
    kept = []
    found = cluster.KMeans.fit_predict
    monkeypatch.setattr(cluster.KMeans, "fit_predict", lambda self, x: kept.append(found(self, x)) or kept[-1])
    scores = agreement(features, labels, 3)
    together = [[a[i] == a[j] for i, j in combinations(range(12), 2)] for a in (labels, kept[0])]
    both, one, other = sum(map(all, zip(*together, strict=True))), *map(sum, together)
    chance = one * other / len(together[0])
    assert scores["ari"] == pytest.approx((both - chance) / ((one + other) / 2 - chance))

    def entropy(counts):
        p = np.array([c for c in counts if c]) / 12
        return -(p * np.log(p)).sum()

    cells = [sum((labels == a) & (kept[0] == b)) for a in range(3) for b in range(3)]
    given = entropy(cells) - entropy([sum(kept[0] == b) for b in range(3)])
    assert scores["homogeneity"] == pytest.approx(1 - given / entropy([4, 4, 4]))


def test_a_map_is_the_same_every_time_and_keeps_neighbours():
    pytest.importorskip("sklearn")
    features, labels = blobs()
    points = map_of(features)
    assert points.shape == (24, 2) and np.array_equal(points, map_of(features))
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(24)
    assert (labels[apart.argmin(1)] == labels).mean() > 0.9


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda x, y: agreement(x, y, 25), ConfigError, "25 clusters of 24 samples say nothing"),
        (lambda x, y: agreement(x, y, 1), ConfigError, "1 clusters of 24 samples"),
        (lambda x, y: agreement(x, y[1:], 3), DataError, "are not"),
        (lambda x, y: agreement(x * np.nan, y, 3), DataError, "not finite"),
        (lambda x, y: map_of(x[:3]), DataError, "3 samples make no map; give at least 4"),
        (lambda x, y: map_of(x, perplexity=0.0), ConfigError, r"perplexity 0.0 must be > 0; 30 is usual"),
    ],
)
def test_features_that_say_nothing_are_refused(call, kind, sentence):
    with pytest.raises(kind, match=sentence):
        call(*blobs())


def test_without_scikit_learn_it_says_what_to_install(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'legato\[explain\]', or use --no-clusters"):
        explain(Question(run=trained))
    assert explain(Question(run=trained, examples=1, clusters=False)).examples


# --- the command ------------------------------------------------------------------------------------------------


def test_a_run_is_explained(trained, tmp_path, capsys):
    pytest.importorskip("sklearn")
    assert cli.run(["explain", str(trained), "--out", str(tmp_path), "--examples", "2", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "both: ari" in said and "audio: ari" in said and "1 clips cannot be read and are left out" in said
    found = json.loads((tmp_path / "explain.json").read_text())
    assert found["classes"] == ["left", "right"] and found["unreadable"] == 1
    assert [len(found["features"][name]["points"]) for name in ("both", "video", "audio")] == [5, 5, 4]
    assert {example["truth"][0] for example in found["examples"]} == {"left", "right"}
    for example in found["examples"]:
        for told in example["maps"].values():
            assert (tmp_path / told["file"]).read_bytes().startswith(b"\x89PNG")
            assert np.min(told["values"]) >= 0 and np.max(told["values"]) in (0, 1)
    page = (tmp_path / "index.html").read_text()
    assert page.count("<circle") == 14 and "http" not in page.replace("http-equiv", "")
    again = explained.summary(explain(Question(run=trained, examples=2)))
    assert json.loads(json.dumps(again)) == found


def test_pictures_are_drawn_only_where_asked_for(trained):
    found = explain(Question(run=trained, examples=2, clusters=False))
    assert found.features == {}
    one = next(example for example in found.examples if set(example.maps) == {"video", "audio"})
    for modality in ("video", "audio"):
        alone, over = (explained._drawn(one, modality, pictures) for pictures in (False, True))
        blank = explained._drawn(type(one)(**{**vars(one), "seen": None, "heard": None}), modality, False)
        assert np.array_equal(alone, blank) and not np.array_equal(alone, over) and alone.shape == over.shape


def test_the_evidence_for_another_class_can_be_asked_for(trained):
    said = explain(Question(run=trained, examples=2, clusters=False, label="left")).examples
    assert {example.shown for example in said} == {"left"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--label", "lefty"], "class 'lefty' is unknown; did you mean left"),
        (["--examples", "-1"], "-1 examples cannot be shown; give 0 or more"),
        (["--examples", "0", "--no-clusters"], "with no example and no clusters nothing is explained"),
        (["--perplexity", "0"], "perplexity 0 must be > 0; 30 is usual"),
        (["--split", "train,nothing"], "has no sample of split nothing"),
        (["--data", "kinetics400:nowhere"], "dataset folder nowhere does not exist"),
    ],
)
def test_what_cannot_be_explained_is_one_sentence(trained, tmp_path, capsys, options, sentence):
    assert cli.run(["explain", str(trained), "--out", str(tmp_path / "out"), *options]) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("legato: ") and err.count("\n") == 1 and sentence in err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_no_run_is_refused(tmp_path, capsys):
    assert cli.run(["explain", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_no_question_asks_for_nothing(tmp_path):
    with pytest.raises(UsageError, match="nothing is explained"):
        Question(run=tmp_path, examples=0, clusters=False)
