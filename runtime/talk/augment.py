"""What training does to pictures and sounds so that five speakers teach about all speakers.

Faces are shifted, scaled, turned, mirrored and gently bent (a smooth warp, the same for a whole window, makes new
faces); light, contrast and sharpness change; the face box trembles from clip to clip as a tracker's does. Voices are
played at another speed together with their picture, their mel axis is warped (another vocal tract), rooms and
microphones colour them. Nothing of it depends on the label.

Shapes: B window, T picture, H W pixels, S sample, F mel bin.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from runtime.talk.corpus import MARGIN


def spread(generator: torch.Generator, *shape: int, by: float) -> Tensor:
    """Uniform in [-by, by]."""
    return (torch.rand(*shape, generator=generator) * 2 - 1) * by


def crop_grid(generator: torch.Generator, windows: int, clips: int, size: int, strength: float) -> Tensor:
    """Where each clip's crop reads the stored picture: (B, clips, size, size, 2) in [-1, 1]; 0 strength = the box."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    base = torch.stack((x, y), -1)  # (H, W, 2)
    grid = base + interpolate(
        spread(generator, windows, 2, 4, 4, by=0.12 * strength), (size, size), mode="bicubic"
    ).movedim(1, -1)
    angle = spread(generator, windows, by=0.17 * strength)
    scale = torch.exp(
        spread(generator, windows, 2, by=0.07 * strength) + spread(generator, windows, 1, by=0.16 * strength)
    )
    turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), -1).view(-1, 1, 2, 2)
    mirrored = torch.where(torch.rand(windows, generator=generator) < (0.5 if strength else 0.0), -1.0, 1.0)
    grid = grid * torch.stack((mirrored, torch.ones(windows)), -1).view(-1, 1, 1, 2) * scale.view(-1, 1, 1, 2)
    grid = (grid.flatten(1, 2) @ turn.squeeze(1).transpose(1, 2)).unflatten(1, (size, size))[:, None]
    return (grid + _wander(generator, windows, clips, strength)) / MARGIN


def _wander(generator: torch.Generator, windows: int, clips: int, strength: float) -> Tensor:
    """A place for the window, and a tremble of the box per clip: (B, clips, 1, 1, 2)."""
    place = spread(generator, windows, 1, 2, by=0.15 * strength)
    tremble = torch.randn(windows, clips, 2, generator=generator) * 0.025 * strength
    return (place + tremble).view(windows, clips, 1, 1, 2)


def drift(generator: torch.Generator, windows: int, frames: int, strength: float) -> Tensor:
    """How camera and head move, the same in every class: (B, frames, 2) in mouth boxes, smooth, some windows hardly."""
    push = torch.randn(windows, frames, 2, generator=generator) * 0.002 * strength
    push = push * torch.rand(windows, 1, 1, generator=generator) * 3
    speed = torch.zeros(windows, 2)
    at, path = torch.zeros(windows, 2), []
    for frame in range(frames):
        speed = 0.9 * speed + push[:, frame]
        at = (at + speed).clamp(-0.25, 0.25)
        path.append(at)
    return torch.stack(path, 1)


def pictures(stored: np.ndarray, generator: torch.Generator, clips: int, size: int, strength: float = 1.0) -> Tensor:
    """uint8 (B, clips*T, 64, 64) around the mouth -> float (B*clips, T, size, size) in 0..255."""
    windows, frames = stored.shape[:2]
    grid = crop_grid(generator, windows, clips, size, strength).flatten(0, 1)
    if not strength:
        x = torch.from_numpy(stored).float().view(windows * clips, frames // clips, *stored.shape[2:])
        return grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)  # frames are channels
    x = torch.from_numpy(stored).float().view(windows * frames, 1, *stored.shape[2:])
    grid = grid.repeat_interleave(frames // clips, 0)  # one for each frame
    grid = grid + drift(generator, windows, frames, strength).view(-1, 1, 1, 2) / MARGIN
    x = grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return light(x.view(windows * clips, frames // clips, size, size), generator, clips)


def light(x: Tensor, generator: torch.Generator, clips: int) -> Tensor:
    """Brightness, contrast, gamma, softness and grain, one draw per window."""
    windows = len(x) // clips

    def draw(by: float) -> Tensor:
        return spread(generator, windows, by=by).repeat_interleave(clips).view(-1, 1, 1, 1)

    x = (x / 255).clamp(0, 1) ** torch.exp(draw(0.4))
    x = (x - 0.5) * torch.exp(draw(0.4)) + 0.5 + draw(0.15)
    blurred = avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    x = torch.lerp(x, blurred, (draw(1.0) * 1.2).clamp(-0.3, 1))  # below 0 sharpens
    x = x + torch.randn(x.shape, generator=generator) * (draw(1.0).clamp(0, 1) * 0.02)
    return x.clamp(0, 1) * 255


def room(sound: Tensor, generator: torch.Generator, odds: float = 0.3) -> Tensor:
    """Some windows get an exponentially decaying reverberation: (B, S) -> (B, S)."""
    windows, samples = sound.shape
    length = 4_000  # samples, a quarter of a second
    decay = torch.exp(-torch.arange(length) / (length * (0.05 + 0.3 * torch.rand(windows, 1, generator=generator))))
    tail = torch.randn(windows, length, generator=generator) * decay
    tail = tail / tail.norm(dim=1, keepdim=True) * torch.rand(windows, 1, generator=generator) * 0.7
    tail[:, 0] = 1.0
    n = samples + length
    wet = torch.fft.irfft(torch.fft.rfft(sound, n) * torch.fft.rfft(tail, n), n)[:, :samples]
    return torch.where(torch.rand(windows, 1, generator=generator) < odds, wet, sound)


def pitch(sound: Tensor, ratio: Tensor) -> Tensor:
    """Voices raised by ``ratio`` (B,), pitch and formants alike, at their own pace: (B, S) -> (B, S).

    A phase vocoder (Flanagan and Golden, 1966) stretches each window by its ratio; reading it faster gives the length
    back. The corpus' training speakers are men: without this, women's voices are no voices to what is learned.
    """
    samples = sound.shape[1]
    size, hop = 512, 128
    window = torch.hann_window(size)
    spectrum = torch.stft(sound, size, hop, window=window, return_complex=True)  # (B, bins, frames)
    frames = spectrum.shape[-1]
    longest = int(np.ceil(frames * float(ratio.max()))) + 1
    at = (torch.arange(longest) / ratio[:, None]).clamp(max=frames - 1.001)  # (B, longest) frames of the original
    low, share = at.floor().long(), at.frac()
    index = low[:, None].expand(-1, spectrum.shape[1], -1)
    loud, angle = spectrum.abs(), spectrum.angle()
    loud = torch.lerp(loud.gather(2, index), loud.gather(2, index + 1), share[:, None])
    advance = (angle[..., 1:] - angle[..., :-1]).gather(2, index[..., :-1])
    phase = torch.cat((angle[..., :1], advance), 2).cumsum(2)
    longer = torch.istft(torch.polar(loud, phase), size, hop, window=window, length=(longest - 1) * hop)
    read = (torch.arange(samples) * ratio[:, None]).clamp(max=longer.shape[1] - 1.001)
    low, share = read.floor().long(), read.frac()
    return torch.lerp(longer.gather(1, low), longer.gather(1, low + 1), share)


def voice(mel: Tensor, generator: torch.Generator, clips: int) -> Tensor:
    """Another throat and another microphone: (B*clips, 1, T, F) mel pictures, one draw per window."""
    rows, bins = len(mel), mel.shape[-1]
    windows = rows // clips
    warp = torch.exp(spread(generator, windows, by=0.15)).repeat_interleave(clips)
    at = (torch.arange(bins) * warp[:, None]).clamp(0, bins - 1)  # (B*clips, F)
    low = at.floor().long().clamp(max=bins - 2)
    share = (at - low).view(rows, 1, 1, bins)
    index = low.view(rows, 1, 1, bins).expand_as(mel)
    mel = mel.gather(-1, index) * (1 - share) + mel.gather(-1, index + 1) * share
    knots = torch.randn(windows, 1, 5, generator=generator) * 0.4
    colour = interpolate(knots, bins, mode="linear", align_corners=True).repeat_interleave(clips, 0)[:, :, None]
    mel = mel + colour
    return mel - mel.mean((2, 3), keepdim=True)  # loudness stays removed
