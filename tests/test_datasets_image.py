"""Public image sets, and pictures that are read like clips."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.datasets.corpus import classes_of, open_corpus
from encoders.datasets.images import read_frames, read_picture, read_raw
from encoders.datasets.matlab import read_structs
from encoders.datasets.reader import read_sample, seconds_of
from encoders.datasets.sample import list_samples
from encoders.errors import DataError, SourceError, UsageError
from tests.trees import CLIP, Tree, gradient, save


@pytest.fixture
def tree(tmp_path, tmp_path_factory) -> Tree:
    return Tree(tmp_path, tmp_path_factory.getbasetemp())


# --- ImageNet ---


def imagenet(tree: Tree, below: str = "") -> Tree:
    return tree.pictures(
        f"{below}train/n02119789/n02119789_10.JPEG",
        f"{below}train/n01440764/n01440764_18.JPEG",
        f"{below}train/n01440764/n01440764_36.JPEG",
    )


FLAT = ("val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG")


def labels(tree, split="val"):
    return [s.label for s in list_samples(f"imagenet:{tree}", splits=[split])]


def test_imagenet_in_folders_by_wnid(tree):
    imagenet(tree).pictures("val/n02119789/ILSVRC2012_val_00000001.JPEG")
    corpus = open_corpus(f"imagenet:{tree}")
    assert [(s.path.name, s.label, s.split) for s in corpus.samples] == [
        ("n01440764_18.JPEG", "n01440764", "train"),
        ("n01440764_36.JPEG", "n01440764", "train"),
        ("n02119789_10.JPEG", "n02119789", "train"),
        ("ILSVRC2012_val_00000001.JPEG", "n02119789", "val"),
    ]
    assert corpus.classes() == ("n01440764", "n02119789")
    assert seconds_of(corpus.samples[0]) == 0


def test_imagenet_as_kaggle_ships_it(tree):
    root = "ILSVRC/Data/CLS-LOC/"
    imagenet(tree, root).pictures(*(root + name for name in FLAT))
    tree.text("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca", "n02119789 kit fox, Vulpes macrotis")
    solution = (
        "ILSVRC2012_val_00000002,n01440764 1 2 3 4 ",
        "ILSVRC2012_val_00000001,n02119789 1 2 3 4 n02119789 5 6 7 8 ",
    )
    tree.text("LOC_val_solution.csv", "ImageId,PredictionString", *solution)
    assert labels(tree) == ["n02119789", "n01440764"]
    assert open_corpus(f"imagenet:{tree}").titles() == ("tench, Tinca tinca", "kit fox, Vulpes macrotis")


def test_imagenet_by_the_devkits_numbers(tree):
    imagenet(tree).pictures(*FLAT)
    with pytest.raises(
        DataError, match=r"neither LOC_val_solution.csv nor ILSVRC2012_validation_ground_truth.txt; add"
    ):
        labels(tree)
    tree.text("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", "1", "2")
    with pytest.raises(DataError, match=r"without meta.mat or map_clsloc.txt; add the devkit's other files"):
        labels(tree)
    tree.text("ILSVRC2012_devkit_t12/data/map_clsloc.txt", "n02119789 1 kit_fox", "n01440764 2 tench")
    assert labels(tree) == ["n02119789", "n01440764"]
    (tree.folder / "ILSVRC2012_devkit_t12/data/map_clsloc.txt").unlink()
    meta = synsets([("n01440764", 2.0), ("n02119789", 1.0)], packed=True)
    tree.bytes("ILSVRC2012_devkit_t12/data/meta.mat", meta)
    assert labels(tree) == ["n02119789", "n01440764"]
    tree.text("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", "1", "1861")
    with pytest.raises(DataError, match=r"ground_truth.txt line 2: class 1861 has no wnid; take all files of one dev"):
        labels(tree)


def test_a_validation_class_that_training_does_not_have_is_refused(tree):
    imagenet(tree).pictures("val/n09999999/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match=r"does not have 'n09999999', the label of val/ILSVRC2012_val_00000001; mend"):
        labels(tree)
    with pytest.raises(DataError, match=r"holds no folder train; give the folder that holds ImageNet"):
        list_samples(f"imagenet:{tree}/val")


# --- MATLAB files: what `meta.mat` is made of, written byte by byte ---


def element(kind: int, body: bytes) -> bytes:
    if 0 < len(body) <= 4:
        return struct.pack("<HH", kind, len(body)) + body.ljust(4, b"\0")
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def matrix(kind: int, shape: tuple[int, ...], name: str, *values: bytes) -> bytes:
    parts = (element(6, struct.pack("<II", kind, 0)), element(5, struct.pack(f"<{len(shape)}i", *shape)))
    return element(14, b"".join((*parts, element(1, name.encode()), *values)))


def synsets(records: list[tuple[str, float]], *, packed: bool = False) -> bytes:
    """A struct array with the two fields that are read, and one that is not."""
    fields = b"".join(name.ljust(16, b"\0") for name in (b"ILSVRC2012_ID", b"WNID", b"children"))
    values = [element(5, struct.pack("<i", 16)), element(1, fields)]
    for wnid, number in records:
        text = element(4, wnid.encode("utf-16-le"))  # MATLAB's 16-bit characters
        values += [
            matrix(6, (1, 1), "", element(9, struct.pack("<d", number))),
            matrix(4, (1, len(wnid)), "", text),
            matrix(6, (0, 0), "", element(9, b"")),
        ]
    whole = matrix(2, (len(records), 1), "synsets", *values)
    if packed:
        data = zlib.compress(whole)
        whole = struct.pack("<II", 15, len(data)) + data
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + whole


@pytest.mark.parametrize("packed", [False, True])
def test_a_matlab_struct_array_is_read(tree, packed):
    tree.bytes("meta.mat", synsets([("n02119789", 1.0), ("n01440764", 2.0)], packed=packed))
    records = read_structs(tree.folder / "meta.mat", "synsets")
    assert [(r["WNID"], r["ILSVRC2012_ID"].tolist()) for r in records] == [("n02119789", [1.0]), ("n01440764", [2.0])]
    with pytest.raises(
        DataError, match=r"meta.mat holds no struct array words; take it from the dataset's own archive"
    ):
        read_structs(tree.folder / "meta.mat", "words")


@given(st.integers(0, 600), st.integers(0, 255), st.booleans())
def test_a_damaged_matlab_file_is_one_sentence(tmp_path_factory, at, value, packed):
    data = bytearray(synsets([("n02119789", 1.0)], packed=packed))
    data[at % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.mat"
    path.write_bytes(bytes(data[: max(at, 128)]) if at % 2 else bytes(data))
    try:
        assert isinstance(read_structs(path, "synsets"), list)
    except DataError as error:
        assert "damaged.mat" in str(error)


# --- CIFAR ---


def record(*label: int, seed: int = 0) -> bytes:
    return bytes(label) + np.random.default_rng(seed).integers(0, 256, 3072, np.uint8).tobytes()


def cifar10(tree: Tree, below: str = "cifar-10-batches-bin/") -> Tree:
    tree.text(f"{below}batches.meta.txt", "airplane", "automobile", "bird", "")
    for i in range(1, 6):
        tree.bytes(f"{below}data_batch_{i}.bin", record(i % 3, seed=i) + record(0, seed=10 + i))
    return tree.bytes(f"{below}test_batch.bin", record(2, seed=99))


@pytest.mark.parametrize("below", ["cifar-10-batches-bin/", ""])
def test_cifar_10_is_read_from_its_binary_version(tree, below):
    corpus = open_corpus(f"cifar10:{cifar10(tree, below)}")
    assert [len(list_samples(f"cifar10:{tree}", splits=[split])) for split in ("train", "test")] == [10, 1]
    assert corpus.classes() == ("airplane", "automobile", "bird")
    assert [s.id for s in corpus.samples[:3]] == ["data_batch_1#0", "data_batch_1#1", "data_batch_2#0"]
    assert [s.label for s in corpus.samples[:3]] == ["automobile", "airplane", "bird"]
    second = corpus.samples[1]
    planes = np.frombuffer(record(0, seed=11)[1:], np.uint8).reshape(3, 32, 32)
    assert np.array_equal(read_raw(second.path, second.raw_at), planes.transpose(1, 2, 0))
    video = replace(CLIP.video, size=32)
    clip, sound = read_sample(second, replace(CLIP, video=video))
    assert sound is None
    assert all(np.array_equal(frame, planes.transpose(1, 2, 0)) for frame in clip)
    gray = replace(CLIP, video=replace(video, pixel_format="gray"))
    assert read_sample(second, gray)[0].shape == (4, 32, 32)


def test_cifar_100_has_fine_labels_and_notes_the_coarse_ones(tree):
    tree.text("cifar-100-binary/fine_label_names.txt", "apple", "aquarium_fish", "baby")
    tree.text("cifar-100-binary/coarse_label_names.txt", "aquatic_mammals", "fish")
    tree.bytes("cifar-100-binary/train.bin", record(1, 1)).bytes("cifar-100-binary/test.bin", record(0, 2))
    corpus = open_corpus(f"cifar100:{tree}")
    assert [(s.label, s.notes["coarse"]) for s in corpus.samples] == [
        ("aquarium_fish", "fish"),
        ("baby", "aquatic_mammals"),
    ]
    assert corpus.classes() == ("apple", "aquarium_fish", "baby")
    assert read_sample(corpus.samples[1], CLIP)[0].shape == (4, 16, 16, 3)


def test_cifar_that_is_a_pickle_or_cut_off_is_one_sentence(tree):
    tree.bytes("cifar-10-batches-py/data_batch_1", b"\x80\x04")
    with pytest.raises(
        DataError, match=r"the Python version, a pickle, which is not opened; unpack cifar-10-binary.tar"
    ):
        list_samples(f"cifar10:{tree}")
    with pytest.raises(DataError, match=r"holds no cifar-100-binary; unpack cifar-100-binary.tar.gz there"):
        list_samples(f"cifar100:{tree}")
    cifar10(tree).bytes("cifar-10-batches-bin/data_batch_3.bin", record(1)[:-1])
    with pytest.raises(DataError, match=r"data_batch_3.bin has 3072 bytes, which is no whole number of 3073; unpack"):
        list_samples(f"cifar10:{tree}")
    cifar10(tree).bytes("cifar-10-batches-bin/test_batch.bin", record(7))
    with pytest.raises(DataError, match=r"test_batch.bin: label 7 is not below 3; unpack the archive again"):
        list_samples(f"cifar10:{tree}")
    (tree.folder / "cifar-10-batches-bin/data_batch_3.bin").unlink()
    with pytest.raises(
        DataError, match=r"data_batch_3.bin cannot be read \(No such file or directory\); unpack the arc"
    ):
        list_samples(f"cifar10:{tree}")


# --- Oxford Pets ---


def pets(tree: Tree) -> Tree:
    tree.text("annotations/trainval.txt", "Abyssinian_100 1 1 1", "american_bulldog_100 2 2 1")
    tree.text("annotations/test.txt", "Abyssinian_201 1 1 1")
    tree.text("annotations/list.txt", "#Image CLASS-ID SPECIES BREED ID", "#ID: 1:37 class ids", "Abyssinian_100 1 1 1")
    return tree.pictures(
        *(f"images/{name}.jpg" for name in ("Abyssinian_100", "american_bulldog_100", "Abyssinian_201"))
    )


def test_pets_are_labelled_by_breed_in_the_order_of_their_numbers(tree):
    corpus = open_corpus(f"pets:{pets(tree)}")
    assert [(s.name, s.label, s.split, s.notes["species"]) for s in corpus.samples] == [
        ("Abyssinian_100", "Abyssinian", "train", "cat"),
        ("american_bulldog_100", "american_bulldog", "train", "dog"),
        ("Abyssinian_201", "Abyssinian", "test", "cat"),
    ]
    assert corpus.classes() == ("Abyssinian", "american_bulldog")
    tree.text("annotations/test.txt", "Abyssinian_201 2 1 1")
    with pytest.raises(DataError, match=r"test.txt: class 2 is Abyssinian and american_bulldog; take one release's"):
        list_samples(f"pets:{tree}")
    tree.text("annotations/test.txt", "Abyssinian_201 1")
    with pytest.raises(DataError, match=r"test.txt line 1: 'Abyssinian_201 1' is not NAME_NUMBER CLASS SPECIES BREED"):
        list_samples(f"pets:{tree}")


# --- RESISC45 ---


def test_resisc45_is_split_by_names_and_nothing_else(tree):
    names = [f"{label}/{label}_{i:03d}.jpg" for label in ("airplane", "airport") for i in range(1, 26)]
    for name in names:
        tree.bytes(f"NWPU-RESISC45/{name}", b"x")
    splits = {
        split: {s.id for s in list_samples(f"resisc45:{tree}", splits=[split])} for split in ("train", "val", "test")
    }
    assert {split: len(ids) for split, ids in splits.items()} == {"train": 30, "val": 10, "test": 10}
    assert {f"{i}.jpg" for ids in splits.values() for i in ids} == set(names)
    assert {label for label, _, _ in (i.partition("/") for i in splits["test"])} == {"airplane", "airport"}
    assert classes_of(f"resisc45:{tree}/NWPU-RESISC45") == ("airplane", "airport")


# --- cutting a split ---


def test_a_split_can_be_cut_and_the_parts_make_the_whole(tree):
    cifar10(tree)
    whole = [s.id for s in list_samples(f"cifar10:{tree}", splits=["train"])]
    first = [s.id for s in list_samples(f"cifar10:{tree}", splits=["train[:80%]"])]
    rest = [s.id for s in list_samples(f"cifar10:{tree}", splits=["train[80%:]"])]
    assert (len(first), len(rest)) == (8, 2)
    assert sorted([*first, *rest]) == sorted(whole)
    assert first == [i for i in whole if i in first]  # listed in the dataset's order
    for split, reason in (
        ("train[:0%]", r"holds none of the 10 samples of train; cut within 0% to 100%"),
        ("train[:8]", r"split 'train\[:8\]' is no cut; write for example train\[:98%\]"),
        ("dev[:50%]", "has no sample of split dev; it has test, train"),
    ):
        with pytest.raises((DataError, UsageError), match=reason):
            list_samples(f"cifar10:{tree}", splits=[split])


# --- reading ---


def test_pictures_keep_their_colours(tree):
    for name in ("a.png", "b.jpg", "c.bmp"):
        save(tree.folder / name, gradient(level=77))
        assert np.abs(read_picture(tree.folder / name).astype(int) - gradient(level=77)).mean() < 4
    assert read_picture(tree.folder / "a.png", "gray").shape == (32, 48)
    save(tree.folder / "gray.png", gradient()[..., 0])
    assert read_picture(tree.folder / "gray.png").shape == (32, 48, 3)


def test_what_is_no_picture_is_one_sentence(tree):
    tree.bytes("empty.jpg", b"").bytes("text.jpg", b"not a picture").bytes("short.bin", b"x" * 100)
    for name, reason in (
        ("empty.jpg", r"empty.jpg is no picture that can be read \(0 bytes\); copy it again"),
        ("text.jpg", r"text.jpg is no picture that can be read \(13 bytes\); copy it again"),
        ("gone.jpg", r"gone.jpg cannot be opened \(No such file or directory\); copy it again"),
    ):
        with pytest.raises(SourceError, match=reason):
            read_picture(tree.folder / name)
    with pytest.raises(SourceError, match=r"short.bin ends before the picture at byte 1; unpack the archive again"):
        read_raw(tree.folder / "short.bin", 1)


def test_frames_are_shown_at_their_time_and_only_those_are_read(tree):
    (tree.folder / "frames").mkdir()
    for i in range(1, 21):
        place = tree.folder / f"frames/frame_{i:010d}.png"
        if i in (12, 14, 16, 18):
            save(place, gradient(level=10 * i))
        else:
            place.write_bytes(b"never read")
    clip = read_frames(tree.folder / "frames", 0.5, 20.0, CLIP)  # 4 frames in 0.4 s: 0.55, 0.65, 0.75, 0.85 s
    assert [int(frame[0, 0, 2]) for frame in clip] == [120, 140, 160, 180]


def test_a_folder_without_frames_or_a_span_beyond_them_is_one_sentence(tree):
    tree.pictures("frames/frame_0000000001.png", "frames/frame_0000000002.png").text("other/readme.txt", "x")
    with pytest.raises(SourceError, match=r"frames holds no frame at 9.00 s; its last is at 0.02 s"):
        read_frames(tree.folder / "frames", 9.0, 50.0, CLIP)
    with pytest.raises(SourceError, match=r"other holds no numbered picture such as frame_0000000001.jpg; unpack"):
        read_frames(tree.folder / "other", 0.0, 50.0, CLIP)
    with pytest.raises(SourceError, match=r"nowhere cannot be opened \(No such file or directory\); unpack the frames"):
        read_frames(tree.folder / "nowhere", 0.0, 50.0, CLIP)


def test_a_frame_that_is_missing_is_covered_by_its_neighbours(tree):
    tree.pictures("f/img_1.png", "f/img_2.png", "f/img_5.png")  # blue is 0, 1, 2
    spec = replace(CLIP, video=replace(CLIP.video, frames=5))
    clip = read_frames(tree.folder / "f", 0.0, 12.5, spec)
    assert [int(frame[0, 0, 2]) for frame in clip] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_picture_that_is_cut_short_is_not_read_as_gray(tree, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    save(tree.folder / name, noise)
    whole = (tree.folder / name).read_bytes()
    tree.bytes(name, whole + b"\0" * 100)  # what follows the end does no harm
    assert read_picture(tree.folder / name).shape == (64, 64, 3)
    for length in range(1, len(whole), 511):
        tree.bytes(name, whole[:length])
        with pytest.raises(SourceError, match=rf"{name} is (no picture that can be read|a picture that is cut short)"):
            read_picture(tree.folder / name)
