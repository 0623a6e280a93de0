"""Starting a ViViT from a picture's transformer, or from another ViViT."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from encoders.errors import ConfigError, DataError
from encoders.layers.block import Encoder
from encoders.layers.embed import PatchEmbed
from encoders.layers.positions import learned
from encoders.video.vivit import ViViT, ViViTConfig
from encoders.weights.image_vit import initialise, read_image_vit
from encoders.weights.rules import Rule, block, convolution, invert, norm
from encoders.weights.vivit import transfer

CONFIG = ViViTConfig(
    dim=8, depth=2, heads=2, mlp_dim=16, temporal_depth=1, tubelet=(2, 4, 4), frames=6, size=12, classes=3
)
KINDS = {
    "joint": CONFIG,
    "encoder": replace(CONFIG, attention="factorised_encoder"),
    "self": replace(CONFIG, attention="factorised_self", pool="mean"),
    "dot": replace(CONFIG, attention="factorised_dot", pool="mean"),
}
EMBED = [*convolution("embedding", "embed.project"), Rule("cls", "cls")]
PLACES = Rule("Transformer/posembed_input/pos_embedding", "positions")


class Picture(nn.Module):
    """A ViT for pictures of 12x12, without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = PatchEmbed((4, 4), 8)
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = learned(10, 8)
        self.encoder = Encoder(2, 8, 2, 16)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, picture: Tensor) -> Tensor:
        x = self.embed(picture).flatten(1, 2)
        x = torch.cat((self.cls.expand(len(x), -1, -1), x), 1) + self.positions
        return self.encoder(x)

    def tree(self) -> dict[str, np.ndarray]:
        """Its parameters as scenic names them."""
        blocks = block("Transformer/encoderblock_{i}", "encoder.blocks.{i}", 2)
        table = [*EMBED, PLACES, *blocks, *norm("Transformer/encoder_norm", "encoder.norm")]
        return invert(self.state_dict(), table)


@pytest.fixture
def picture() -> Picture:
    torch.manual_seed(0)
    return Picture().eval()


def build(kind: str, **changes: object) -> ViViT:
    torch.manual_seed(1)
    return ViViT(replace(KINDS[kind], **changes)).eval()


def still(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A picture, and a clip that shows nothing else."""
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :, None].repeat(1, 1, 6, 1, 1)


def close(a: Tensor, b: Tensor, within: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= within)


@torch.no_grad()
def test_each_step_of_a_factorised_encoder_starts_as_the_picture(picture):
    model = build("encoder")
    initialise(model, read_image_vit(picture.tree()))
    frames = torch.randn(2, 3, 6, 12, 12)
    x = model.tokens(frames)
    at_step_1 = model.over_space(x[:, 1])
    assert close(at_step_1, picture(frames[:, :, 3])[:, 0])  # the central kernel looks at the second frame of two


@torch.no_grad()
@pytest.mark.parametrize("inflation", ["central", "average"])
def test_a_still_clip_has_the_tokens_of_its_picture(picture, inflation):
    x, clip = still()
    model = build("joint")
    initialise(model, read_image_vit(picture.tree()), inflation=inflation)
    for step in model.tokens(clip).unbind(1):
        assert close(step, picture.embed(x).flatten(1, 2))
    assert torch.equal(model.transformer.cls, picture.cls)
    assert torch.equal(model.transformer.positions[:, 10:19], picture.positions[:, 1:])


@torch.no_grad()
def test_attention_along_time_that_starts_at_zero_leaves_the_picture_alone(picture):
    x, clip = still()
    picture.cls.zero_()
    model = build("self")
    initialise(model, read_image_vit(picture.tree()), time="zero")
    # without the class token that this kind does not have, both see the same tokens
    tokens = picture.embed(x).flatten(1, 2) + picture.positions[:, 1:]
    assert close(model.features(clip), picture.encoder(tokens).mean(1))


def test_attention_along_time_that_starts_at_zero_learns(picture):
    model = build("self")
    initialise(model, read_image_vit(picture.tree()), time="zero")
    model.features(torch.randn(1, 3, 6, 12, 12)).square().sum().backward()
    assert all(block.time.out.weight.grad.any() for block in model.transformer.encoder.blocks)


def test_attention_along_time_is_copied_from_space_and_its_norm_is_not(picture):
    model = build("self")
    initialise(model, read_image_vit(picture.tree()))
    for ours, theirs in zip(model.transformer.encoder.blocks, picture.encoder.blocks, strict=True):
        for own in (ours.time, ours.space):
            assert torch.equal(own.query.weight, theirs.attention.query.weight)
            assert torch.equal(own.out.bias, theirs.attention.out.bias)
        assert torch.equal(ours.norm_space.weight, theirs.norm1.weight)
        assert torch.equal(ours.norm_mlp.bias, theirs.norm2.bias)
        assert (ours.norm_time.weight == 1).all() and not ours.norm_time.bias.any()


def test_what_pictures_do_not_have_stays_as_it_was_drawn(picture):
    before, after = build("encoder"), build("encoder")
    initialise(after, read_image_vit(picture.tree()))
    changed = {k for k, v in after.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
    assert changed == {k for k in before.state_dict() if k.startswith(("embed.", "over_space."))}


def test_a_picture_without_a_class_token_leaves_the_models_own(picture):
    tree = picture.tree()
    del tree["cls"]
    tree[PLACES.pattern] = tree[PLACES.pattern][:, 1:]
    before, after = build("joint"), build("joint")
    initialise(after, read_image_vit(tree))
    assert torch.equal(after.transformer.positions[:, :1], before.transformer.positions[:, :1])
    assert torch.equal(after.transformer.positions[:, 1:10], picture.positions[:, 1:])
    assert not after.transformer.cls.any()


def test_both_public_layouts_are_read(picture):
    def renumbered(key: str) -> str:
        for ours, theirs in (("Attention_0", "Attention_1"), ("LayerNorm_1", "LayerNorm_2"), ("Block_0", "Block_3")):
            key = key.replace(f"{ours}/", f"{theirs}/")
        return key

    tree = {renumbered(key): value for key, value in picture.tree().items()}
    assert "Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel" in tree
    heads = {"head/kernel": np.zeros((8, 5), np.float32), "pre_logits/bias": np.zeros(8, np.float32)}
    image = read_image_vit({**tree, **heads})
    assert torch.equal(image.encoder["blocks.1.mlp.first.weight"], picture.encoder.blocks[1].mlp.first.weight)
    assert (image.dim, image.depth, image.heads, image.mlp_dim, image.grid) == (8, 2, 2, 16, (3, 3))


def test_larger_pictures_zoom_the_positions_and_smaller_patches_the_kernel(picture):
    image = read_image_vit(picture.tree())
    model = build("dot", size=20, tubelet=(1, 5, 5))
    initialise(model, image)
    assert torch.equal(model.transformer.positions[0, 0], picture.positions[0, 1])  # corners stay
    assert torch.equal(model.transformer.positions[0, 15], picture.positions[0, 9])
    assert torch.equal(model.embed.project.weight[..., 0, 0, 0], picture.embed.project.weight[..., 0, 0])


@torch.no_grad()
def test_a_gray_model_sees_gray_as_the_picture_does(picture):
    model = build("joint", channels=1)
    initialise(model, read_image_vit(picture.tree()))
    gray = torch.randn(2, 1, 12, 12)
    tokens = model.tokens(gray[:, :, None].expand(-1, -1, 6, -1, -1))[:, 0]
    assert close(tokens, picture.embed(gray.expand(-1, 3, -1, -1)).flatten(1, 2))


@torch.no_grad()
def test_sampled_frames_take_the_patches_kernel_as_it_is(picture):
    model = build("joint", sampled=2, tubelet=(1, 4, 4))
    initialise(model, read_image_vit(picture.tree()))
    assert torch.equal(model.embed.project.weight, picture.embed.project.weight)


def test_a_picture_of_another_size_is_one_sentence(picture):
    image = read_image_vit(picture.tree())
    with pytest.raises(DataError) as error:
        initialise(build("joint", depth=3), image, what="vit_b.npz")
    assert str(error.value) == "vit_b.npz has depth 2 and the model 3; choose the preset of its size"
    with pytest.raises(DataError, match="has heads 2 and the model 4; choose the preset of its size"):
        initialise(build("joint", heads=4), image)
    with pytest.raises(ConfigError, match="time 'none' is unknown; use 'copy' or 'zero'"):
        initialise(build("self"), image, time="none")
    with pytest.raises(ConfigError, match="inflation 'mean' is unknown; use 'central' or 'average'"):
        initialise(build("joint"), image, inflation="mean")


def broken(tree: dict[str, np.ndarray], key: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    return {k: v for k, v in {**tree, key: value}.items() if v is not None}


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("embedding/kernel", None, "vit.npz lacks embedding/kernel; give an image ViT in its Flax layout"),
        (
            "embedding/kernel",
            np.zeros((2, 4, 4, 3, 8), np.float32),
            "vit.npz: embedding/kernel is (2, 4, 4, 3, 8), where 4 axes are expected; give an image ViT",
        ),
        ("Transformer/encoderblock_1/LayerNorm_1/bias", None, "vit.npz lacks Transformer/encoderblock_1/LayerNorm_"),
        ("Transformer/encoderblock_0/extra", np.zeros(3, np.float32), "vit.npz has Transformer/encoderblock_0/extra"),
        ("embedding/bias", np.zeros(9, np.float32), "vit.npz: embedding/bias is (9,), which gives (9,) where"),
    ],
)
def test_a_tree_that_is_no_picture_transformer_names_the_key(picture, key, value, sentence):
    with pytest.raises(DataError) as error:
        read_image_vit(broken(picture.tree(), key, value), what="vit.npz")
    assert str(error.value).startswith(sentence)


def test_positions_that_are_no_square_are_refused(picture):
    tree = {**picture.tree(), PLACES.pattern: np.zeros((1, 8, 8), np.float32)}
    with pytest.raises(DataError, match="8 positions of the image ViT are no square; give a square one"):
        initialise(build("joint"), read_image_vit(tree))


# --- from one ViViT to another ----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_for_other_classes_gives_the_features_of_the_trained_one(kind):
    trained, model = build(kind), build(kind, classes=7)
    for parameter in trained.parameters():
        nn.init.normal_(parameter, std=0.2)
    transfer(model, trained.state_dict(), trained.config)
    clip = torch.randn(2, 3, 6, 12, 12)
    assert torch.equal(model.features(clip), trained.features(clip))
    assert not model.head.weight.any()


@pytest.mark.parametrize("kind", KINDS)
def test_positions_follow_the_size_and_length_of_clips(kind):
    trained, model = build(kind), build(kind, size=16, frames=10)
    transfer(model, trained.state_dict(), trained.config)
    assert model(torch.zeros(1, 3, 10, 16, 16)).shape == (1, 3)
    for name in ("transformer", "over_space", "over_time"):
        if getattr(model, name) is not None:
            ours, theirs = getattr(model, name).positions[0], getattr(trained, name).positions[0]
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[-1], theirs[-1])


def test_another_kind_of_model_is_one_sentence():
    trained = build("encoder")
    with pytest.raises(DataError) as error:
        transfer(build("encoder", dim=16), trained.state_dict(), trained.config, what="runs/k400")
    assert str(error.value) == "runs/k400 has dim 8 and the model 16; build the model with dim 8"
    with pytest.raises(DataError, match="has attention factorised_encoder and the model joint; build"):
        transfer(build("joint"), trained.state_dict(), trained.config)


@pytest.mark.parametrize("change", [{"embed.project.bias": None}, {"embed.project.bias": torch.zeros(9)}])
def test_half_a_state_is_one_sentence(change):
    state = {k: v for k, v in {**build("joint").state_dict(), **change}.items() if v is not None}
    with pytest.raises(DataError) as error:
        transfer(build("joint"), state, CONFIG, what="runs/k400")
    assert str(error.value) == (
        "runs/k400 does not fit at embed.project.bias; give the whole state of a ViViT of that configuration"
    )


def test_a_model_of_faces_starts_from_one_of_whole_pictures():
    trained = build("joint")
    model = build("joint", region="face")
    transfer(model, trained.state_dict(), trained.config)
    assert torch.equal(model.embed.project.weight, trained.embed.project.weight)
    assert not model.no_face.any()
