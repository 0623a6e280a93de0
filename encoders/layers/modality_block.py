"""The transformer block of CAV-MAE: one attention and one MLP, and a pair of norms for each way through it.

Gong et al., "Contrastive Audio-Visual Masked Autoencoder" (ICLR 2023), section 3.2, with the names of the public code
(YuanGongND/cav-mae): queries, keys and values are one matrix, GELU is the exact one, layer norms have PyTorch's epsilon
of 1e-5. A block has three pairs of norms: the shared one, that of sound (``_a``) and that of pictures (``_v``).
curri-MAE, which starts from CAV-MAE's weights, is made of the same blocks.

B batch, N token, W width.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.errors import ConfigError

__all__ = ["SUFFIX", "FusedAttention", "ModalityBlock", "TwoLayers"]

SUFFIX = {"": "", "audio": "_a", "video": "_v"}  # of a way's norms; "": the shared ones


class FusedAttention(nn.Module):
    """Softmax self-attention with one fused matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"{heads} attention heads cannot share a width of {width}; use a divisor of {width}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n w"], mask: Bool[Tensor, "b 1 n n"] | None = None) -> Float[Tensor, "b n w"]:
        """Tokens to tokens; where ``mask`` is False a token is not looked at."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, heads, N, W / heads)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class TwoLayers(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        return self.fc2(F.gelu(self.fc1(x)))


class ModalityBlock(nn.Module):
    """Norm, attention, residual; norm, MLP, residual; which norms, is said with every call."""

    def __init__(self, width: int, heads: int, hidden: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm1_a, self.norm1_v = (nn.LayerNorm(width) for _ in range(3))
        self.attn = FusedAttention(width, heads)
        self.norm2, self.norm2_a, self.norm2_v = (nn.LayerNorm(width) for _ in range(3))
        self.mlp = TwoLayers(width, hidden or 4 * width)

    def forward(
        self, x: Float[Tensor, "b n w"], mask: Bool[Tensor, "b 1 n n"] | None = None, modality: str = ""
    ) -> Float[Tensor, "b n w"]:
        """Tokens to tokens with the norms of ``modality``: audio, video, or "" for the shared ones."""
        suffix = SUFFIX[modality]
        x = x + self.attn(getattr(self, f"norm1{suffix}")(x), mask)
        return x + self.mlp(getattr(self, f"norm2{suffix}")(x))
