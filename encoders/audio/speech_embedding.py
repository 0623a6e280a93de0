"""The speech embedding that openWakeWord carries: Google's ``speech_embedding`` (Lin, Kilgour, Roblek, Sharifi,
"Training Keyword Spotters with Limited and Synthesized Speech Data", ICASSP 2020), trained by others on speech.

Two ONNX files of the package ``openwakeword`` 0.4.0: samples to a log-mel spectrogram (25 ms windows every 10 ms, 32
bins), and 76 columns of it, 0.76 s, to 96 numbers. The package slides that window over a stream; a clip is shorter, so
here each clip's own columns are repeated until they fill it: a feature depends on nothing outside its clip, and what
is lost stays lost. The mean and deviation of the clip's mel columns stand beside the embedding, as they say what the
repetition blurs.

Shapes: B clip, S sample, T mel column, F mel bin (32), D feature.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from encoders.clips import AudioSpec, ClipSpec
from encoders.errors import ConfigError
from encoders.onnx_network import OnnxNetwork
from encoders.packages import Package, installed

__all__ = ["PACKAGE", "PRESETS", "SpeechEmbedding", "SpeechEmbeddingConfig"]

SAMPLE_RATE = 16_000  # Hz
COLUMNS = 76  # of the window that the embedding looks at
MEL, EMBEDDING = "resources/models/melspectrogram.onnx", "resources/models/embedding_model.onnx"
PACKAGE = Package(
    name="openwakeword",
    module="openwakeword",
    version="0.4.0",
    files={
        MEL: "ba2b0e0f8b7b875369a2c89cb13360ff53bac436f2895cced9f479fa65eb176f",
        EMBEDDING: "ba754db3cd768a524c655ea90655ee5e6055a43b8dfd29366a11e93716ae9e51",
    },
    install="pip install 'legato[speech]'",
    licence="Apache-2.0",
)


@dataclass(frozen=True, kw_only=True)
class SpeechEmbeddingConfig:
    """What a feature is made of."""

    clip_seconds: Fraction = Fraction(2, 5)
    embedding: bool = True  # 96 numbers
    mel: bool = True  # mean and deviation of 32 bins

    def __post_init__(self) -> None:
        if not (self.embedding or self.mel):
            raise ConfigError("embedding and mel are both false, which leaves no feature; set one of them")
        if self.samples < 720:
            raise ConfigError(f"clip_seconds {float(self.clip_seconds):g} gives no mel column; use at least 0.045")

    @property
    def samples(self) -> int:
        return ClipSpec(seconds=self.clip_seconds, audio=AudioSpec(sample_rate=SAMPLE_RATE)).samples

    @property
    def dim(self) -> int:
        return 96 * self.embedding + 64 * self.mel


class SpeechEmbedding(nn.Module):
    """A frozen audio encoder that nobody here trained."""

    modalities = ("audio",)
    context_seconds = 0.0
    package = PACKAGE
    dtype = torch.float32  # it computes as its files say, whatever the engine prefers
    on_device = False  # and on the CPU

    def __init__(self, config: SpeechEmbeddingConfig) -> None:
        super().__init__()
        self.config, self.spec = config, AudioSpec(sample_rate=SAMPLE_RATE)
        self.dim, self.clip_seconds = config.dim, config.clip_seconds
        files = installed(PACKAGE)
        self.hears, self.embeds = OnnxNetwork(files[MEL]), OnnxNetwork(files[EMBEDDING])

    def encode(self, clips: Tensor) -> Tensor:
        """float32 (B, S) in [-1, 1] to (B, D)."""
        mel = self.mel(clips.detach().cpu().numpy())  # (B, T, F)
        parts = [self._embedded(mel)] if self.config.embedding else []
        parts += [mel.mean(1), mel.std(1)] if self.config.mel else []
        return torch.from_numpy(np.concatenate(parts, 1)).to(clips.device)

    def mel(self, clips: np.ndarray) -> np.ndarray:
        """(B, S) to (B, T, F), scaled as the embedding was trained.

        Clip by clip, as the file limits quiet columns by the loudest of all it is given.
        """
        if not len(clips):
            return np.zeros((0, 1, 32), np.float32)
        whole = np.round(clips.clip(-1, 1) * 32767)  # the network was fed 16-bit integers
        columns = [self.hears(whole[i : i + 1]).reshape(1, -1, 32) for i in range(len(whole))]
        mel: np.ndarray = np.concatenate(columns) / 10 + 2
        return mel

    def _embedded(self, mel: np.ndarray) -> np.ndarray:
        """(B, T, F) to (B, 96): a clip shorter than the window is repeated; of a longer one all windows, averaged."""
        length = mel.shape[1]
        if length <= COLUMNS:
            windows = [np.take(mel, np.arange(COLUMNS) % length, axis=1)]
        else:
            starts = np.unique([*range(0, length - COLUMNS, 8), length - COLUMNS])
            windows = [mel[:, at : at + COLUMNS] for at in starts]
        said = [self.embeds(np.ascontiguousarray(w[..., None])).reshape(-1, 96) for w in windows]
        mean: np.ndarray = np.mean(said, axis=0)
        return mean


PRESETS = {"external:openwakeword": SpeechEmbeddingConfig()}
