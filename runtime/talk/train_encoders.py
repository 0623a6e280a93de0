"""The encoders of ``talk``: cross-modal agreement first, and kept while a head learns the task.

The pretext is instance discrimination across modalities as in AVID (Morgado et al., 2021), with the other clips of
the batch, those of the same window above all, as negatives instead of a memory bank: a clip's picture must find the
sound of the very same 0.4 s among the sounds of its own sentence. The task's head reads windows made by pairing
encoded sights with encoded sounds, so one encoding serves every condition.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from encoders.audio.conv2d import Conv2D
from encoders.heads import GRUHead
from encoders.video.r2plus1d import R2Plus1D
from runtime.talk import augment
from runtime.talk.corpus import Corpus, Utterance
from runtime.talk.windows import Grid, Reel, fragments, mix, noise, speaker_odds, still, talk


@dataclass(frozen=True, kw_only=True)
class EncoderRecipe:
    """How long and how hard."""

    steps: int = 1000
    warm_steps: int = 150  # pretext alone
    talking: int = 16  # windows of true pairs in a batch
    quiet: int = 6  # windows of still faces, and as many without speech
    lr: float = 2e-3
    weight_decay: float = 0.02
    pace: float = 0.2  # log of the fastest and slowest playing
    apart: float = 0.04  # seconds that sound may lead or trail its picture, as on real devices
    broken: float = 0.7  # share of windows made of pieces of sentences
    blind: float = 0.3  # share of windows that show movement only
    drop: float = 0.15  # of features, before the head
    average: float = 0.997  # of the weights (EMA)
    task_weight: float = 1.0
    task_shapes_video: bool = False  # let the task's loss reach the video encoder: it then learns who is who
    seed: int = 0


class TalkNet(nn.Module):
    """Both encoders, the task's head, and the pretext's temperature."""

    def __init__(self, video: R2Plus1D, audio: Conv2D, head: GRUHead):
        super().__init__()
        self.video, self.audio, self.head = video, audio, head
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def agreement(self, v: Tensor, a: Tensor, speaker: Tensor) -> Tensor:
        """The pretext's loss over clips (N, D): symmetric cross-entropy of picture-to-sound similarities.

        Clips of other speakers (N,) are no candidates: who speaks must not help to tell what is said when.
        """
        scores = (v @ a.T) / v.shape[1] * self.log_scale.exp().clamp(max=60.0)  # mean cosine over steps
        scores = scores.masked_fill(speaker[:, None] != speaker, -1e4)
        truth = torch.arange(len(v))
        return (cross_entropy(scores, truth) + cross_entropy(scores.T, truth)) / 2


@dataclass(frozen=True)
class Batch:
    sights: np.ndarray  # uint8 (talking + quiet, clips*frames, 64, 64)
    sounds: np.ndarray  # (talking + quiet, S)
    speakers: np.ndarray  # int, of each talking window


def draw(
    rng: np.random.Generator, corpus: Corpus, noises: list[np.ndarray], grid: Grid, recipe: EncoderRecipe
) -> Batch:
    """Talking windows with their sound, then still faces and sounds without speech."""
    speakers, odds = speaker_odds(corpus)
    who = rng.choice(len(speakers), recipe.talking, p=odds)
    spoken = [speech(rng, corpus.by_speaker[speakers[s]], grid, recipe) for s in who]
    sights, sounds = [sight for sight, _ in spoken], []
    for voice in other_voices(rng, np.stack([sound for _, sound in spoken])):
        background = noise(rng, noises, grid.samples)
        sounds.append(mix(voice, background, rng.uniform(0, 25), 10 ** rng.uniform(-2.0, -0.7)))
    for _ in range(recipe.quiet):
        pool = corpus.by_speaker[speakers[rng.choice(len(speakers), p=odds)]]
        sights.append(still(rng, pool, grid))
        sounds.append(mix(None, noise(rng, noises, grid.samples), 0, 10 ** rng.uniform(-2.0, -0.7)))
    return Batch(np.stack(sights), np.stack(sounds), who)


def speech(
    rng: np.random.Generator, pool: Sequence[Utterance], grid: Grid, recipe: EncoderRecipe
) -> tuple[np.ndarray, np.ndarray]:
    """A talking face and its sound, at another pace; often in pieces."""
    speed = math.exp(rng.uniform(-recipe.pace, recipe.pace))
    if rng.random() >= recipe.broken:
        return talk(rng, pool, grid, speed, apart=rng.uniform(-recipe.apart, recipe.apart))
    reel = Reel(fragments(rng, pool, (grid.total_seconds + 0.2) * speed), speed)
    at = 0.1 + rng.uniform(-recipe.apart, recipe.apart)
    return reel.sight(0.1 + grid.frame_times()), reel.sound(at, grid.samples)


def other_voices(rng: np.random.Generator, sounds: np.ndarray, odds: float = 0.7) -> np.ndarray:
    """Most voices made higher or lower: (B, S) -> (B, S)."""
    chosen = np.flatnonzero(rng.random(len(sounds)) < odds)
    if len(chosen):
        ratio = torch.from_numpy(np.exp(rng.uniform(-0.2, 0.5, len(chosen)))).float()
        sounds[chosen] = augment.pitch(torch.from_numpy(sounds[chosen]), ratio).numpy()
    return sounds


def encode(
    net: TalkNet, batch: Batch, grid: Grid, generator: torch.Generator | None, blind: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Features (windows, clips, D) of sights and of sounds; augmented where a generator is given.

    A share ``blind`` of the windows shows no picture but its change.
    """
    strength = 0.0 if generator is None else 1.0
    generator = generator or torch.Generator()
    x = net.video.prepare(augment.pictures(batch.sights, generator, grid.clips, net.video.config.size, strength))
    if blind:
        shown = torch.rand(len(batch.sights), generator=generator) >= blind
        x[:, 0] *= shown.repeat_interleave(grid.clips).view(-1, 1, 1, 1)
    sound = torch.from_numpy(batch.sounds)
    if strength:
        sound = augment.room(sound, generator)
    mel = net.audio.prepare(sound.reshape(len(sound) * grid.clips, -1))
    if strength:
        mel = augment.voice(mel, generator, grid.clips)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(strength)):
        v = net.video(x.contiguous(memory_format=torch.channels_last_3d))
        a = net.audio(mel.contiguous(memory_format=torch.channels_last))
    shape = (len(sound), grid.clips, -1)
    return v.float().view(shape), a.float().view(shape)


def pairings(recipe: EncoderRecipe, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Which sight meets which sound, and the label: indices into a batch, as three (N,) tensors."""
    t, q = recipe.talking, recipe.quiet
    talking, quiet, empty = torch.arange(t), torch.arange(t, t + q), torch.tensor([t + q])

    def any_of(pool: Tensor, count: int) -> Tensor:
        return pool[torch.randint(len(pool), (count,), generator=generator)]

    shift = int(torch.randint(1, t, (1,), generator=generator))
    parts = [
        (talking, talking, 1),
        (talking, talking.roll(shift), 2),
        (any_of(quiet, 2 * q), any_of(talking, 2 * q), 2),
        (any_of(talking, t // 2), any_of(quiet, t // 2), 0),
        (any_of(quiet, t // 2), any_of(quiet, t // 2), 0),
        (any_of(empty, q // 2), any_of(talking, q // 2), 2),
        (any_of(empty, q // 2), any_of(quiet, q // 2), 0),
    ]
    sight, sound = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    return sight, sound, torch.cat([torch.full((len(p[0]),), p[2]) for p in parts])


def task_loss(net: TalkNet, v: Tensor, a: Tensor, recipe: EncoderRecipe, generator: torch.Generator) -> Tensor:
    """Class-balanced cross-entropy of the head over paired windows."""
    sight, sound, label = pairings(recipe, generator)
    assert net.video.no_face is not None, "the task's video encoder shows faces"
    if not recipe.task_shapes_video:
        v = v.detach()
    v = torch.cat((v, net.video.no_face.expand(1, *v.shape[1:])))  # the last sight: nobody in the picture
    window = dropout(torch.stack((v[sight], a[sound]), 2), recipe.drop)  # (N, W, 2, D)
    weight = 1.0 / torch.bincount(label, minlength=3).float()
    return cross_entropy(net.head(window), label, weight=weight / weight.mean())


def train(
    net: TalkNet,
    corpus: Corpus,
    noises: list[np.ndarray],
    recipe: EncoderRecipe,
    grid: Grid,
    log: Callable[[int, dict[str, float], TalkNet], None],
) -> TalkNet:
    """The whole of it; returns the averaged net in eval mode. ``log(step, losses, averaged)`` after each step."""
    rng, generator = np.random.default_rng(recipe.seed), torch.Generator().manual_seed(recipe.seed)
    averaged = copy.deepcopy(net).eval()
    decay = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, recipe.steps, pct_start=0.1)
    for step in range(recipe.steps):
        net.train()
        batch = draw(rng, corpus, noises, grid, recipe)
        v, a = encode(net, batch, grid, generator, recipe.blind)
        speaker = torch.from_numpy(batch.speakers).repeat_interleave(grid.clips)
        pretext = net.agreement(v[: recipe.talking].flatten(0, 1), a[: recipe.talking].flatten(0, 1), speaker)
        task = task_loss(net, v, a, recipe, generator) if step >= recipe.warm_steps else torch.zeros(())
        loss = pretext + recipe.task_weight * task
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss {loss.item()} at step {step}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimiser.step()
        schedule.step()
        average(averaged, net, min(recipe.average, (step + 1) / (step + 10)))
        log(step, {"pretext": pretext.item(), "task": task.item(), "scale": net.log_scale.exp().item()}, averaged)
    return averaged


@torch.no_grad()
def average(averaged: nn.Module, net: nn.Module, keep: float) -> None:
    """Exponential mean of weights and of batch-norm statistics."""
    for mean, now in zip(averaged.state_dict().values(), net.state_dict().values(), strict=True):
        if mean.dtype.is_floating_point:
            mean.lerp_(now, 1 - keep)
        else:
            mean.copy_(now)
