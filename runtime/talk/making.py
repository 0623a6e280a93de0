"""The whole making of the bundle ``talk``, step by step; a step whose result lies in the folder is not done again.

prepare     recordings to arrays                                    cache/
face        the face net, distilled                                 face.safetensors
encoders    cross-modal agreement and the task                      net.safetensors
windows     features of training, validation and test windows       *.features.safetensors
fill        imputer and heads, the same steps for each              fill/
choose      the arm that is served, by validation speakers          arms-SEED.json
judge       tables on the test speakers                             clean-SEED.json, table-SEED.json
bundle      everything in one folder                                bundle/
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from encoders import registry
from encoders.heads import GRUHead, GRUHeadConfig
from encoders.training import seed_everything
from encoders.video import face_box
from imputation.calibrate import Calibration
from imputation.features import FeatureSet
from imputation.stored import load_head, load_imputer
from runtime.bundle import SHIPPED, Bundle
from runtime.errors import UsageError
from runtime.talk import demo, faces, fill, judge, prepare
from runtime.talk.assemble import Parts, assemble
from runtime.talk.corpus import Corpus
from runtime.talk.features import training_windows
from runtime.talk.fill import Trained
from runtime.talk.recipe import JAVA_PAIRS, Recipe
from runtime.talk.score import score
from runtime.talk.train_encoders import TalkNet, train
from runtime.talk.windows import LABELS, Grid

Say = Callable[[str, int, int], None]  # step, done, of
HEADS = ("tuned", "plain", "drops")


class Making:
    """A run of the recipe in a folder.

    ``frozen`` is the folder of another run whose encoders and face net are taken as they are: only the imputer and
    the heads are trained, which is how a bundle is fitted to another corpus.
    """

    def __init__(
        self, recipe: Recipe, data: Path, out: Path, say: Say, cache: Path | None = None, frozen: Path | None = None
    ):
        self.recipe, self.data, self.out, self.say = recipe, data, out, say
        self.cache, self.frozen = cache or out / "cache", frozen

    def prepare(self) -> None:
        for corpus in self.recipe.corpora:
            prepare.prepare(self.data, self.cache, corpus, lambda done, of, c=corpus: self.say(f"decode {c}", done, of))  # type: ignore[misc]
        prepare.prepare_noise(self.data, self.cache, lambda done, of: self.say("decode noise", done, of))
        self._begin()

    def _begin(self) -> None:
        """Make the run's folder; not before its data was found, so that a wrong path leaves nothing behind."""
        self.out.mkdir(parents=True, exist_ok=True)
        taken = {"encoders_from": self.frozen.name} if self.frozen else {}
        (self.out / "recipe.json").write_text(json.dumps(asdict(self.recipe) | taken, indent=2))

    def _nets(self, name: str) -> Path:
        """Where a net of the first stage lies, or will."""
        path = (self.frozen or self.out) / name
        if self.frozen and not path.exists():
            raise UsageError(f"the run {self.frozen} has no {name} to take; train it first")
        return path

    def corpus(self) -> Corpus:
        return prepare.load(self.cache, self.recipe.corpora)

    def face(self) -> face_box.FaceBox:
        """The face net, trained on the training speakers' frames."""
        seed_everything(self.recipe.seed)
        net, path = face_box.build("face_box"), self._nets("face.safetensors")
        if not path.exists():
            self._begin()
            shown = [
                s
                for c in self.recipe.corpora
                for n, s in prepare.faces(self.cache, c).items()
                if n in self.recipe.train
            ]
            steps = self.recipe.face_steps
            faces.train(net, shown, steps, self.recipe.seed, lambda step, _: self.say("face net", step + 1, steps))
            save_file(net.state_dict(), path)
        net.load_state_dict(load_file(path))
        return net.eval()

    def net(self) -> TalkNet:
        """Both encoders and the head they were trained with."""
        seed_everything(self.recipe.seed)
        net, path = new_net(), self._nets("net.safetensors")
        if not path.exists():
            self._begin()
            corpus = self.corpus()
            steps = self.recipe.encoders.steps
            with (self.out / "encoders.jsonl").open("w") as log:

                def step_done(step: int, losses: dict[str, float], averaged: TalkNet) -> None:
                    log.write(json.dumps({"step": step, **losses}) + "\n")
                    self.say("encoders", step + 1, steps)

                recipe, grid = self.recipe.encoders, Grid(clips=self.recipe.window)
                net = train(net, corpus.of(self.recipe.train), corpus.noise("train"), recipe, grid, step_done)
            save_file(net.state_dict(), path)
        net.load_state_dict(load_file(path))
        return net.eval().requires_grad_(False)

    def windows(self) -> tuple[FeatureSet, FeatureSet, FeatureSet]:
        """Training, validation and test windows with the training windows' standardisation."""
        train_set = self._set("train", self._training_windows)
        validation = self._set("validation", lambda: self.unseen(self.recipe.validation, "val", "validation"))
        test = self._set("test", lambda: self.unseen(self.recipe.test, "test", "test"))
        return train_set, fill.standardised_like(validation, train_set), fill.standardised_like(test, train_set)

    def unseen(self, speakers: Sequence[str], noise: str, split: str, each: int = 0) -> FeatureSet:
        """Windows of speakers that nothing was trained on, seen through the shipped face net."""
        recipe, net, face = self.recipe, self.net(), self.face()
        corpus = prepare.load(self.cache, sorted({s.split("/")[0] for s in speakers}))
        whole = judge.whole_pictures(self.data, corpus, speakers)
        return judge.unseen_windows(
            net, face, whole, list(speakers), each or recipe.each, recipe.seed + 1, recipe.grid, corpus.noise(noise),
            split, split == "validation", lambda done, of: self.say(f"{split} windows", done, of),
        )  # fmt: skip

    def _training_windows(self) -> FeatureSet:
        recipe, corpus = self.recipe, self.corpus()
        made = training_windows(
            self.net(), corpus.of(recipe.train), recipe.windows, recipe.seed, recipe.grid, corpus.noise("train"),
            recipe.window, lambda done, of: self.say("training windows", done, of),
        )  # fmt: skip
        return made.fitted()

    def _set(self, split: str, make: Callable[[], FeatureSet]) -> FeatureSet:
        path = self.out / f"{split}.features.safetensors"
        if not path.exists():
            make().save(path)
        return FeatureSet.load(path)

    def trained(self) -> Trained:
        folder = self.out / f"fill-{self.recipe.fill.seed}"
        if not (folder / "done").exists():
            train_set, validation, _ = self.windows()
            models = fill.train(
                self.recipe.fill,
                train_set,
                validation,
                folder,
                self.recipe.lookahead,
                lambda what: self.say(what, 0, 1),
            )
            save_file(models.tuned_imputer.state_dict(), folder / "tuned_imputer.safetensors")
            (folder / "done").touch()
        imputer, tuned_imputer = load_imputer(folder / "imputer"), load_imputer(folder / "imputer")
        tuned_imputer.load_state_dict(load_file(folder / "tuned_imputer.safetensors"))
        heads = {name: load_head(folder / name) for name in ("plain", "drops", "tuned")}
        return Trained(imputer, tuned_imputer.eval(), **heads)

    def calibrations(self) -> dict[str, dict[str, Calibration]]:
        """By status and head, fitted on validation speakers."""
        _, validation, _ = self.windows()
        models, lookahead = self.trained(), self.recipe.lookahead
        return {
            "provisional": fill.calibrate(models, validation, lookahead, (0,)),
            "final": fill.calibrate(models, validation, lookahead, (0, lookahead)),
        }

    def arms(self) -> dict[str, float]:
        """The score of every arm that can be served, on validation speakers; kept in the folder."""
        path, recipe = self.out / f"arms-{self.recipe.fill.seed}.json", self.recipe
        if not path.exists():
            _, validation, _ = self.windows()
            self.say("compare arms", 0, 1)
            found = fill.compare(self.trained(), self.calibrations()["final"], validation, recipe.lookahead,
                                 recipe.fill.seed)  # fmt: skip
            path.write_text(json.dumps(found, indent=1))
        return dict(json.loads(path.read_text()))

    def judge(self, draws: int = 10) -> tuple[dict[str, Any], list[fill.Row]]:
        """Scores without loss by head and speaker group, and the table under loss; both are kept in the folder."""
        paths = tuple(self.out / f"{name}-{self.recipe.fill.seed}.json" for name in ("clean", "table"))
        if not all(path.exists() for path in paths):
            _, _, test = self.windows()
            models, calibration = self.trained(), self.calibrations()["final"]
            clean = {name: self._clean(getattr(models, name), calibration[name], test) for name in HEADS}
            self.say("table", 0, 1)
            rows = fill.table(models, calibration, test, self.recipe.lookahead, draws, self.recipe.fill.seed)
            for path, values in zip(paths, (clean, [asdict(row) for row in rows]), strict=True):
                path.write_text(json.dumps(values, indent=1))
        clean, rows = (json.loads(path.read_text()) for path in paths)
        return clean, [fill.Row(**row) for row in rows]

    def zero_shot(self, speakers: Sequence[str], each: int) -> dict[str, Any]:
        """Scores on another corpus, of which nothing was seen or fitted; kept in the folder."""
        path = self.out / f"zero_shot-{self.recipe.fill.seed}.json"
        if not path.exists():
            train_set, models, calibration = self.windows()[0], self.trained(), self.calibrations()["final"]
            data = self._set("zero_shot", lambda: self.unseen(speakers, "test", "zero_shot", each))
            data = fill.standardised_like(data, train_set)
            found = {name: self._clean(getattr(models, name), calibration[name], data) for name in HEADS}
            path.write_text(json.dumps(found, indent=1))
        return dict(json.loads(path.read_text()))

    def elsewhere(self) -> dict[str, Any] | None:
        """The default head on Java-SED by speaker; None where it was trained on, or its recordings are not there."""
        if "java_sed" in self.recipe.corpora or not (self.data / prepare.FOLDERS["java_sed"]).is_dir():
            return None
        prepare.prepare(self.data, self.cache, "java_sed", lambda done, of: self.say("decode java_sed", done, of))
        head, _ = fill.SERVED[fill.chosen(self.arms())]
        return dict(self.zero_shot([actor for pair in JAVA_PAIRS for actor in pair], 25)[head])

    def bundle(self) -> Bundle:
        """Everything in one folder, ready to serve."""
        clean, rows = self.judge()
        train_set, _, _ = self.windows()
        parts = Parts(self.recipe, self.net(), self.face(), self.trained(), train_set, self.calibrations(),
                      self.arms())  # fmt: skip
        return assemble(parts, clean, rows, self.folder, self.elsewhere())

    @property
    def folder(self) -> Path:
        return self.out / "bundle"

    def install(self) -> None:
        """Put the bundle and its demo recording where the package looks for them."""
        place = SHIPPED / "talk"
        whole = judge.whole_pictures(self.data, self.corpus(), (demo.ON_SCREEN, demo.ELSEWHERE))
        shutil.copytree(self.folder, place, dirs_exist_ok=True)
        demo.record(whole, place / "demo.legato")

    def _clean(self, head: torch.nn.Module, calibration: Calibration, data: FeatureSet) -> dict[str, Any]:
        logits = fill.logits_of(head, data, self.recipe.window).log_softmax(-1)
        probabilities, _ = calibration(logits, 1.0)
        return scores(probabilities.log().numpy(), data)


def scores(logits: np.ndarray, data: FeatureSet) -> dict[str, Any]:
    """``score`` over all windows, by corpus and by speaker."""
    condition, speaker = judge.conditions_of(data), np.array(data.speaker)
    corpus = np.array([s.split("/")[0] for s in data.speaker])
    out = {"all": score(logits, condition)}
    for group in (corpus, speaker):
        out |= {str(g): score(logits[group == g], condition[group == g]) for g in np.unique(group)}
    return out


def new_net() -> TalkNet:
    """Untrained encoders and head."""
    video: Any = registry.build("r2plus1d_talk")
    audio: Any = registry.build("conv2d_talk")
    config = GRUHeadConfig(classes=len(LABELS), dim=video.dim, hidden=64, project=16, agreement=video.config.steps)
    return TalkNet(video, audio, GRUHead(config))
