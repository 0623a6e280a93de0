"""The curriculum: how many clips are hidden in each epoch, from one to all but one (curri-MAE, section 3)."""

from dataclasses import dataclass
from typing import Self

from encoders.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """``k`` clips of ``length`` are hidden per modality; one more every ``step`` epochs, of ``epochs`` in all.

    The count is an integer throughout: rates times lengths round wrongly on short sequences. Raises ConfigError
    when a value leaves nothing to hide or nothing to see.
    """

    length: int  # clips in a sequence, L
    epochs: int = 50
    step: int = 5  # epochs at each level

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ConfigError(f"curriculum length {self.length} leaves nothing to see; use at least 2 clips")
        for name in ("epochs", "step"):
            if getattr(self, name) < 1:
                raise ConfigError(f"curriculum {name} {getattr(self, name)} is not positive; use at least 1")

    @classmethod
    def spread(cls, length: int, epochs: int = 50) -> Self:
        """Levels of equal length over the run; the paper's 5 epochs for 10 clips and 10 epochs for 5."""
        return cls(length=length, epochs=epochs, step=max(1, epochs // max(length, 1)))

    def k(self, epoch: int) -> int:
        """Clips hidden in ``epoch`` (from 0): min(1 + epoch // step, L - 1); the last level holds."""
        assert epoch >= 0, f"epoch {epoch}"
        return min(1 + epoch // self.step, self.length - 1)

    def dropout_rate(self, epoch: int) -> float:
        """Share of clips hidden in ``epoch``, 0 to 1."""
        return self.k(epoch) / self.length
