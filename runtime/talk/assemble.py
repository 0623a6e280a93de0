"""The bundle of a finished run: weights, manifest, card."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor, nn

from encoders.settings import to_dict
from encoders.video.face_box import FaceBox
from imputation.calibrate import Calibration
from imputation.features import FeatureSet
from runtime.bundle import Bundle
from runtime.manifest import Manifest, make_manifest
from runtime.talk.fill import SERVED, Row, Trained, chosen
from runtime.talk.recipe import JAVA_PAIRS, Recipe
from runtime.talk.train_encoders import TalkNet
from runtime.talk.windows import LABELS

DESCRIPTION = (
    "Who speaks: nobody, the person on screen, or someone off screen. Audible speech decides first, then whether the "
    "visible mouth makes it. Two voices at once are not covered."
)
ATTRIBUTION = (
    "Trained on the GRID audio-visual speech corpus (Cooke, Barker, Cunningham, Shao, 2006; Zenodo 3625687; CC BY 4.0) "
    "and ESC-10 (Piczak, 2015; CC BY 3.0). "
    "The face net was distilled from BlazeFace (Bazarevsky et al., 2019; Apache-2.0)."
)
# What of a clip is believed: `bench.severity` chose it on features that came so, `bench.forgiven` judged it on replays.
THRESHOLDS = {"video": 0.5, "audio": 0.25}
FORGIVE = {"video": 1.0, "audio": 0.5}
RESEARCH = " Also trained on Java-SED (Arifin et al., 2022), for research only: do not redistribute."


@dataclass(frozen=True)
class Parts:
    """All that was trained."""

    recipe: Recipe
    net: TalkNet
    face: FaceBox
    fill: Trained
    train_set: FeatureSet
    calibrations: Mapping[str, Mapping[str, Calibration]]  # status -> head
    arms: Mapping[str, float]  # score of every arm on validation speakers; the best is served

    @property
    def arm(self) -> str:
        """The arm that is served."""
        return chosen(self.arms)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The arm's head, which is the bundle's default, and the one that knows nothing of loss."""
        return {name: getattr(self.fill, name) for name in dict.fromkeys((SERVED[self.arm][0], "plain"))}

    @property
    def imputer(self) -> nn.Module:
        """The one that its head learned with; where a rule fills, the one that learned by itself, for other heads."""
        imputer: nn.Module = getattr(self.fill, SERVED[self.arm][1], self.fill.imputer)
        return imputer

    @property
    def ladder(self) -> list[str]:
        filled = SERVED[self.arm][1]
        return ["curri_mae", "zero"] if filled.endswith("imputer") else list(dict.fromkeys((filled, "zero")))


def assemble(
    parts: Parts,
    clean: Mapping[str, Any],
    rows: Sequence[Row],
    folder: Path,
    elsewhere: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write the bundle, its card beside it. ``elsewhere``: scores on a corpus of which nothing was trained on."""
    manifest = manifest_of(parts, clean, rows, elsewhere)
    return Bundle.write(folder, manifest, tensors_of(parts), {"CARD.md": card(manifest)})


def tensors_of(parts: Parts) -> dict[str, dict[str, Tensor]]:
    """The weights of each file that the manifest names."""
    models: dict[str, nn.Module] = {
        "video": parts.net.video, "audio": parts.net.audio, "face": parts.face, "imputer": parts.imputer,
        **{f"head_{name}": head for name, head in parts.heads.items()},
    }  # fmt: skip
    assert parts.train_set.standardiser is not None
    models["standardise"] = parts.train_set.standardiser
    return {f"{name}.safetensors": dict(model.state_dict()) for name, model in models.items()}


def manifest_of(
    parts: Parts, clean: Mapping[str, Any], rows: Sequence[Row], elsewhere: Mapping[str, Any] | None
) -> Manifest:
    recipe = parts.recipe
    imputer: Any = parts.imputer
    overrides = {"dim": imputer.config.dim, "length": imputer.config.length, **recipe.fill.imputer_overrides}
    research = "java_sed" in recipe.corpora
    heads: dict[str, Any] = parts.heads
    default = next(iter(heads))
    values = {
        "format_version": 1,
        "name": "talk_research" if research else "talk",
        "description": DESCRIPTION,
        "labels": LABELS,
        "clip_seconds": Fraction(2, 5),
        "window": recipe.window,
        "lookahead": recipe.lookahead,
        "min_clips": recipe.min_clips,
        "thresholds": THRESHOLDS,
        "forgive": FORGIVE,
        "encoders": {
            "video": {"preset": "r2plus1d_talk", "weights": "video.safetensors"},
            "audio": {"preset": "conv2d_talk", "weights": "audio.safetensors"},
        },
        "face": {"preset": "face_box", "weights": "face.safetensors"},
        "standardise": "standardise.safetensors",
        "imputer": {"preset": recipe.fill.imputer, "overrides": overrides, "weights": "imputer.safetensors"},
        "ladder": parts.ladder,
        "heads": {
            name: {"kind": "gru", "config": to_dict(head.config), "weights": f"head_{name}.safetensors"}
            for name, head in heads.items()
        },
        "calibration": {status: by[default].as_dict() for status, by in parts.calibrations.items()},
        "training": {"command": "legato train talk" + " --research" * research, "recipe": asdict(recipe)},
        "metrics": metrics_of(parts, clean, rows, elsewhere),
        "licence": "LicenseRef-research-only" if research else "Apache-2.0",
        "attribution": ATTRIBUTION + RESEARCH * research,
    }
    return make_manifest(values, "talk")


def metrics_of(
    parts: Parts, clean: Mapping[str, Any], rows: Sequence[Row], elsewhere: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the card shows: the arm that is served and those it was chosen from, the default head on unseen speakers,
    its score by loss, and on another corpus."""
    mine = [row for row in rows if row.arm == parts.arm]
    lossy = {
        loss: round(mean(r.score for r in mine if r.loss == loss), 4) for loss in dict.fromkeys(r.loss for r in mine)
    }
    arms = {name: round(score, 4) for name, score in parts.arms.items()}
    values = {
        "arm": parts.arm,
        "arms": arms,
        "test": rounded(clean[next(iter(parts.heads))]),
        "score_by_loss": lossy,
        "speakers": sorted({r.speaker for r in mine}),
    }
    return values | ({"zero_shot": rounded(elsewhere)} if elsewhere is not None else {})


def rounded(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Scores by group, for people."""
    return {group: {k: round(v, 4) for k, v in found.items()} for group, found in scores.items()}


def other_people(metrics: Mapping[str, Any]) -> str:
    """How it did on Java-SED, women and men apart: a classifier of voices must say whose it knows less well."""
    found = metrics.get("zero_shot")
    if found is None:
        return ""
    by_sex = [[found[pair[i]]["score"] for pair in JAVA_PAIRS] for i in (0, 1)]
    women, men = (f"{min(scores):.2f} to {max(scores):.2f}" for scores in by_sex)
    score, still, mismatch = (found["all"][key] for key in ("score", "auc_still", "auc_mismatch"))
    return f"""
On Java-SED (another language, another camera; nothing was trained or fitted on it, though the choice of training
speakers was made in view of it) the score is {score:.3f}: women {women}, men {men}. AUC {still:.3f} for a true pair
against a still face with a voice, {mismatch:.3f} against another voice.
"""


def believed(manifest: Manifest) -> str:
    """Which clips are looked at although they did not come whole."""
    rows = "\n".join(
        f"| {modality} | {100 * share:g} % | {100 * manifest.forgive.get(modality, 0):g} % |"
        for modality, share in manifest.thresholds.items()
    )
    return f"""A clip that did not come whole is believed where more of it came than this, what an earlier loss spoiled
included up to a share of the clip (`bench/results/severity.md`, `bench/results/forgiven.md`):

| | came | of it spoiled, at most |
|---|---|---|
{rows}

The scores for real links are of features, where nothing spoiled was believed.
"""


def card(manifest: Manifest) -> str:
    """The bundle's page for people."""
    recipe, metrics = manifest.training["recipe"], manifest.metrics
    scores = metrics["test"]["all"]
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in scores.items())
    lossy = "\n".join(f"| {name} | {value:.3f} |" for name, value in metrics["score_by_loss"].items())
    compared = sorted(metrics["arms"].items(), key=lambda arm: -arm[1])
    arms = "\n".join(
        f"| {f'**{name}**' if name == metrics['arm'] else name} | {value:.3f} |" for name, value in compared
    )
    return f"""# {manifest.name}

{manifest.description}

Labels: {", ".join(manifest.labels)}. A window is {manifest.window} clips of {float(manifest.clip_seconds):g} s.

Trained on {", ".join(recipe["train"])}; offsets and temperatures fitted on {", ".join(recipe["validation"])};
tested on {", ".join(recipe["test"])}, who were never seen in training. Made by `{manifest.training["command"]}`.

| unseen speakers, nothing lost | |
|---|---|
{rows}

Score is the mean of the three class recalls. With clips lost (`clips-N`: N % of the clips of each modality by itself),
or the packets of a real link:

| loss | score |
|---|---|
{lossy}

{believed(manifest)}
What is served was chosen by validation speakers, of these arms (a head and what fills for it; the score is a mean over
nothing lost and 10 to 90 % of the clips):

| head, fill | validation |
|---|---|
{arms}

It has heard English sentences, read in a quiet room, and looked at frontal faces. It does not know music, crowds,
overlapping voices, profiles or masks. A face it cannot find is reported as `no_face`, not guessed.
{other_people(metrics)}
{manifest.attribution}
"""
