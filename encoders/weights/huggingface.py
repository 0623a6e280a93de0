"""How `transformers` calls the parts of a vision transformer, in its versions 5 and 4."""

__all__ = ["BLOCK", "LAYERS"]

# of a block: ours -> (version 5, version 4)
BLOCK = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "attention.query": ("attention.q_proj", "attention.attention.query"),
    "attention.key": ("attention.k_proj", "attention.attention.key"),
    "attention.value": ("attention.v_proj", "attention.attention.value"),
    "attention.out": ("attention.o_proj", "attention.output.dense"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "mlp.first": ("mlp.fc1", "intermediate.dense"),
    "mlp.second": ("mlp.fc2", "output.dense"),
}
LAYERS = ("layers.{i}", "encoder.layer.{i}")  # version 5, version 4
