"""Training clips are cut to the face as a bundle's face finder shows it."""

from pathlib import Path

import numpy as np
import pytest

from encoders.datasets.labelled import Look
from encoders.errors import DataError
from encoders.video import face_box
from encoders.video.face_cut import FaceCut, cut
from runtime.bundle import SHIPPED

NET = SHIPPED / "talk" / "face.safetensors"


def face(x: float, y: float, size: int = 40) -> np.ndarray:
    """Something like a face at a place of a gray picture: a light oval with dark eyes and a mouth."""
    picture = np.full((144, 180), 90, np.uint8)
    rows, columns = np.mgrid[:144, :180]
    picture[((columns - x) / size) ** 2 + ((rows - y) / (1.3 * size)) ** 2 < 1] = 190
    for dx, dy, wide, high in ((-0.4, -0.3, 5, 3), (0.4, -0.3, 5, 3), (0, 0.6, 10, 3)):
        picture[((columns - x - dx * size) / wide) ** 2 + ((rows - y - dy * size) / high) ** 2 < 1] = 40
    return picture


def test_a_clip_becomes_squares_of_the_size_asked_for() -> None:
    found = FaceCut(FoundAt(0.5, 0.5, 0.25))
    gray = np.stack([face(90, 70)] * 10)
    assert found(gray, 64).shape == (10, 64, 64)
    assert found(np.repeat(gray[..., None], 3, -1), 80).shape == (10, 80, 80, 3)


def test_what_is_cut_lies_around_what_the_net_saw() -> None:
    gray = np.stack([face(90, 70)] * 4)
    once = FaceCut(FoundAt(0.5, 0.5, 0.25))(gray, 64)
    # found in the middle at a quarter of the long side, then again at a quarter of 2.6 times that
    assert (once == cut(gray, (90.0, 72.0, 0.25 * 2.6 * 45.0), 64)).all()


def test_a_margin_shows_more() -> None:
    gray = np.stack([face(90, 70)] * 4)
    far = FaceCut(FoundAt(0.5, 0.5, 0.25), 1.5)(gray, 64)
    assert (far == cut(gray, (90.0, 72.0, 1.5 * 0.25 * 2.6 * 45.0), 64)).all()


def test_without_a_face_there_is_nothing_to_learn_from() -> None:
    with pytest.raises(DataError, match="no face"):
        FaceCut(FoundAt(0.5, 0.5, 0.25, sure=-5.0))(np.zeros((10, 144, 180), np.uint8), 64)


def test_the_shipped_net_is_read_and_others_are_refused(tmp_path: Path) -> None:
    assert FaceCut.load(NET).margin == 1.0
    with pytest.raises(DataError, match="no such file"):
        FaceCut.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(DataError, match="no safetensors file"):
        FaceCut.load(tmp_path / "text.safetensors")


def test_a_look_at_faces_shows_the_short_side_of_them() -> None:
    look = Look(size=64, short_side=80, pixel_format="gray", face=FaceCut(FoundAt(0.5, 0.5, 0.25), 1.25))
    assert look.cut(np.stack([face(90, 70)] * 3)).shape == (3, 80, 80)


class FoundAt(face_box.FaceBox):
    """A net that always sees a face at one place of what it is shown."""

    def __init__(self, x: float, y: float, side: float, sure: float = 5.0) -> None:
        super().__init__(face_box.FaceBoxConfig())
        self.place, self.sure = (x, y, side), sure

    def boxes(self, votes):  # type: ignore[no-untyped-def]
        import torch

        return torch.tensor([self.place] * len(votes)), torch.full((len(votes),), self.sure).sigmoid()
