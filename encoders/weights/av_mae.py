"""AV-MAE's parameters as the public JAX code (google-research/scenic, projects/av_mae) names them: of the encoder, and
of the whole model that is pre-trained.

There the picture is called ``rgb``, or ``RGB`` where the code of some commits was run; either is read.
"""

from encoders.audiovisual.av_mae import AVMAEConfig
from encoders.audiovisual.av_mae_decoder import DecoderConfig
from encoders.weights.rules import Rule, block, convolution, linear, norm

__all__ = ["pretraining_rules", "rules"]

PICTURES = ("rgb", "RGB")
# Everything that reconstructs, at any depth of the tree; the encoder leaves it behind.
LEFT_BEHIND = (
    "decoder_projection_{modality:s}/{part:s}",
    "mask_token_{modality:s}",
    "output_projection_{modality:s}/{part:s}",
    "Decoder_modality_token_{modality:s}",
    *(f"Decoder{which}/{inner}" for which in ("", "_{modality:s}") for inner in (
        "{layer:s}/{part:s}", "{layer:s}/{module:s}/{part:s}", "{layer:s}/{module:s}/{within:s}/{part:s}")),
)  # fmt: skip


def rules(config: AVMAEConfig) -> list[Rule]:
    """Flax paths to our names of the encoder alone; what a pre-training file has beside it is left out."""
    table = {rule.pattern: rule for picture in PICTURES for rule in _encoder(config, picture, "")}  # sound's but once
    return [*table.values(), *(Rule(pattern, None) for pattern in LEFT_BEHIND)]


def pretraining_rules(config: AVMAEConfig, decoder: DecoderConfig, picture: str = "rgb") -> list[Rule]:
    """Flax paths to our names of the whole `MaskedAutoencoder`."""
    named = _named(config, picture)
    table = _encoder(config, picture, "encoder.")
    table += _trunks("Decoder", "decoder.trunks", decoder.kind, named, decoder)
    for ours, theirs in named.items():
        table += linear(f"decoder_projection_{theirs}", f"decoder.projections.{ours}")
        table.append(Rule(f"mask_token_{theirs}", f"decoder.mask_tokens.{ours}"))
        table += linear(f"output_projection_{theirs}", f"decoder.regressors.{ours}")
        if config.modality_tokens:
            table.append(Rule(f"Decoder_modality_token_{theirs}", f"decoder.places.{ours}.token"))
    return table


def _named(config: AVMAEConfig, picture: str) -> dict[str, str]:
    return {ours: {"video": picture, "audio": "spectrogram"}[ours] for ours in config.inputs}


def _encoder(config: AVMAEConfig, picture: str, within: str) -> list[Rule]:
    named = _named(config, picture)
    table = _trunks("Transformer", f"{within}trunks", config.encoder, named, config)
    for ours, theirs in named.items():
        table += convolution(f"embedding_{theirs}", f"{within}embed.{ours}.project", 3 if ours == "video" else 2)
        if config.modality_tokens:
            table.append(Rule(f"Encoder_modality_token_{theirs}", f"{within}places.{ours}.token"))
    return table


def _trunks(
    prefix: str, target: str, fusion: str, named: dict[str, str], config: AVMAEConfig | DecoderConfig
) -> list[Rule]:
    """A public transformer is one for both, or one per modality, with ``concat`` after them (mid)."""
    parts = {} if fusion in ("early", "shared") else {ours: f"{prefix}_{theirs}" for ours, theirs in named.items()}
    if fusion != "separate":
        parts["joint"] = f"{prefix}_concat" if fusion == "mid" else prefix
    table: list[Rule] = []
    for ours, theirs in parts.items():
        table += block(f"{theirs}/encoderblock_{{i}}", f"{target}.{ours}.blocks.{{i}}", config.heads)
        table += norm(f"{theirs}/encoder_norm", f"{target}.{ours}.norm")
    return table
