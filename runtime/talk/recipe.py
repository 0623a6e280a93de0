"""How the bundle ``talk`` is made: speakers, lengths, seeds; and its variants for folds and research."""

from dataclasses import dataclass, field, replace

from encoders.datasets import java_sed
from runtime.errors import UsageError
from runtime.talk.fill import FillRecipe
from runtime.talk.train_encoders import EncoderRecipe
from runtime.talk.windows import Grid

GRID_SPEAKERS = tuple(f"grid/{s}" for s in ("s1", "s2", "s3", "s4", "s26", "s30", "s31", "s32", "s33"))
# Java-SED: one woman and one man each
JAVA_PAIRS = tuple((f"java_sed/{woman}", f"java_sed/{man}") for woman, man in java_sed.FOLDS)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Speakers and lengths. The defaults make the bundle that ships."""

    corpora: tuple[str, ...] = ("grid",)
    # two women, s4 and s31: where nobody but men is heard in training, other women's voices are taken for nobody's
    train: tuple[str, ...] = ("grid/s1", "grid/s2", "grid/s4", "grid/s26", "grid/s31")
    validation: tuple[str, ...] = ("grid/s3", "grid/s30")
    test: tuple[str, ...] = ("grid/s32", "grid/s33")
    window: int = 10  # W, clips
    lookahead: int = 3  # F_max, clips
    min_clips: int = 3
    face_steps: int = 4000
    encoders: EncoderRecipe = field(default_factory=EncoderRecipe)
    windows: int = 4000  # of training
    each: int = 40  # validation and test windows of every condition and speaker
    fill: FillRecipe = field(default_factory=FillRecipe)
    seed: int = 0

    @property
    def grid(self) -> Grid:
        """The windows that features are made of: the head's, and the lookahead."""
        return Grid(clips=self.window + self.lookahead)


def recipe_for(*, research: bool = False, encoder_steps: int | None = None, seed: int = 0) -> Recipe:
    """The bundle that ships, or the research bundle trained on Java-SED too (its first fold)."""
    recipe = Recipe(seed=seed, encoders=EncoderRecipe(seed=seed), fill=FillRecipe(seed=seed))
    if encoder_steps is not None:
        recipe = replace(recipe, encoders=replace(recipe.encoders, steps=encoder_steps))
    return folded(recipe, JAVA_PAIRS[0]) if research else recipe


def folded(recipe: Recipe, test: tuple[str, ...]) -> Recipe:
    """The recipe with other test speakers: nothing of theirs is trained or fitted on.

    Validation speakers are s3 and s30, or the next two free men; with Java-SED the next pair of actors as well.
    Raises UsageError for a speaker that does not exist.
    """
    java = [speaker for pair in JAVA_PAIRS for speaker in pair]
    if unknown := set(test) - {*GRID_SPEAKERS, *java}:
        raise UsageError(f"speaker {min(unknown)!r} is unknown; use {', '.join((*GRID_SPEAKERS, *java))}")
    order = ("grid/s3", "grid/s30", "grid/s26", "grid/s2", *GRID_SPEAKERS)
    validation = [s for s in dict.fromkeys(order) if s not in test][:2]
    research = any(speaker in java for speaker in test)
    speakers = list(GRID_SPEAKERS)
    if research:
        speakers += java
        held = [i for i, pair in enumerate(JAVA_PAIRS) if set(pair) & set(test)]
        validation += JAVA_PAIRS[(held[-1] + 1) % len(JAVA_PAIRS)]
        validation = [s for s in validation if s not in test]
    train = tuple(s for s in speakers if s not in test and s not in validation)
    corpora = ("grid", "java_sed") if research else ("grid",)
    return replace(recipe, corpora=corpora, train=train, validation=tuple(validation), test=test)
