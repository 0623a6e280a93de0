"""The demo recording: three quarters of a minute of unseen speakers, sent over a bad link.

Scenes from a few GRID sentences (Cooke et al., 2006; CC BY 4.0) of speakers that no weight of the bundle was trained
on: the person on screen speaks, sits still, is spoken over by somebody else, moves the lips without a sound, is
dubbed. Encoded as H.264 and Opus, impaired by a bursty loss profile, and kept as the packets that arrived.
"""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from encoders.media import AudioTrack, VideoTrack, write_media
from runtime.packet import Packet
from runtime.recording import RecordingWriter
from runtime.sources import open_source
from runtime.talk.corpus import SAMPLE_RATE, Corpus, Utterance
from runtime.talk.windows import LABEL_OF, LABELS, Grid, Reel, coloured, mix, still

ON_SCREEN, ELSEWHERE = "grid/s33", "grid/s32"  # of the test split
# Of seeds 1 to 11 the one nearest to their means where nothing spoiled is believed: 0.78 of windows right, 0.76
# interpolated, 0.70 left empty. As `talk` believes now, 0.92 are right, and this link leaves little to fill.
LOSS, SEED = "wifi-poor", 7
FRAME_RATE = 25
GOP = 25  # frames; one keyframe a second
SCENES = (  # condition, seconds
    ("pair", 9.0),
    ("still_noise", 6.0),
    ("still_voice", 7.0),
    ("pair", 7.0),
    ("talk_noise", 6.0),
    ("talk_other", 7.0),
    ("pair", 6.0),
)
ATTRIBUTION = (
    "Pictures and voices: GRID audio-visual speech corpus (Cooke, Barker, Cunningham, Shao, 2006), "
    "Zenodo 3625687, CC BY 4.0; cut, joined and re-encoded."
)

Truth = list[tuple[float, float, str]]  # start, end in seconds; label


def compose(
    corpus: Corpus, on_screen: str, elsewhere: str, seed: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[float, float, str]]]:
    """Frames uint8 (N, H, W), samples (S,), and the truth as (start, end, label); pictures of ``corpus`` are whole."""
    rng = np.random.default_rng(seed)
    pictures, sounds, truth, at = [], [], [], 0.0
    for condition, seconds in SCENES:
        grid = Grid(clips=1, seconds=seconds, frames=round(seconds * FRAME_RATE))
        mine, others = (_shuffled(rng, corpus, who) for who in (on_screen, elsewhere))
        reel, other = Reel(mine), Reel(others)
        faces = corpus.by_speaker[on_screen]
        pictures.append(
            still(rng, faces, grid, frozen=0.0) if condition.startswith("still") else reel.sight(grid.frame_times())
        )
        voice = {"pair": reel, "still_voice": other, "talk_other": other}.get(condition)
        background = coloured(rng, grid.samples, slope=0.8)
        background /= np.sqrt(np.mean(np.square(background)))
        sounds.append(mix(voice.sound(0.0, grid.samples) if voice else None, background, 20, 0.05 if voice else 0.005))
        truth.append((at, at + seconds, LABELS[LABEL_OF[condition]]))
        at += seconds
    return np.concatenate(pictures), np.concatenate(sounds), truth


def _shuffled(rng: np.random.Generator, corpus: Corpus, speaker: str) -> list[Utterance]:
    sentences = corpus.by_speaker[speaker]
    return [sentences[i] for i in rng.permutation(len(sentences))[:3]]


def record(corpus: Corpus, path: Path, *, loss: str = LOSS, seed: int = SEED) -> None:
    """Compose, encode, impair, and keep what arrived; replaces the recording at ``path``."""
    frames, sound, truth = compose(corpus, ON_SCREEN, ELSEWHERE, seed)
    with TemporaryDirectory() as folder:
        video = VideoTrack(
            frames=list(frames), rate=FRAME_RATE, gop=GOP, options={"crf": "23", "preset": "slow", "bf": "0"}
        )
        audio = AudioTrack(samples=sound, sample_rate=SAMPLE_RATE, codec="libopus", bit_rate=32_000)
        source = open_source(write_media(Path(folder) / "demo.mkv", [video, audio]), loss=loss, seed=seed)
        labels = {"truth": json.dumps(truth), "loss": f"{loss}, seed {seed}", "attribution": ATTRIBUTION}
        info = replace(source.info, name="demo", labels={**source.info.labels, **labels}, sequence_numbers=True)
        path.unlink(missing_ok=True)
        writer = RecordingWriter(path, info)
        for packet in source.packets():
            assert isinstance(packet, Packet), "a file makes no decisions"
            writer.append(packet)
        writer.close()
        source.close()
