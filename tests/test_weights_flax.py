"""Files of the public JAX code: what Flax writes is read to the last bit, and hostile bytes are one sentence."""

import io
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from encoders.errors import DataError
from encoders.weights import message_pack
from encoders.weights.flax import read_flax

# --- MessagePack as Flax writes it: extension 1 for arrays, 3 for scalars -----------------------------------------


def packed(value) -> bytes:
    """A value in MessagePack, every length in its shortest form."""
    if value is None or isinstance(value, bool):
        return bytes([{None: 0xC0, False: 0xC2, True: 0xC3}[value]])
    if isinstance(value, dict):
        return sized(len(value), 0x80, 16, (None, 0xDE, 0xDF)) + b"".join(map(packed, sum(value.items(), ())))
    if isinstance(value, list | tuple):
        return sized(len(value), 0x90, 16, (None, 0xDC, 0xDD)) + b"".join(map(packed, value))
    if isinstance(value, str):
        return sized(len(value.encode()), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + value.encode()
    if isinstance(value, bytes):
        return sized(len(value), 0, 0, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, int):
        return bytes([value & 0xFF]) if -32 <= value < 128 else b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    kind, name = (1 if isinstance(value, np.ndarray) else 3), str(value.dtype)
    return extension(kind, packed((list(value.shape), name, value.astype(value.dtype.newbyteorder("<")).tobytes())))


def extension(kind: int, body: bytes) -> bytes:
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(len(body))
    head = bytes([fixed]) if fixed else sized(len(body), 0, 0, (0xC7, 0xC8, 0xC9))
    return head + struct.pack(">b", kind) + body


def sized(count: int, fixed: int, below: int, codes: tuple[int | None, ...]) -> bytes:
    if count < below:
        return bytes([fixed | count])
    for code, form, limit in zip(codes, (">B", ">H", ">I"), (1 << 8, 1 << 16, 1 << 32), strict=True):
        if code is not None and count < limit:
            return bytes([code]) + struct.pack(form, count)
    raise OverflowError


@pytest.fixture
def read(tmp_path):
    def reading(data: bytes):
        (tmp_path / "checkpoint_1").write_bytes(data)
        return read_flax(tmp_path / "checkpoint_1")

    return reading


WEIGHTS = {"embedding": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "bias": np.ones(4, np.float16)}}


@pytest.mark.parametrize(
    "state",
    [
        WEIGHTS,
        {"params": WEIGHTS, "global_step": 7, "opt_state": {"0": {"mu": WEIGHTS}}, "rng": np.ones(2, np.uint32)},
        {"params": {"params": WEIGHTS}, "model_state": {}, "metadata": None},
        {"optimizer": {"target": WEIGHTS, "state": {"step": np.int32(3)}}, "model_state": {}, "global_step": 3},
        {"optimizer": {"target": {"params": WEIGHTS}}},
        {"opt": {"target": WEIGHTS}},
    ],
    ids=["bare", "train state", "module in a state", "old train state", "old, wrapped", "image ViT"],
)
def test_the_parameters_are_found_in_every_state(read, state):
    found = read(packed(state))
    assert set(found.arrays) == {"embedding/kernel", "embedding/bias"}
    assert np.array_equal(found.arrays["embedding/kernel"], WEIGHTS["embedding"]["kernel"])


def test_what_is_left_out_is_named(read):
    assert read(packed({"params": WEIGHTS, "opt_state": {}, "rng": None})).without == ("opt_state", "rng")


def test_statistics_of_norms_are_not_dropped_in_silence(read):
    state = {"params": WEIGHTS, "model_state": {"batch_stats": {"bn": {"mean": np.zeros(2, np.float32)}}}}
    assert "model_state/batch_stats/bn/mean" in read(packed(state)).arrays


def test_bfloat16_becomes_float32_exactly(read):
    numbers = torch.tensor([0.0, -0.0, 1.5, -3.14159, 1e-40, torch.finfo(torch.bfloat16).max], dtype=torch.bfloat16)
    bits = numbers.view(torch.int16).numpy().tobytes()
    body = packed(([2, 3], "bfloat16", bits))
    got = read(packed({"a": 1.0})[:3] + extension(1, body)).arrays["a"]
    assert got.dtype == np.float32 and np.array_equal(got.ravel(), numbers.float().numpy())


def test_a_large_array_comes_in_chunks(read):
    whole = np.arange(10, dtype=np.float32)
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2, "1": 5},
        "chunks": {"0": whole[:4], "1": whole[4:8], "2": whole[8:]},
    }
    assert np.array_equal(read(packed({"x": chunked})).arrays["x"], whole.reshape(2, 5))


def test_older_versions_wrote_text_as_bytes(read):
    body = b"\x93" + packed([3]) + packed(b"float32") + packed(np.ones(3, "<f4").tobytes())
    assert np.array_equal(read(b"\x81" + packed(b"a") + extension(1, body)).arrays["a"], np.ones(3))


@given(
    st.dictionaries(
        st.text("abcdef_0", min_size=1, max_size=5),
        hnp.arrays(
            st.sampled_from(["float32", "float64", "float16", "int32", "uint8", "bool"]),
            hnp.array_shapes(min_dims=0, max_dims=4, max_side=5),
        ),
        max_size=5,
    )
)
@settings(deadline=None, max_examples=60)
def test_what_is_packed_is_unpacked_bit_for_bit(tree):
    back = message_pack.unpack(packed(tree))
    assert back.keys() == tree.keys()
    for name, array in tree.items():
        assert back[name].dtype == array.dtype and back[name].tobytes() == array.tobytes()
        assert back[name].shape == array.shape


# --- hostile bytes ------------------------------------------------------------------------------------------------

GOOD = packed({"params": WEIGHTS, "step": np.int64(3)})


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_a_value_or_one_error(data):
    try:
        message_pack.unpack(data)
    except ValueError as error:
        assert "\n" not in str(error)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, len(GOOD)))
@settings(deadline=None, max_examples=300)
def test_an_altered_checkpoint_is_read_or_refused(tmp_path_factory, place, byte, end):
    data = bytearray(GOOD)
    data[place] = byte
    path = tmp_path_factory.getbasetemp() / "altered"
    path.write_bytes(bytes(data[:end]))
    try:
        read_flax(path)
    except DataError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"\xdf\xff\xff\xff\xff", "4 short of what it announces"),  # a map of four thousand million
        (b"\xdd\xff\xff\xff\xff" + b"\xc0" * 9, "short of what it announces"),
        (b"\x81\xa1a" + b"\x91" * 100, "nests deeper than 64"),
        (b"\x81\xa1a\xc1", "has the byte 0xc1 at 3, which begins nothing"),
        (packed({"a": 1}) + b"\x00", "goes on for 1 bytes after its end"),
        (b"\x82" + packed("a") + packed(1) + packed("a") + packed(1), "has a map with the key 'a' twice"),
        (b"\x81\x01\x01", "has a map whose key is a int, not text"),
        (b"\x81\xa1a" + extension(2, packed((1.0, 2.0))), "a value of extension type 2"),
        (b"\x81\xa1a" + extension(1, packed(([1 << 40], "float32", b"abcd"))), "in 4 bytes"),
        (b"\x81\xa1a" + extension(1, packed(([-1], "float32", b"abcd"))), "an array of shape [-1]"),
        (b"\x81\xa1a" + extension(1, packed(([1], "object", b"abcdefgh"))), "'object', which are no numbers"),
        (packed({"a": "text"}), "holds str instead of an array at a"),
        (packed({"__msgpack_chunked_array__": True, "shape": {"0": 1 << 40}, "chunks": {"0": np.ones(1)}}), "chunked"),
        (packed({"__msgpack_chunked_array__": True}), "are not numbered from 0"),
        (packed([1, 2]), "holds no tree of parameters"),
        (packed({"a": {}}), "holds no arrays"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(read, data, sentence):
    with pytest.raises(DataError) as error:
        read(data)
    said = str(error.value)
    assert "\n" not in said and "; give a" in said
    assert sentence in said or (sentence.startswith("4 short") and "short of" in said)


# --- npz ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flat_archive_is_read_through_its_prefix(tmp_path, prefix, save):
    kernel = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    save(tmp_path / "vit.npz", **{f"{prefix}head/kernel": kernel, f"{prefix}cls": np.zeros((1, 1, 4), np.float32)})
    found = read_flax(tmp_path / "vit.npz")
    assert set(found.arrays) == {"head/kernel", "cls"} and np.array_equal(found.arrays["head/kernel"], kernel)


def test_a_path_may_be_as_long_as_it_likes(tmp_path):
    path = "optimizer/target/" + "SpatialTransformer/" * 20 + "kernel"
    np.savez(tmp_path / "long.npz", **{path: np.ones(2)})
    assert list(read_flax(tmp_path / "long.npz").arrays) == [path.removeprefix("optimizer/target/")]


def test_numpys_nameless_bfloat16_is_known(tmp_path):
    bits = torch.tensor([1.5, -2.0], dtype=torch.bfloat16).view(torch.int16).numpy().view("V2")
    np.savez(tmp_path / "b.npz", a=bits)
    assert read_flax(tmp_path / "b.npz").arrays["a"].tolist() == [1.5, -2.0]


def test_an_archive_of_objects_is_refused_unread(tmp_path):
    np.savez(tmp_path / "o.npz", a=np.array([{}], object))
    with pytest.raises(DataError, match=r"holds objects instead of numbers in 'a\.npy'"):
        read_flax(tmp_path / "o.npz")


def test_a_torch_archive_is_refused_unread(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "t.bin")
    with pytest.raises(DataError, match="is a pickle of torch, which is not read"):
        read_flax(tmp_path / "t.bin")


def test_an_archive_that_would_unpack_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("encoders.weights.flax.MAX_UNPACKED", 1000)
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(100_000))
    with pytest.raises(DataError, match="would unpack from"):
        read_flax(tmp_path / "bomb.npz")


def npy_with_shape(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 8


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(1 1,)", "(-1,)", "(2.5,)", "'x'", "(3,)", "(" * 300])
def test_an_array_that_announces_more_than_there_is_allocates_nothing(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy_with_shape(shape))
    with pytest.raises(DataError, match=r"holds 'a\.npy'|is cut inside"):
        read_flax(tmp_path / "a.npz")


def small_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{"a/b": np.ones(3, np.float32), "a/c": np.arange(4)})
    return buffer.getvalue()


ARCHIVE = small_archive()


@given(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255))
@settings(deadline=None, max_examples=200)
def test_an_altered_archive_is_read_or_refused(tmp_path_factory, place, byte):
    data = bytearray(ARCHIVE)
    data[place] = byte
    path = tmp_path_factory.getbasetemp() / "altered.npz"
    path.write_bytes(bytes(data))
    try:
        read_flax(path)
    except DataError as error:
        assert "\n" not in str(error)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"could not be read \(No such file or directory\); name a checkpoint file"):
        read_flax(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"could not be read \(Is a directory\)"):
        read_flax(tmp_path)
