"""curri-MAE against the numbers and structural checks of the papers (curri-mae.md, cav-mae.md)."""

import pytest
import torch
from torch import Tensor, nn

from encoders.errors import DataError
from imputation.curri_mae import CurriMAE, CurriMAEConfig, curri_mae_tiny, load_cav_mae, preset, sincos


def tiny(**overrides) -> CurriMAE:
    torch.manual_seed(0)
    return CurriMAE(preset("curri_mae_tiny", **overrides))


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def base() -> CurriMAE:
    with torch.device("meta"):
        return CurriMAE(CurriMAEConfig())


class TestPaperScale:
    def test_the_model_has_the_papers_parameters(self, base):
        assert size(base) == 190_129_920

    @pytest.mark.parametrize(
        ("part", "count"),
        [
            ("blocks_a.0", 7_094_016),
            ("blocks_v.10", 7_094_016),
            ("blocks_u.0", 7_094_016),
            ("decoder_blocks.7", 3_156_480),
            ("in_proj_a", 393_984),
            ("decoder_pred_v", 262_656),
        ],
    )
    def test_each_part_has_its_parameters(self, base, part, count):
        assert size(base.get_submodule(part)) == count

    def test_norms_that_no_pass_uses_are_counted_by_the_paper(self, base):
        names = (".norm1_a", ".norm1_v", ".norm2_a", ".norm2_v")
        dead = sum(size(m) for n, m in base.named_modules() if n.endswith(names))
        unified = sum(size(m) for n, m in base.blocks_u.named_modules() if n.endswith(("norm1_a", "norm2_a")))
        assert dead - 2 * unified == 167_936  # CAV-MAE's contrastive passes use the unified block's own

    def test_positions_are_not_saved(self, base):
        assert not [name for name in base.state_dict() if "position" in name]
        assert size(base) == sum(t.numel() for t in base.state_dict().values())

    def test_names_are_those_of_cav_mae(self, base):
        names = set(base.state_dict())
        for name in ("modality_a", "mask_token", "decoder_modality_v", "norm_a.weight", "decoder_embed.bias"):
            assert name in names
        for inner in ("norm1", "norm1_a", "norm1_v", "norm2", "norm2_a", "norm2_v", "attn.qkv", "attn.proj", "mlp.fc1"):
            assert f"blocks_a.10.{inner}.weight" in names and f"decoder_blocks.7.{inner}.weight" in names

    def test_all_norms_have_cav_maes_epsilon(self, base):
        assert {m.eps for m in base.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


def test_positions_are_sines_then_cosines():
    table = sincos(10, 768)
    assert table[0, :4].tolist() == [0, 0, 0, 0] and table[0, 384].item() == 1
    assert table[1, 0].item() == pytest.approx(0.841471, abs=1e-6)  # sin 1
    assert table[1, 1].item() == pytest.approx(torch.sin(torch.tensor(10_000 ** (-1 / 384))).item(), abs=1e-6)
    assert table[3, 384].item() == pytest.approx(-0.989992, abs=1e-6)  # cos 3


def equal_masks(k: int, batch: int = 5, length: int = 7, seed: int = 1) -> Tensor:
    """Hide k places of each row and modality."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, length, 2, generator=generator).argsort(1).argsort(1) < k


@pytest.mark.parametrize("k", [0, 1, 3, 6])
@pytest.mark.parametrize("registers", [0, 1, 2])
def test_gathering_and_attention_masks_agree(k, registers):
    model, features = tiny(registers=registers), torch.randn(5, 7, 2, 16)
    visible = ~equal_masks(k)
    with torch.no_grad():
        gathered = model(features, visible).mean
        model.pack = False
        masked = model(features, visible).mean
    torch.testing.assert_close(gathered, masked, atol=1e-5, rtol=1e-5)


def test_ways_agree_when_rows_keep_different_numbers_and_positions_are_missing():
    model, features = tiny(registers=0), torch.randn(6, 7, 2, 16)
    visible = torch.rand(6, 7, 2) < 0.5
    exists = torch.rand(6, 7) < 0.8
    with torch.no_grad():
        packed = model(features, visible, exists).mean
        model.pack = False
        masked = model(features, visible, exists).mean
    torch.testing.assert_close(packed[exists], masked[exists], atol=1e-5, rtol=1e-5)


def test_a_position_that_does_not_exist_changes_nothing():
    model, features = tiny(), torch.randn(2, 5, 2, 16)
    visible = ~equal_masks(2, batch=2, length=5)
    longer = torch.cat([features, torch.randn(2, 3, 2, 16)], dim=1)
    exists = torch.tensor([[True] * 5 + [False] * 3] * 2)
    more = torch.cat([visible, torch.ones(2, 3, 2, dtype=torch.bool)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(longer, more, exists).mean[:, :5], model(features, visible).mean)


def test_hidden_features_are_not_seen_and_get_no_gradient():
    model = tiny()
    features = torch.randn(3, 6, 2, 16, requires_grad=True)
    hidden = equal_masks(2, batch=3, length=6)
    model(features, ~hidden).mean.sum().backward()
    seen = features.grad.abs().sum(-1)
    assert not seen[hidden].any() and (seen[~hidden] > 0).all()


def test_loss_is_the_mean_error_of_hidden_places_summed_over_modalities():
    model, features = tiny(), torch.randn(4, 6, 2, 16)
    hidden = equal_masks(2, batch=4, length=6)
    with torch.no_grad():
        error = (model(features, ~hidden).mean - features).square().mean(-1)
        video, audio = error[:, :, 0][hidden[:, :, 0]].mean(), error[:, :, 1][hidden[:, :, 1]].mean()
        loss = model.loss(features, hidden)
    torch.testing.assert_close(loss.total, video + audio)
    torch.testing.assert_close(loss.mse, torch.stack([video, audio]))


def test_gradient_comes_from_hidden_places_only():
    model = tiny()
    features = torch.randn(2, 5, 2, 16)
    hidden = torch.zeros(2, 5, 2, dtype=torch.bool)
    hidden[:, 2, 0] = True  # video only
    model.loss(features, hidden).total.backward()
    assert model.decoder_pred_v.weight.grad.abs().sum() > 0
    assert model.decoder_pred_a.weight.grad.abs().sum() == 0


def test_without_hidden_places_there_is_nothing_to_learn():
    model = tiny()
    loss = model.loss(torch.randn(2, 5, 2, 16), torch.zeros(2, 5, 2, dtype=torch.bool))
    assert loss.total.item() == 0


def test_a_feature_that_was_really_absent_is_neither_shown_nor_asked_for():
    model, features = tiny(), torch.randn(2, 5, 2, 16)
    presence = torch.ones(2, 5, 2, dtype=torch.bool)
    presence[:, 1] = False
    hidden = torch.zeros(2, 5, 2, dtype=torch.bool)
    hidden[:, 1:3] = True
    poisoned = torch.where(presence.unsqueeze(-1), features, float("nan"))
    assert model.loss(poisoned, hidden, presence=presence).total.isfinite()


@pytest.mark.parametrize("registers", [0, 1])
def test_a_modality_that_is_gone_gives_numbers_and_gradients(registers):
    model, features = tiny(registers=registers), torch.randn(2, 5, 2, 16)
    hidden = torch.zeros(2, 5, 2, dtype=torch.bool)
    hidden[0, :, 1] = True
    hidden[1] = True  # and a window with nothing at all
    model.loss(features, hidden).total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("base_name", ["lerp", "observed_mean"])
def test_a_residual_model_starts_as_its_baseline(base_name):
    from imputation.baselines import lerp, observed_mean

    model, features = tiny(residual=base_name), torch.randn(3, 6, 2, 16)
    visible = ~equal_masks(3, batch=3, length=6)
    rule = {"lerp": lerp, "observed_mean": observed_mean}[base_name]
    torch.testing.assert_close(model(features, visible).mean, rule(features, visible))


def test_one_batch_is_learnt_by_heart():
    model, generator = tiny(), torch.Generator().manual_seed(5)
    features = torch.randn(8, 6, 2, 16, generator=generator)
    hidden = equal_masks(3, batch=8, length=6)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.95, 0.999))
    first = model.loss(features, hidden).total.item()
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(features, hidden).total.backward()
        optimizer.step()
    assert model.loss(features, hidden).total.item() < 0.1 * first


def test_the_variance_head_learns_the_error_and_leaves_the_prediction_alone():
    plain, spread = tiny(), tiny(log_variance=True)
    spread.load_state_dict(plain.state_dict(), strict=False)
    features, hidden = torch.randn(4, 6, 2, 16), equal_masks(2, batch=4, length=6)
    plain.loss(features, hidden).total.backward()
    spread.loss(features, hidden).total.backward()
    for name, parameter in plain.named_parameters():
        other = spread.get_parameter(name).grad
        assert (parameter.grad is None) == (other is None)
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other)
    assert spread.decoder_var_a.weight.grad.abs().sum() > 0


def test_too_many_positions_are_refused_in_one_sentence():
    with pytest.raises(DataError, match="20 positions of width 16; this curri-MAE takes at most 16 of width 16"):
        tiny()(torch.zeros(1, 20, 2, 16), torch.ones(1, 20, 2, dtype=torch.bool))


def test_cav_mae_weights_fit_where_names_agree():
    source, target = tiny(registers=0), tiny(registers=0)
    state = {f"module.{k}": torch.full_like(v, 0.5) for k, v in source.state_dict().items() if "_pred_" not in k}
    state = {k: v for k, v in state.items() if "in_proj" not in k} | {"module.pos_embed_a": torch.zeros(1, 512, 32)}
    carried = load_cav_mae(target, state)
    assert carried.left == ["pos_embed_a"]
    assert set(carried.loaded) == target.state_dict().keys() - set(carried.fresh)
    assert set(carried.fresh) == {n for n in target.state_dict() if n.startswith(("in_proj", "decoder_pred"))}
    assert (target.blocks_a[0].attn.qkv.weight == 0.5).all()


def test_cav_mae_weights_of_another_size_are_refused():
    with pytest.raises(DataError, match="holds no CAV-MAE; name its pre-training weights"):
        load_cav_mae(tiny(), {})
    state = tiny(width=64).state_dict()
    with pytest.raises(DataError, match=r"modality_a is \(1, 1, 64\) in the checkpoint and \(1, 1, 32\) here; use the"):
        load_cav_mae(tiny(), state)
    with pytest.raises(DataError, match=r"the checkpoint lacks decoder_embed.weight; name weights of CAV-MAE's pre-tr"):
        load_cav_mae(tiny(), {k: v for k, v in tiny().state_dict().items() if not k.startswith("decoder_embed")})
    with pytest.raises(DataError, match=r"has blocks_a.1.norm1.weight, for which the model has no place"):
        load_cav_mae(tiny(), tiny(depth=2).state_dict())


def test_the_imputer_lets_gradients_through_for_joint_fine_tuning():
    imputer = curri_mae_tiny()
    presence = ~equal_masks(2, batch=2, length=5)
    imputer(torch.randn(2, 5, 2, 16), presence).features.sum().backward()
    assert imputer.model.decoder_pred_a.weight.grad.abs().sum() > 0
