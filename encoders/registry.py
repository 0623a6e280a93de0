"""Encoders by preset name. Looking a name up imports nothing heavy; building one imports its module.

A new encoder brings one line here: its preset name, and the module and class that hold it. The module's own
``PRESETS`` holds the config under the same name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from encoders.settings import override, pick

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ENCODERS", "build", "config_of"]

_R2PLUS1D = "encoders.video.r2plus1d:R2Plus1D"
_CONV2D = "encoders.audio.conv2d:Conv2D"
_RESNET2D = "encoders.audio.resnet2d:ResNet2D"
_AST = "encoders.audio.spectrogram_transformer:AST"
_VIVIT = "encoders.video.vivit:ViViT"
_TOKEN_LEARNER = "encoders.video.token_learner:TokenLearner"
_POLYVIT = "encoders.audiovisual.polyvit:PolyViT"
_MTV = "encoders.video.mtv:MTV"
_MTV_ENSEMBLE = "encoders.video.mtv:Ensemble"
_MM_MIX = "encoders.audiovisual.mm_mix:MMMix"
_MBT = "encoders.audiovisual.mbt:MBT"
_MBT_AV_MAE = "encoders.audiovisual.mbt_av_mae:MBT"
_AV_MAE = "encoders.audiovisual.av_mae:AVMAE"
_CAV_MAE = "encoders.audiovisual.cav_mae:CAVMAE"
_MVITV2 = "encoders.video.mvitv2:MViTv2"
_MAT = "encoders.audio.mat:MAT"
_MMT = "encoders.audiovisual.mmt:MMT"

ENCODERS: dict[str, str] = {
    "r2plus1d_18": _R2PLUS1D,
    "r2plus1d_10": _R2PLUS1D,
    "r2plus1d_34": _R2PLUS1D,
    "r2plus1d_18_crisscross": _R2PLUS1D,
    "r2plus1d_talk": _R2PLUS1D,
    "r2plus1d_tiny": _R2PLUS1D,
    "r2plus1d_tiny_average": _R2PLUS1D,
    "conv2d_10": _CONV2D,
    "conv2d_talk": _CONV2D,
    "conv2d_tiny": _CONV2D,
    "resnet2d_18": _RESNET2D,
    "resnet2d_tiny": _RESNET2D,
    "ast_base_10": _AST,
    "ast_base_12": _AST,
    "ast_base_14": _AST,
    "ast_base_16": _AST,
    "ast_s_10": _AST,
    "ast_ti_10": _AST,
    "ast_base_10_esc50": _AST,
    "ast_base_10_speech": _AST,
    "ast_tiny": _AST,
    "vivit_base": _VIVIT,
    "vivit_ti_16x2": _VIVIT,
    "vivit_s_16x2": _VIVIT,
    "vivit_b_16x2": _VIVIT,
    "vivit_b_16x4": _VIVIT,
    "vivit_b_16x8": _VIVIT,
    "vivit_l_16x2": _VIVIT,
    "vivit_l_16x2_320": _VIVIT,
    "vivit_h_14x2": _VIVIT,
    "vivit_h_16x2": _VIVIT,
    "vivit_ti_16x2_fe": _VIVIT,
    "vivit_s_16x2_fe": _VIVIT,
    "vivit_b_16x2_fe": _VIVIT,
    "vivit_b_16x2_average": _VIVIT,
    "vivit_l_16x2_fe": _VIVIT,
    "vivit_l_16x2_fe24": _VIVIT,
    "vivit_b_16x2_fsa": _VIVIT,
    "vivit_b_16x2_fdp": _VIVIT,
    "vivit_b_uniform8": _VIVIT,
    "vivit_tiny": _VIVIT,
    "vivit_tiny_fe": _VIVIT,
    "vivit_tiny_fsa": _VIVIT,
    "vivit_tiny_fdp": _VIVIT,
    "mtv_base": _MTV,
    "mtv_b": _MTV,
    "mtv_b_320": _MTV,
    "mtv_l": _MTV,
    "mtv_h": _MTV,
    "mtv_h_280": _MTV,
    "mtv_b4": _MTV,
    "mtv_s8": _MTV,
    "mtv_ti16": _MTV,
    "mtv_b4_s8_ti16": _MTV,
    "mtv_b4_s8_ti16_late": _MTV,
    "mtv_b4_s8_ti16_mlp": _MTV,
    "mtv_b4_s8_ti16_bottleneck": _MTV,
    "mtv_b4_s8_ti16_ensemble": _MTV_ENSEMBLE,
    "mtv_b2_ti8": _MTV,
    "mtv_b8_ti2": _MTV,
    "mtv_b8_s4_ti2": _MTV,
    "mtv_b2_b8": _MTV,
    "mtv_b2_b4_b8": _MTV,
    "mtv_b4_b8_b16": _MTV,
    "mtv_tiny": _MTV,
    "mtv_tiny_bottleneck": _MTV,
    "mtv_tiny_mlp": _MTV,
    "mtv_tiny_late": _MTV,
    "mtv_tiny_ensemble": _MTV_ENSEMBLE,
    "token_learner_base": _TOKEN_LEARNER,
    "token_learner_b_16": _TOKEN_LEARNER,
    "token_learner_b_16_v1": _TOKEN_LEARNER,
    "token_learner_b_16_half": _TOKEN_LEARNER,
    "token_learner_b_16_fuser": _TOKEN_LEARNER,
    "token_learner_b_16_full": _TOKEN_LEARNER,
    "token_learner_s_32_full": _TOKEN_LEARNER,
    "token_learner_b_32_full": _TOKEN_LEARNER,
    "token_learner_l_16": _TOKEN_LEARNER,
    "token_learner_l_16_full": _TOKEN_LEARNER,
    "token_learner_l_16_24_11": _TOKEN_LEARNER,
    "token_learner_l_14_24_11": _TOKEN_LEARNER,
    "token_learner_l_10_24_11": _TOKEN_LEARNER,
    "token_learner_l_8_24_11": _TOKEN_LEARNER,
    "token_learner_vivit_l_16x2": _TOKEN_LEARNER,
    "token_learner_vivit_l_16x2_at18": _TOKEN_LEARNER,
    "token_learner_vivit_l_14x2_at18": _TOKEN_LEARNER,
    "token_learner_vivit_l_10x2_at18": _TOKEN_LEARNER,
    "token_learner_tiny": _TOKEN_LEARNER,
    "token_learner_tiny_v1": _TOKEN_LEARNER,
    "token_learner_tiny_fuser": _TOKEN_LEARNER,
    "token_learner_tiny_full": _TOKEN_LEARNER,
    "polyvit_base": _POLYVIT,
    "polyvit_base_adapt6": _POLYVIT,
    "polyvit_large": _POLYVIT,
    "polyvit_tiny": _POLYVIT,
    "polyvit_tiny_adapt2": _POLYVIT,
    "mm_mix_base": _MM_MIX,
    "mm_mix_base_audio": _MM_MIX,
    "mm_mix_base_flow": _MM_MIX,
    "mm_mix_base_rgb": _MM_MIX,
    "mm_mix_large": _MM_MIX,
    "mm_mix_tiny": _MM_MIX,
    "mmt_base": _MMT,
    "mmt_base_average": _MMT,
    "mmt_base_without_mat": _MMT,
    "mmt_tiny": _MMT,
    "mbt_base": _MBT,
    "mbt_base_video": _MBT,
    "mbt_base_audio": _MBT,
    "mbt_base_8": _MBT,
    "mbt_tiny": _MBT,
    "mbt_av_mae_base": _MBT_AV_MAE,
    "mbt_av_mae_base_video": _MBT_AV_MAE,
    "mbt_av_mae_base_audio": _MBT_AV_MAE,
    "mbt_av_mae_large": _MBT_AV_MAE,
    "mbt_av_mae_large_video": _MBT_AV_MAE,
    "mbt_av_mae_large_audio": _MBT_AV_MAE,
    "mbt_av_mae_large_audioset": _MBT_AV_MAE,
    "mbt_av_mae_large_audioset_video": _MBT_AV_MAE,
    "mbt_av_mae_large_audioset_audio": _MBT_AV_MAE,
    "mbt_av_mae_tiny": _MBT_AV_MAE,
    "av_mae_base": _AV_MAE,
    "av_mae_base_early": _AV_MAE,
    "av_mae_base_shared": _AV_MAE,
    "av_mae_base_mid": _AV_MAE,
    "av_mae_base_video": _AV_MAE,
    "av_mae_base_audio": _AV_MAE,
    "av_mae_large": _AV_MAE,
    "av_mae_large_early": _AV_MAE,
    "av_mae_large_shared": _AV_MAE,
    "av_mae_large_mid": _AV_MAE,
    "av_mae_large_audioset": _AV_MAE,
    "av_mae_large_video": _AV_MAE,
    "av_mae_large_audio": _AV_MAE,
    "av_mae_tiny": _AV_MAE,
    "cav_mae_base": _CAV_MAE,
    "cav_mae_tiny": _CAV_MAE,
    "mvitv2_base": _MVITV2,
    "mvitv2_b_32x3": _MVITV2,
    "mvitv2_b_16x4": _MVITV2,
    "mvitv2_s_16x4": _MVITV2,
    "mvitv2_b_image": _MVITV2,
    "mvitv2_tiny": _MVITV2,
    "mat_base": _MAT,
    "mat_tiny": _MAT,
}


def config_of(name: str, **overrides: Any) -> Any:
    """The preset's config with ``overrides`` made; raises UsageError on an unknown name, key or wrong type."""
    if name.startswith("external:"):
        return import_module("encoders.external").config_of(name, **overrides)
    module, _, _ = pick(ENCODERS, name, "encoder").partition(":")
    return override(import_module(module).PRESETS[name], overrides)


def build(name: str, **overrides: Any) -> "nn.Module":
    """The encoder of a preset, freshly initialised from torch's global generator; `encoders.external` has others."""
    if name.startswith("external:"):
        foreign: nn.Module = import_module("encoders.external").build(name, **overrides)
        return foreign
    config = config_of(name, **overrides)
    module, _, class_name = ENCODERS[name].partition(":")
    encoder: nn.Module = getattr(import_module(module), class_name)(config)
    return encoder
