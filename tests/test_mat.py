"""MAT: table 1 of the paper, its cost, what hears what, and what it refuses."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from encoders.audio.filterbank import Filterbank
from encoders.audio.mat import MAT, PRESETS, MATConfig
from encoders.errors import ConfigError, DataError
from encoders.layers.pooled_attention import PooledAttention
from encoders.settings import from_dict, to_dict
from tests.macs import macs, on_meta, parameters

SMALL = MATConfig(dim=8, depth=4, pooled=(1, 2, 3), bins=32, frames=48, clip_seconds=Fraction(2, 5), classes=3)
TABLE_1 = [(96, (32, 256))] * 2 + [(192, (16, 128))] * 3 + [(384, (8, 64))] * 16 + [(768, (8, 32))] * 3


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


def build(config: MATConfig) -> MAT:
    """A model whose weights are large enough that nothing they do is lost in rounding."""
    model = MAT(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


# --- the published numbers ----------------------------------------------------------------------------------------


def test_parameters_costs_and_grids_are_the_papers():
    """52 M parameters and 46.2 G multiply-adds, which the paper counts without what distances cost."""
    model, trace, normed, distances = on_meta(lambda: MAT(replace(PRESETS["mat_base"], classes=309))), [], [], []
    assert parameters(model) == 51_240_021
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda _, given, __: normed.append(given[0].numel()))
        if isinstance(module, PooledAttention):
            module.register_forward_hook(lambda layer, _, made: distances.append(_met(layer, made)))
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, made: trace.append((made[0].shape[-1], made[1])))
    cost = macs(model, (1, 1, 128, 1024))
    assert trace == TABLE_1
    with_norms = cost + 5 * sum(normed)  # as fvcore counts them
    assert round(with_norms / 1e7) == 4690
    assert (with_norms - sum(distances)) / 1e9 == pytest.approx(46.2, rel=0.001)


def _met(layer: PooledAttention, made: tuple[torch.Tensor, tuple[int, int]]) -> int:
    """Multiply-adds of queries with distances: as many keys along each axis as the longer table was made for."""
    (_, grid), width = made, layer.out.out_features
    keys = [(len(table) + 1) // 2 for table in layer.distances]  # never fewer than queries where keys are not pooled
    queries = grid[0] * grid[1]
    whole = [key // 2 if layer.key.conv.stride == (2, 2) else key for key in keys]
    return queries * width * sum(whole)


def test_tables_of_distances_are_as_long_as_the_longer_of_queries_and_keys():
    model = on_meta(lambda: MAT(PRESETS["mat_base"]))
    lengths = [tuple(map(len, block.attention.distances)) for block in model.blocks]
    assert lengths == [(63, 511)] * 3 + [(31, 255)] * 3 + [(15, 127)] * 16 + [(15, 63)] * 2


def test_keys_are_pooled_in_the_first_blocks_only():
    model = on_meta(lambda: MAT(PRESETS["mat_base"]))
    assert [block.attention.key.conv.stride for block in model.blocks] == [(2, 2)] * 2 + [(1, 1)] * 22
    pooled = {i: block.attention.query.conv.stride for i, block in enumerate(model.blocks) if block.skip is not None}
    assert pooled == {2: (2, 2), 5: (2, 2), 21: (1, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stride", "millions", "giga"),
    [((4, 4), 51.21, 34.54), ((8, 8), 51.20, 28.10), ((1, 4), 51.22, 41.86), ((1, 1), 51.19, 66.3)],
)
def test_other_strides_of_keys_cost_what_they_should(stride, millions, giga):
    """The rules that do not give the paper's 46.2 G."""
    model = on_meta(lambda: MAT(replace(PRESETS["mat_base"], classes=309, stride_kv=stride)))
    if stride != (1, 1):  # there the table's row has no pools of keys at all
        assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.006)
    assert macs(model, (1, 1, 128, 1024)) / 1e9 == pytest.approx(giga, rel=0.006)


# --- what hears what ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_last_pool_is_over_time_alone():
    grids = [grid for _, grid in build(SMALL).trace(torch.randn(1, 1, 32, 48))]
    assert grids == [(8, 12), (8, 12), (4, 6), (2, 3), (2, 2)]


def test_a_first_token_hears_its_patch_and_its_neighbours():
    sound = torch.randn(1, 1, 32, 48, requires_grad=True)
    tokens, _ = next(iter(build(SMALL).trace(sound)))
    tokens[0, 1 + 3 * 12 + 5].square().sum().backward()  # fourth of frequency, sixth of time
    heard = sound.grad[0, 0].abs() > 0
    assert heard.any(1).nonzero()[:, 0].tolist() == list(range(9, 16))
    assert heard.any(0).nonzero()[:, 0].tolist() == list(range(17, 24))


@torch.no_grad()
def test_time_is_not_frequency():
    model = build(replace(SMALL, bins=48, stride_kv=(2, 2), strides=((2, 2), (2, 2), (2, 2))))
    sound = torch.randn(1, 1, 48, 48)
    assert (model(sound) - model(sound.transpose(2, 3))).abs().max() > 1e-3


@torch.no_grad()
def test_it_hears_what_the_filterbank_gives_frequency_first():
    model, clips = build(SMALL), torch.randn(2, 6400) / 10
    wanted = Filterbank(bins=32, frames=48)(clips)
    assert torch.equal(model.prepare(clips)[:, 0], wanted.transpose(1, 2))
    assert torch.equal(model.heard(wanted), model.prepare(clips))  # what readers make is what serving makes
    torch.testing.assert_close(model.head(model.encode(clips)), model(model.prepare(clips)))
    assert model.encode(clips).shape == (2, model.dim) == (2, 64)


@torch.no_grad()
def test_silence_and_rows_by_themselves():
    model = build(SMALL)
    clips = torch.cat((torch.zeros(1, 6400), torch.randn(2, 6400) / 10))
    assert model.encode(clips).isfinite().all()
    torch.testing.assert_close(model.encode(clips)[1:2], model.encode(clips[1:2]))


@torch.no_grad()
def test_spectrograms_of_other_lengths_are_taken():
    model = build(SMALL)
    for frames in (1, 7, 47, 100):
        assert model(torch.randn(1, 1, 32, frames)).isfinite().all()


def test_every_parameter_learns():
    model = build(SMALL).train()
    model(torch.randn(2, 1, 32, 48)).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    last = ("query.conv.weight", "distances.0", "distances.1")  # only the class token's answer is read there
    assert silent == [f"blocks.3.attention.{name}" for name in last]


def test_one_batch_can_be_learned_by_heart():
    model, sound, labels = MAT(SMALL).train(), torch.randn(6, 1, 32, 48), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(sound), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


# --- presets and what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_configs_are_read_back_as_they_were_written(name):
    assert from_dict(MATConfig, to_dict(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bins": 0}, "bins 0 must be at least 1"),
        ({"frames": -1}, "frames -1 must be at least 1"),
        ({"bins": 8}, "block 5 has a grid of 1x128, too small for the stride 2 along axis 0"),
        ({"bins": 3}, "block 0 has a grid of 0x256, too small for the stride 2 along axis 0; use a larger input, or "),
        ({"statistics": "mine"}, "statistics 'mine' are unknown; use one of audioset, esc50, speech_commands"),
        ({"clip_seconds": Fraction(0)}, "clip_seconds 0 must be > 0"),
        (
            {"clip_seconds": Fraction(11)},
            "clip_seconds 11 are 1098 mel frames, of which frames 1024 would hear the first; use frames=1098 or ",
        ),
        ({"strides": ((1, 2, 2),) * 3}, "strides[0] 1,2,2 must be 2 whole numbers, each at least 1"),
    ],
)
def test_a_config_that_cannot_be_is_one_sentence(changes, sentence):
    with pytest.raises(ConfigError) as error:
        MATConfig(**changes)
    assert str(error.value).startswith(sentence)


def test_a_clip_shorter_than_a_mel_frame_is_refused():
    with pytest.raises(DataError, match="sound of 320 samples is shorter than a mel frame of 400; give at least"):
        replace(SMALL, clip_seconds=Fraction(1, 50))


@pytest.mark.parametrize("samples", [0, 399, 8000])
def test_sound_of_another_length_is_refused(samples):
    with pytest.raises(DataError, match=r"came to a model of \(batch, 6400\) floats, 0.4 s at 16000 Hz; cut and resam"):
        MAT(SMALL).encode(torch.zeros(1, samples))


def test_sound_that_is_no_number_is_refused():
    with pytest.raises(DataError, match="a sample that is not finite; leave the clip out, or repair the recording"):
        MAT(SMALL).encode(torch.full((1, 6400), torch.nan))


@pytest.mark.parametrize("shape", [(1, 1, 48, 32), (1, 32, 48), (1, 3, 32, 48), (1, 1, 32, 0)])
def test_what_is_no_spectrogram_is_refused_before_any_compute(shape):
    with pytest.raises(DataError, match=r"came to a model of 32 mel bins; give \(batch, 1, 32, frames\), frequency"):
        MAT(SMALL)(torch.zeros(shape))
