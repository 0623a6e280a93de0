"""Where a PolyViT or a TokenLearner may start from: a picture's transformer, or a tokenizer of another modality."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders.audiovisual.inputs import AudioInput, ImageInput, VideoInput
from encoders.audiovisual.polyvit import PolyViT, PolyViTConfig, TaskHead
from encoders.errors import ConfigError, DataError, UsageError
from encoders.video.token_learner import TokenLearner, TokenLearnerConfig
from encoders.weights import polyvit, token_learner
from encoders.weights.image_vit import read_image_vit
from tests.flax_fill import filled

SMALL = PolyViTConfig(
    dim=8,
    depth=3,
    heads=2,
    mlp_dim=16,
    image=ImageInput(size=48, patch=(8, 8)),
    video=VideoInput(frames=8, size=32, tubelet=(4, 8, 8)),
    audio=AudioInput(frames=40, bins=16, patch=(8, 8), front=""),
    tasks=(TaskHead(name="a", modality="image", classes=3), TaskHead(name="b", modality="video", classes=3)),
)


def image_vit(depth=3, grid=4, dim=8, cls=True):
    """A picture transformer in its Flax layout, of patches of 8 pixels."""
    block = "Transformer/encoderblock_{}/".format
    shapes = {
        "embedding/kernel": (8, 8, 3, dim),
        "embedding/bias": (dim,),
        "Transformer/posembed_input/pos_embedding": (1, grid * grid + cls, dim),
        "Transformer/encoder_norm/scale": (dim,),
        "Transformer/encoder_norm/bias": (dim,),
        "output_projection/kernel": (dim, 5),
        "output_projection/bias": (5,),
    }
    if cls:
        shapes["cls"] = (1, 1, dim)
    for layer in range(depth):
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            shapes |= {f"{block(layer)}{norm}/scale": (dim,), f"{block(layer)}{norm}/bias": (dim,)}
        for name in ("query", "key", "value"):
            prefix = f"{block(layer)}MultiHeadDotProductAttention_0/{name}"
            shapes |= {f"{prefix}/kernel": (dim, 2, dim // 2), f"{prefix}/bias": (2, dim // 2)}
        prefix = f"{block(layer)}MultiHeadDotProductAttention_0/out"
        shapes |= {f"{prefix}/kernel": (2, dim // 2, dim), f"{prefix}/bias": (dim,)}
        for i, (wide, narrow) in enumerate([(dim, 16), (16, dim)]):
            prefix = f"{block(layer)}MlpBlock_0/Dense_{i}"
            shapes |= {f"{prefix}/kernel": (wide, narrow), f"{prefix}/bias": (narrow,)}
    return {path: filled(path, shape) for path, shape in shapes.items()}


SOURCE = image_vit()


def zoom(grid, rows, columns):
    """(h, w, D) to (rows * columns, D), linear in each direction, the corners staying: SciPy's zoom of order 1."""
    for axis, size in enumerate((rows, columns)):
        at = np.linspace(0, grid.shape[axis] - 1, size)
        grid = np.apply_along_axis(lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, grid)
    return grid.reshape(-1, grid.shape[-1])


def started(**changes):
    model = PolyViT(replace(SMALL, **changes))
    polyvit.initialise(model, read_image_vit(SOURCE))
    return model


# --- from a picture's transformer ---


@pytest.mark.parametrize("adapt", [0, 1, 3])
def test_every_tokenizer_gets_the_lower_blocks_and_the_trunk_the_upper(adapt):
    model = started(adapt=adapt)
    for layer in range(3):
        scale = torch.from_numpy(SOURCE[f"Transformer/encoderblock_{layer}/LayerNorm_1/scale"])
        query = torch.from_numpy(
            SOURCE[f"Transformer/encoderblock_{layer}/MultiHeadDotProductAttention_0/query/kernel"]
        )
        where = [t.blocks[layer] for t in model.tokenizers.values()] if layer < adapt else []
        for block in where or [model.encoder.blocks[layer - adapt]]:
            assert torch.equal(block.norm2.weight, scale)
            assert torch.equal(block.attention.query.weight, query.reshape(8, 8).T)
    assert torch.equal(model.encoder.norm.bias, torch.from_numpy(SOURCE["Transformer/encoder_norm/bias"]))


def test_patch_kernels_are_copied_and_for_clips_lie_at_the_central_frame():
    model = started()
    kernel = torch.from_numpy(SOURCE["embedding/kernel"]).permute(3, 2, 0, 1)
    for modality in ("image", "audio"):
        assert torch.equal(model.tokenizers[modality].embed.project.weight, kernel)
    inflated = model.tokenizers["video"].embed.project.weight
    assert torch.equal(inflated[:, :, 2], kernel)  # slice 2 of 4
    assert not inflated[:, :, [0, 1, 3]].any()
    for tokenizer in model.tokenizers.values():
        assert torch.equal(tokenizer.embed.project.bias, torch.from_numpy(SOURCE["embedding/bias"]))
        assert torch.equal(tokenizer.cls, torch.from_numpy(SOURCE["cls"]))


def test_positions_are_zoomed_for_pictures_and_sound_and_repeated_for_clips():
    table = SOURCE["Transformer/posembed_input/pos_embedding"]
    model, grid = started(), table[0, 1:].reshape(4, 4, 8)
    expected = {
        "image": zoom(grid, 6, 6),
        "video": np.concatenate([grid.reshape(-1, 8)] * 2),
        "audio": zoom(grid, 5, 2),
    }
    for modality, places in expected.items():
        positions = model.tokenizers[modality].positions.detach().numpy()
        np.testing.assert_allclose(positions[0, 1:], places, atol=1e-6)
        np.testing.assert_array_equal(positions[0, 0], table[0, 0])


def test_heads_stay_as_they_were_drawn():
    torch.manual_seed(0)
    before = PolyViT(SMALL)
    torch.manual_seed(0)
    after = started()
    assert torch.equal(before.heads["a"].weight, after.heads["a"].weight)
    assert not after.heads["b"].weight.any()


def test_a_picture_gives_the_class_token_that_it_gave():
    """At its own size the image path *is* the picture's transformer; so is a clip whose central frames show it."""
    model = started(
        image=ImageInput(size=32, patch=(8, 8)), video=VideoInput(frames=4, size=32, tubelet=(4, 8, 8))
    ).eval()
    picture = torch.randn(1, 3, 32, 32)
    clip = torch.randn(1, 3, 4, 32, 32)
    clip[:, :, 2] = picture
    with torch.no_grad():
        torch.testing.assert_close(model.features(clip, "video"), model.features(picture, "image"))


def test_without_a_class_token_ours_stays():
    model = PolyViT(SMALL)
    first = model.tokenizers["image"].positions[:, :1].detach().clone()
    polyvit.initialise(model, read_image_vit(image_vit(cls=False)))
    assert not model.tokenizers["image"].cls.any()
    assert torch.equal(model.tokenizers["image"].positions[:, :1], first)
    assert torch.equal(
        model.tokenizers["video"].positions[0, 1:17],
        torch.from_numpy(image_vit(cls=False)["Transformer/posembed_input/pos_embedding"][0]),
    )


def test_another_size_is_refused_and_leaves_the_model_alone():
    model = PolyViT(SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(DataError, match="the image ViT has depth 2 and the model 3; choose the preset of its size"):
        polyvit.initialise(model, read_image_vit(image_vit(depth=2)))
    with pytest.raises(ConfigError, match="inflation 'middle' is unknown"):
        polyvit.initialise(model, read_image_vit(SOURCE), inflation="middle")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# --- from a tokenizer of another modality ---


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return PolyViT(replace(SMALL, adapt=1))


def test_a_clip_s_kernel_becomes_a_picture_s_by_its_sum_over_time(trained):
    model = PolyViT(trained.config)
    polyvit.tokenizer_from(model, "image", trained, "video")
    video, image = trained.tokenizers["video"], model.tokenizers["image"]
    torch.testing.assert_close(image.embed.project.weight, video.embed.project.weight.sum(2))
    mean = video.positions[0, 1:].reshape(2, 4, 4, 8).mean(0).detach().numpy()
    zoomed = zoom(mean, 6, 6)
    np.testing.assert_allclose(image.positions[0, 1:].detach().numpy(), zoomed, atol=1e-6)
    assert torch.equal(image.positions[:, 0], video.positions[:, 0])


def test_a_picture_s_kernel_becomes_a_clip_s_at_the_central_frame(trained):
    model = PolyViT(trained.config)
    polyvit.tokenizer_from(model, "video", trained, "image")
    image, video = trained.tokenizers["image"], model.tokenizers["video"]
    assert torch.equal(video.embed.project.weight[:, :, 2], image.embed.project.weight)
    assert not video.embed.project.weight[:, :, [0, 1, 3]].any()
    steps = video.positions[0, 1:].unflatten(0, (2, 16))
    assert torch.equal(steps[0], steps[1])


@pytest.mark.parametrize(("modality", "source"), [("audio", "video"), ("audio", "image"), ("image", "audio")])
def test_class_token_bias_and_own_blocks_are_copied(trained, modality, source):
    model = PolyViT(trained.config)
    trained.tokenizers[source].cls.data.normal_()
    polyvit.tokenizer_from(model, modality, trained, source)
    old, new = trained.tokenizers[source], model.tokenizers[modality]
    assert torch.equal(new.cls, old.cls)
    assert torch.equal(new.embed.project.bias, old.embed.project.bias)
    assert all(torch.equal(a, b) for a, b in zip(new.blocks.parameters(), old.blocks.parameters(), strict=True))


def test_a_model_can_learn_a_modality_from_itself_and_patches_may_differ(trained):
    config = replace(trained.config, video=VideoInput(frames=8, size=32, tubelet=(4, 16, 16)))
    model = PolyViT(config)
    polyvit.tokenizer_from(model, "video", model, "image")
    kernel = model.tokenizers["video"].embed.project.weight
    assert kernel.shape == (8, 3, 4, 16, 16)
    assert torch.equal(kernel[:, :, 2, ::15, ::15], model.tokenizers["image"].embed.project.weight[:, :, ::7, ::7])


def test_what_cannot_be_borrowed_is_one_sentence(trained):
    with pytest.raises(UsageError, match="modality 'text' is unknown; choose from audio, image, video"):
        polyvit.tokenizer_from(trained, "audio", trained, "text")
    with pytest.raises(ConfigError, match="the trained model has adapt 1 and this one 0; build both alike"):
        polyvit.tokenizer_from(PolyViT(SMALL), "audio", trained, "image")


# --- TokenLearner ---


@pytest.mark.parametrize("frames", [1, 4])
def test_a_token_learner_s_trunk_starts_from_a_picture_s(frames):
    config = TokenLearnerConfig(
        frames=frames, size=48, tubelet=(min(frames, 2), 8, 8), dim=8, depth=3, heads=2, mlp_dim=16, tokens=2, at=1
    )
    model = TokenLearner(config)
    before = model.learners[0].mlp.first.weight.detach().clone()
    token_learner.initialise(model, read_image_vit(SOURCE))
    grid = SOURCE["Transformer/posembed_input/pos_embedding"][0, 1:].reshape(4, 4, 8)
    places = zoom(grid, 6, 6)
    steps = config.grid[0]
    np.testing.assert_allclose(model.positions[0].detach().numpy(), np.concatenate([places] * steps), atol=1e-6)
    kernel = torch.from_numpy(SOURCE["embedding/kernel"]).permute(3, 2, 0, 1)
    weight = model.embed.project.weight
    assert torch.equal(weight if frames == 1 else weight[:, :, 1], kernel)
    scale = torch.from_numpy(SOURCE["Transformer/encoderblock_2/LayerNorm_0/scale"])
    assert torch.equal(model.encoder.blocks[2].norm1.weight, scale)
    assert torch.equal(model.learners[0].mlp.first.weight, before)


def test_a_token_learner_of_another_depth_is_refused():
    model = TokenLearner(TokenLearnerConfig(dim=8, depth=4, heads=2, mlp_dim=16, size=32, tokens=2, at=1))
    with pytest.raises(DataError, match="the image ViT has depth 3 and the model 4"):
        token_learner.initialise(model, read_image_vit(SOURCE))
