"""Precision, batch shapes and graphs: what is chosen where, and that batches give what single clips give."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from encoders import registry
from encoders.serving import served, served_face
from encoders.video import face_box
from runtime import forward
from runtime.errors import ConfigError
from runtime.face import FaceState, FaceTracker, cut, follow_all
from runtime.forward import Forward, Graphed, bucket, choose_precision, lowered, precision
from tests.test_engine import clip
from tests.test_serving import clips, trained

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_is_bf16_where_the_device_has_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert choose_precision("auto", CPU, deterministic=False) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert choose_precision("auto", CPU, deterministic=False) == torch.bfloat16
    for capability, dtype in (((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, c=capability: c)
        assert choose_precision("auto", CUDA, deterministic=False) == dtype


def test_what_is_asked_for_is_what_is_taken_and_deterministic_means_fp32():
    assert choose_precision("bf16", CPU, deterministic=False) == torch.bfloat16
    assert choose_precision("fp32", CPU, deterministic=False) == torch.float32
    assert choose_precision("auto", CUDA, deterministic=True) == torch.float32
    with pytest.raises(ConfigError, match=r"engine\.precision is bf16; deterministic runs use fp32"):
        choose_precision("bf16", CPU, deterministic=True)
    with pytest.raises(ConfigError, match=r"engine\.precision is 'fp8'; use auto, fp32, bf16"):
        choose_precision("fp8", CPU, deterministic=False)


def test_a_batch_is_padded_to_the_next_size():
    assert [bucket(n) for n in (1, 2, 3, 9, 33, 64)] == [1, 2, 4, 16, 64, 64]
    assert bucket(100) == 64  # and is cut before


def test_a_lowered_module_is_a_copy_whose_products_are_bf16_and_whose_norms_are_not():
    original = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(1, 1, 1))
    low = lowered(original, torch.bfloat16)
    assert [p.dtype for p in low.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2 + [torch.bfloat16] * 2
    assert {p.dtype for p in original.parameters()} == {torch.float32}
    assert lowered(original, torch.float32) is original
    with precision(CPU, torch.bfloat16), torch.inference_mode():
        assert low[:2](torch.ones(2, 4)).shape == (2, 4)


def test_graphs_need_shapes_that_do_not_follow_the_data():
    packed = nn.Linear(1, 1)
    packed.pack = True  # type: ignore[assignment]
    free = lowered(packed, torch.float32, packed=False)
    assert packed.pack is True and free.pack is False


def test_a_batch_goes_through_a_cpu_in_chunks_and_keeps_its_order():
    sizes: list[int] = []

    def encode(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return batch.float()

    run = Forward(SimpleNamespace(encode=encode), CPU, torch.float32, chunk=4)
    rows = [np.full(3, n, np.float32) for n in range(10)]
    assert np.array_equal(run(rows), np.stack(rows)) and sizes == [4, 4, 2]


class Pair(NamedTuple):
    total: Tensor
    missing: Tensor | None


class Captures:
    """Stands in for CUDA: a graph is a call that reads and writes the same tensors each time."""

    def __init__(self, refuse: bool = False) -> None:
        self.sizes: list[int] = []
        self.refuse = refuse

    def __call__(self, call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Callable[[], None], Any]:
        if self.refuse:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.sizes.append(len(inputs[0]))
        outputs = call(*inputs)

        def replay() -> None:
            for held, new in zip(outputs, call(*inputs), strict=True):
                if held is not None:
                    held.copy_(new)

        return replay, outputs


def doubled(x: Tensor, y: Tensor) -> Pair:
    return Pair(2 * x + y, None)


def test_a_graph_is_made_once_for_each_size_and_padding_stays_inside():
    captures = Captures()
    run = Graphed(doubled, sizes=(1, 4, 8), capture=captures)
    kept = run(torch.ones(3, 2), torch.zeros(3, 2))
    again = run(torch.full((4, 2), 5.0), torch.ones(4, 2))
    run(torch.ones(1, 2), torch.ones(1, 2))
    assert captures.sizes == [4, 1]
    assert kept.total.tolist() == [[2, 2]] * 3 and kept.missing is None  # not what the graph wrote afterwards
    assert again.total.tolist() == [[11, 11]] * 4


def test_another_shape_or_type_is_another_graph():
    captures = Captures()
    run = Graphed(doubled, capture=captures)
    run(torch.ones(2, 2), torch.ones(2, 2))
    run(torch.ones(2, 3), torch.ones(2, 3))
    run(torch.ones(2, 3).double(), torch.ones(2, 3).double())
    assert captures.sizes == [2, 2, 2]


def test_what_cannot_be_captured_is_called_as_it_is():
    run = Graphed(doubled, sizes=(1, 2), capture=Captures(refuse=True))
    assert run(torch.ones(2, 1), torch.ones(2, 1)).total.tolist() == [[3], [3]]
    assert "not permitted" in run.refused
    large = Graphed(doubled, sizes=(1, 2), capture=Captures())
    assert len(large(torch.ones(5, 1), torch.ones(5, 1)).total) == 5 and not large.refused


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator that CUDA knows")
def test_a_cuda_graph_gives_what_the_function_gives():
    layer = nn.Linear(4, 4).cuda()
    run = Graphed(layer)
    with torch.inference_mode():
        for size in (1, 3, 8, 64):
            x = torch.randn(size, 4, device="cuda")
            assert torch.allclose(run(x), layer(x), atol=1e-6)
    assert not run.refused


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator that CUDA knows")
@pytest.mark.parametrize("preset", ["r2plus1d_talk", "conv2d_talk"])
def test_an_encoder_on_cuda_gives_what_it_gives_on_a_cpu(preset):
    encoder = trained(registry.build(preset))
    rows = list(clips(encoder, 5).numpy())
    expected = Forward(encoder, CPU, torch.float32)(rows)
    found = Forward(encoder.cuda(), CUDA, torch.bfloat16)(rows)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("preset", ["r2plus1d_talk", "r2plus1d_tiny", "conv2d_talk", "conv2d_tiny"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_encoders_for_batches_give_the_same_features(preset, dtype, within):
    encoder = trained(registry.build(preset))
    given = clips(encoder, 5)
    with torch.inference_mode():
        expected, found = encoder.encode(given), served(encoder, dtype=dtype, batched=True).encode(given)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=within * float(expected.abs().max()))


def test_a_black_picture_stays_zero_in_a_batch():
    encoder = served(trained(registry.build("r2plus1d_talk")), batched=True)
    assert not encoder.prepare(torch.zeros(2, 10, 40, 40, dtype=torch.uint8)).any()


class Picky(FaceTracker):
    """Sees no face in what is dark."""

    def see(self, pictures: np.ndarray) -> Any:
        found, sure = super().see(pictures)
        return found, torch.where(torch.from_numpy(pictures.mean((1, 2)) > 100), sure, 0.0)


def tracker() -> FaceTracker:
    """One that is sure of itself, and of small faces."""
    model = trained(face_box.build("face_box_tiny"))
    model.out.bias.data[0] += 5.0
    model.out.bias.data[3] -= 1.0
    return Picky(model, size=16)


def faces(stream: int, count: int = 4) -> list[Any]:
    draw = np.random.default_rng(stream)
    levels = [256 if (k + stream) % 3 else 100 for k in range(count)]
    pictures = [draw.integers(0, level, (4, 48, 64), dtype=np.uint8) for level in levels]
    return [replace(clip(k), video=p, version=int(k == 2)) for k, p in enumerate(pictures)]


def test_faces_of_many_streams_are_found_as_each_stream_finds_its_own():
    finder = tracker()
    expected = []
    for stream in range(5):
        state, own = FaceState(), []
        for item in faces(stream):
            own.append(located := finder.locate(item, state))
            state = located[1] if item.version == 0 else state
        expected.append(own)
    looks = [finder.follow(faces(stream), FaceState()) for stream in range(5)]
    together = follow_all(looks, finder.see)
    found = [one[2] for own in expected for one in own]
    assert any(found) and not all(found)
    for own, others in zip(expected, together, strict=True):
        assert not isinstance(others, Exception)
        for one, other in zip(own, others, strict=True):
            assert one[2] == other[2] and (one[1].box is None) == (other[1].box is None)
            assert one[1].box is None or one[1].box == pytest.approx(other[1].box, abs=1e-3)


def test_a_stream_whose_pictures_cannot_be_looked_at_disturbs_no_other():
    finder, bad = tracker(), [replace(clip(0), video=np.zeros((4, 0, 0), np.uint8))]
    looks = [finder.follow(faces(0), FaceState()), finder.follow(bad, FaceState())]
    good, failed = follow_all(looks, finder.see)
    assert isinstance(failed, Exception) and not isinstance(good, Exception) and len(good) == 4


def test_a_box_that_is_larger_than_its_picture_is_no_face():
    finder = tracker()
    finder.model.out.bias.data[0], finder.model.out.bias.data[3] = 9.0, 6.0  # sure of a giant
    for item in faces(0):
        assert finder.locate(item, FaceState((32.0, 24.0, 40.0)))[2] is False
    assert cut(np.ones((2, 3, 3), np.uint8), (1.0, 1.0, 1e6), 4).shape == (2, 4, 4)


def test_the_face_finder_for_batches_sees_the_same():
    model = trained(face_box.build("face_box"))
    pictures = torch.randint(0, 256, (5, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        boxes, sure = model.boxes(model(pictures))
        found, how = served_face(model)(pictures)
    assert torch.allclose(boxes, found, atol=1e-4) and torch.allclose(sure, how, atol=1e-4)


def test_nothing_here_asks_for_cuda_on_a_machine_without():
    assert forward.on_device(torch.ones(1), CPU).device == CPU
