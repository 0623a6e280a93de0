"""The face: cut where the box says, followed over clips, and said to be absent when it is."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from encoders.video import face_box
from runtime.errors import UsageError
from runtime.face import FaceState, FaceTracker, cut
from runtime.talk.faces import Shown, background, batch, loss, place, train, without_face


class Finds(torch.nn.Module):
    """A face net that finds the brightest spot, if there is one; its box is a tenth of the picture."""

    config = SimpleNamespace(size=64)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.looks = getattr(self, "looks", 0) + 1
        return pictures.float()

    def boxes(self, votes: torch.Tensor) -> Any:
        best = votes.flatten(1).max(1)
        y, x = best.indices // 64, best.indices % 64
        found = torch.stack(((x + 0.5) / 64, (y + 0.5) / 64, torch.full((len(votes),), 0.1)), 1)
        return found, (best.values > 128).float()


def clip(x: int | None, y: int = 60) -> Any:
    frames = np.zeros((10, 120, 160), np.uint8)
    if x is not None:
        frames[:, y - 6 : y + 6, x - 6 : x + 6] = 255
    return SimpleNamespace(video=frames)


def test_a_cut_square_is_what_lies_in_it() -> None:
    frame = np.arange(100 * 120, dtype=np.uint32).reshape(1, 100, 120) % 256
    frame = frame.astype(np.uint8)
    assert (cut(frame, (60, 50, 40), 40)[0] == frame[0, 30:70, 40:80]).all()


@pytest.mark.parametrize("side", [15.0, 40.0, 90.0, 400.0])
def test_a_cut_keeps_the_share_of_the_square_that_is_bright(side: float) -> None:
    frame = np.zeros((1, 480, 640), np.uint8)
    frame[0, 240 - int(side / 4) : 240 + int(side / 4), 320 - int(side / 4) : 320 + int(side / 4)] = 200
    expected = (2 * int(side / 4) / side) ** 2
    assert cut(frame, (320, 240, side), 40).mean() / 200 == pytest.approx(expected, abs=0.05)


def test_a_cut_beyond_the_edge_repeats_it() -> None:
    frame = np.full((1, 50, 50), 7, np.uint8)
    assert (cut(frame, (0, 0, 30), 20) == 7).all()


def test_a_face_is_found_and_cut_out() -> None:
    tracker = FaceTracker(Finds(), 40)  # type: ignore[arg-type]
    crops, state, found = tracker.locate(clip(100), tracker.initial_state())
    assert found and crops is not None and crops.shape == (10, 40, 40)
    assert state.box is not None and state.box[0] == pytest.approx(100, abs=6)


def test_a_face_that_moves_is_followed_with_one_look_a_clip() -> None:
    tracker = FaceTracker(Finds(), 40)  # type: ignore[arg-type]
    _, state, _ = tracker.locate(clip(80), FaceState())
    before = tracker.model.looks  # type: ignore[attr-defined]
    _, state, found = tracker.locate(clip(84), state)
    assert found and tracker.model.looks == before + 1  # type: ignore[attr-defined]
    assert state.box is not None and 78 < state.box[0] < 90


def test_a_face_that_leaves_is_reported_and_searched_anew() -> None:
    tracker = FaceTracker(Finds(), 40)  # type: ignore[arg-type]
    _, state, _ = tracker.locate(clip(80), FaceState())
    crops, state, found = tracker.locate(clip(None), state)
    assert crops is None and not found and state.box is None
    assert tracker.locate(clip(30), state)[2]


def test_the_state_is_a_value() -> None:
    tracker = FaceTracker(Finds(), 40)  # type: ignore[arg-type]
    _, state, _ = tracker.locate(clip(80), FaceState())
    first, again = (tracker.locate(clip(84), state) for _ in range(2))
    assert first[1] == again[1] and (first[0] == again[0]).all()  # type: ignore[union-attr]


def test_a_blank_picture_gives_finite_votes() -> None:
    net = face_box.build("face_box_tiny").eval()
    votes = net(torch.zeros(2, 32, 32, dtype=torch.uint8))
    boxes, sure = net.boxes(votes)
    assert boxes.shape == (2, 3) and sure.shape == (2,) and votes.isfinite().all() and boxes.isfinite().all()


def test_votes_are_read_where_they_are_strongest() -> None:
    net = face_box.build("face_box")
    votes = torch.full((1, 4, 8, 8), 0.0)
    votes[0, 0] = -9.0
    votes[0, 0, 2, 5], votes[0, 1, 2, 5], votes[0, 2, 2, 5], votes[0, 3, 2, 5] = 4.0, 0.5, -0.5, float(np.log(0.25))
    boxes, sure = net.boxes(votes)
    torch.testing.assert_close(boxes[0], torch.tensor([6.0 / 8, 2.0 / 8, 0.25]))
    assert float(sure[0]) > 0.95


def test_an_unknown_face_net_is_named() -> None:
    with pytest.raises(UsageError, match="face_bx"):
        face_box.build("face_bx")


def dot() -> Shown:
    """A gray frame whose 'mouth' is a bright square of 20 pixels in a box of 40."""
    frame = np.full((120, 160), 60, np.uint8)
    frame[50:70, 70:90] = 250
    return Shown(frame, (80.0, 60.0, 40.0))


def test_a_placed_face_lies_where_its_box_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        picture, (x, y, share) = place(rng, dot(), 64)
        near = cut(picture[None], (x * 64, y * 64, max(2.0, share * 64 * 0.3)), 8)[0]
        assert near.mean() > 130, (x, y, share)


def test_a_picture_without_a_face_does_not_show_it() -> None:
    rng = np.random.default_rng(1)
    assert background(rng, 64).shape == (64, 64)
    assert all(without_face(rng, dot(), 64).shape == (64, 64) for _ in range(10))


def test_the_face_net_learns_a_bright_mouth() -> None:
    torch.manual_seed(0)
    net = face_box.build("face_box_tiny", width=8)
    pictures, boxes = batch(np.random.default_rng(9), [[dot()]], 48, 32)
    judged = torch.from_numpy(pictures), torch.from_numpy(boxes)
    with torch.no_grad():
        before = float(loss(net.eval(), *judged))
    train(net, [[dot()]], steps=40, seed=0, log=lambda step, value: None)
    with torch.no_grad():
        assert float(loss(net, *judged)) < 0.7 * before


def test_colour_is_looked_at_in_gray_and_cut_in_colour() -> None:
    tracker = FaceTracker(Finds(), 40)  # type: ignore[arg-type]
    gray = clip(100)
    colour = SimpleNamespace(video=np.repeat(gray.video[..., None], 3, -1))
    expected, state, _ = tracker.locate(gray, tracker.initial_state())
    crops, same, found = tracker.locate(colour, tracker.initial_state())  # type: ignore[arg-type]
    assert found and crops is not None and crops.shape == (10, 40, 40, 3)
    assert same == state and (crops == expected[..., None]).all()
