"""Names as a person reads them; in files and in Python they stay as they are."""

# what fills, in a word or two
RUNGS = {"curri_mae": "curri-MAE", "lerp": "interpolation", "observed_mean": "mean seen", "zero": "zeros"}


def words(label: str) -> str:
    """``on_screen`` -> "on screen"."""
    return label.replace("_", " ")


def rung_words(rung: str) -> str:
    """``curri_mae`` -> "curri-MAE"."""
    return RUNGS.get(rung, words(rung))
