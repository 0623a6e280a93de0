"""Tables of parameter names: strict both ways, and readable from right to left."""

import numpy as np
import pytest
import torch
from torch import nn

from encoders.errors import DataError
from encoders.weights.rules import Rule, block, convert, convolution, invert, linear, mha_bias, mha_in, mha_out
from tests.flax_fill import fill, filled, parameters


class TinyBlock(nn.Module):
    """The names of a transformer block, without its arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.attention = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("query", "key", "value", "out")})
        self.mlp = nn.ModuleDict({"first": nn.Linear(6, 8), "second": nn.Linear(8, 6)})


def tiny() -> nn.ModuleDict:
    return nn.ModuleDict({"embed": nn.Conv3d(3, 6, (2, 4, 5)), "blocks": nn.ModuleList([TinyBlock(), TinyBlock()])})


RULES = [*convolution("embedding", "embed", 3), *block("Transformer/encoderblock_{i}", "blocks.{i}", heads=3)]


def test_a_tree_survives_the_way_there_and_back():
    model = tiny()
    tree = fill(model, RULES)
    assert sum(array.size for array in tree.values()) == parameters(model)
    assert tree["embedding/kernel"].shape == (2, 4, 5, 3, 6)
    assert tree["Transformer/encoderblock_1/MultiHeadDotProductAttention_0/out/kernel"].shape == (3, 2, 6)
    back = invert(model.state_dict(), RULES)
    assert all(np.array_equal(back[path], array) for path, array in tree.items()) and back.keys() == tree.keys()


def test_a_kernel_does_the_same_in_either_layout():
    x, kernel, bias = np.random.default_rng(0).normal(size=(3, 6, 6)).astype(np.float32)
    theirs = kernel.reshape(6, 3, 2)  # (in, heads, head_dim)
    heads = np.einsum("ni,ihd->nhd", x, theirs) + bias[0].reshape(3, 2)
    ours = x @ mha_in(3)(theirs).T + mha_bias(3)(bias[0].reshape(3, 2))
    np.testing.assert_allclose(ours.reshape(6, 3, 2), heads, atol=1e-5)
    out = kernel.reshape(3, 2, 6)  # (heads, head_dim, out)
    np.testing.assert_allclose(ours @ mha_out(3)(out).T, np.einsum("nhd,hdo->no", heads, out), atol=1e-4)


def test_the_fill_rule_is_the_written_one():
    path = "output_projection/kernel"
    values = filled(path, (2, 3))
    c = sum(map(ord, path)) % 97
    assert values[1, 2] == pytest.approx(0.1 * np.sin(0.7 * 5 + c), abs=1e-7)
    assert filled("a/scale", (1,))[0] > 0.8


def test_one_kernel_may_fill_two_layers_and_another_none():
    model = nn.ModuleDict({"space": nn.Linear(2, 3), "time": nn.Linear(2, 3)})
    rules = [*linear("dense", "space"), *linear("dense", "time"), Rule("head/{name:s}", None)]
    tree = {"dense/kernel": np.ones((2, 3)), "dense/bias": np.zeros(3), "head/kernel": np.ones(7)}
    out = convert(tree, rules, model.state_dict(), what="tree")
    assert torch.equal(out["space.weight"], out["time.weight"]) and out.keys() == model.state_dict().keys()


def test_what_may_keep_its_own_weights_is_left_out():
    model = nn.ModuleDict({"body": nn.Linear(2, 3), "head": nn.Linear(3, 4)})
    tree = {"body/kernel": np.ones((2, 3)), "body/bias": np.zeros(3)}
    out = convert(tree, linear("body", "body"), model.state_dict(), what="tree", keep=["head.{name:s}"])
    assert set(out) == {"body.weight", "body.bias"}


def test_arrays_take_the_dtype_of_ours_and_stand_on_their_own():
    kernel = np.arange(6, dtype=np.float16).reshape(2, 3)
    kernel.flags.writeable = False
    out = convert({"a/kernel": kernel}, linear("a", "a", bias=False), {"a.weight": torch.zeros(3, 2)}, what="tree")
    assert out["a.weight"].dtype == torch.float32 and out["a.weight"].is_contiguous()
    out["a.weight"] += 1  # the source is as it was
    assert kernel[0, 0] == 0


def broken(change):
    model = tiny()
    tree = dict(fill(model, RULES))
    change(tree)
    with pytest.raises(DataError) as error:
        convert(tree, RULES, model.state_dict(), what="w.npz")
    return str(error.value)


def test_a_key_without_a_place_is_named_and_the_rest_counted():
    said = broken(lambda tree: tree.update({"pre_logits/kernel": np.ones(3), "pre_logits/bias": np.ones(3)}))
    assert said.startswith("w.npz has pre_logits/kernel and 1 more, for which the model has no place;")


def test_a_block_too_many_has_no_place():
    said = broken(lambda tree: tree.update({"Transformer/encoderblock_2/LayerNorm_0/scale": np.ones(6)}))
    assert said.startswith("w.npz has Transformer/encoderblock_2/LayerNorm_0/scale, for which")


def test_a_missing_key_is_named_with_what_it_fills():
    said = broken(lambda tree: tree.pop("embedding/bias"))
    assert said.startswith("w.npz lacks embedding/bias, which fills embed.bias;")


@pytest.mark.parametrize(
    ("key", "array", "sentence"),
    [
        ("embedding/bias", np.ones(5), "embedding/bias is (5,), which gives (5,) where embed.bias is (6,);"),
        ("embedding/kernel", np.ones((4, 5, 3, 6)), "is (4, 5, 3, 6), where (time, height, width, in, out)"),
        (
            "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel",
            np.ones((6, 2, 3)),  # as wide, in other heads
            "is (6, 2, 3), where (in, 3 heads, head_dim) is expected;",
        ),
        ("embedding/bias", np.full(6, np.nan), "holds a number that is not finite;"),
        ("embedding/bias", np.array(["x"] * 6), "not numbers;"),
    ],
)
def test_an_array_of_another_layout_is_named(key, array, sentence):
    said = broken(lambda tree: tree.update({key: array}))
    assert said.startswith(f"w.npz: {key}") and sentence in said


def test_two_sources_for_one_place_are_refused():
    rules = [Rule("a", "x"), Rule("b", "x")]
    with pytest.raises(DataError, match="has both a and b for x; keep one"):
        convert({"a": np.ones(1), "b": np.ones(1)}, rules, {"x": torch.ones(1)}, what="tree")


def test_a_model_of_no_published_layout_cannot_be_written():
    with pytest.raises(DataError, match="extra has no name in the published layout"):
        invert({"extra": torch.ones(1)}, RULES)
