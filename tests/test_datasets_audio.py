"""Public sets of sounds: AudioSet in its three sizes, VGGSound."""

from collections import Counter

import pytest

from encoders.datasets.audioset import balanced_subset
from encoders.datasets.corpus import open_corpus
from encoders.datasets.reader import read_sample
from encoders.datasets.sample import Sample, list_samples
from encoders.errors import DataError
from tests.trees import CLIP, Tree


@pytest.fixture
def tree(tmp_path, tmp_path_factory) -> Tree:
    return Tree(tmp_path, tmp_path_factory.getbasetemp())


HEADER = (
    "# Segments csv created Sun Mar  5 10:54:31 2017",
    "# num_ytids=1, num_segs=1, num_unique_labels=2, num_positive_labels=2",
    "# YTID, start_seconds, end_seconds, positive_labels",
)


def audioset(tree: Tree) -> Tree:
    names = ('0,/m/09x0r,"Speech"', '1,/m/05zppz,"Male speech, man speaking"', "2,/m/04rlf,Music")
    tree.text("class_labels_indices.csv", "index,mid,display_name", *names)
    tree.text("balanced_train_segments.csv", *HEADER, '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/05zppz"')
    tree.text(
        "unbalanced_train_segments.csv",
        *HEADER,
        '---1_cCGK4M, 0.000, 10.000, "/m/04rlf"',
        'Y--aE2O5G5W, 0.000, 10.000, "/m/04rlf,/m/09x0r"',
    )
    tree.text("eval_segments.csv", *HEADER, '--4gqARaEJE, 0.000, 10.000, "/m/04rlf"')
    tree.clips("balanced_train/Y--PJHxphWEs.wav", "unbalanced/---1_cCGK4M_0_10.wav", "unbalanced/Y--aE2O5G5W.wav")
    return tree.clips("eval/--4gqARaEJE.mp4", "eval/--4gqARaEJE.wav")


def test_audioset_finds_clips_however_they_were_named(tree):
    corpus = open_corpus(f"audioset:{audioset(tree)}")
    assert [(s.name, s.path.name, s.split, s.notes["part"]) for s in corpus.samples] == [
        ("--PJHxphWEs", "Y--PJHxphWEs.wav", "train", "balanced"),
        ("---1_cCGK4M", "---1_cCGK4M_0_10.wav", "train", "unbalanced"),
        ("Y--aE2O5G5W", "Y--aE2O5G5W.wav", "train", "unbalanced"),
        ("--4gqARaEJE", "--4gqARaEJE.mp4", "test", "eval"),  # the video, which has the sound too
    ]
    assert corpus.multi_label
    assert corpus.classes() == ("/m/09x0r", "/m/05zppz", "/m/04rlf")
    assert corpus.titles() == ("Speech", "Male speech, man speaking", "Music")
    assert [corpus.targets(s) for s in corpus.samples] == [(0, 1), (2,), (2, 0), (2,)]
    video, audio = read_sample(corpus.samples[0], CLIP)
    assert video is None
    assert audio.shape == (6_400,)
    assert audio.std() > 0.1


def test_audioset_comes_in_three_sizes(tree):
    audioset(tree)
    for name, train in (("audioset", 3), ("audioset_balanced", 1), ("audioset_500k", 2)):
        assert len(list_samples(f"{name}:{tree}", splits=["train"])) == train
        assert [s.name for s in list_samples(f"{name}:{tree}", splits=["test"])] == ["--4gqARaEJE"]


def segments(**counts):
    """Samples with one label each, as many as said."""
    return [Sample(path="x", name=f"{label}{i}", labels=(label,)) for label, n in counts.items() for i in range(n)]


def test_the_balanced_half_million_takes_rare_classes_whole():
    counts = Counter(s.labels[0] for s in balanced_subset(segments(music=1000, speech=400, toothbrush=7), 207))
    assert counts == {"music": 100, "speech": 100, "toothbrush": 7}


def test_the_balanced_half_million_counts_every_label_of_a_segment():
    both = [Sample(path="x", name=f"both{i}", labels=("music", "rare")) for i in range(20)]
    chosen = balanced_subset([*segments(music=200), *both], 40)
    counts = Counter(label for s in chosen for label in s.labels)
    assert counts["rare"] == 20  # a rare label brings its segment, whatever else is in it
    assert len(chosen) == 40


def test_the_balanced_half_million_is_the_same_in_any_order_and_at_any_place():
    samples = segments(music=50, speech=30)
    forth = [s.id for s in balanced_subset(samples, 20)]
    back = [s.id for s in balanced_subset(samples[::-1], 20)]
    assert forth == back[::-1]
    assert len(balanced_subset(samples, 1000)) == 80


def test_audioset_tables_that_are_wrong_are_one_sentence(tree):
    with pytest.raises(DataError, match=r"holds no balanced_train_segments.csv \(nor csv/balanced_train_segments.csv"):
        list_samples(f"audioset:{tree}")
    for row, reason in (
        ('--PJHxphWEs, 30.000, "/m/09x0r"', r"line 4 has 3 fields where 4 belong; download it again"),
        ('--PJHxphWE, 30, 40, "/m/09x0r"', r"line 4: '--PJHxphWE' is no YouTube id of 11 characters; correct the row"),
        ('--PJHxphWEs, 40, 30, "/m/09x0r"', r"line 4: --PJHxphWEs ends before it starts; correct the row"),
        ('--PJHxphWEs, nan, 30, "/m/09x0r"', r"line 4: start 'nan' is not a number of at least 0; correct the row"),
        ('--PJHxphWEs, 30, 40, "/m/unheard"', r"1 of 2 .* does not have '/m/unheard', the label of --PJHxphWEs; mend"),
    ):
        audioset(tree).text("balanced_train_segments.csv", *HEADER, row)
        with pytest.raises(DataError, match=reason):
            list_samples(f"audioset_balanced:{tree}")
    audioset(tree).text("class_labels_indices.csv", "index,mid,display_name", "1,/m/09x0r,Speech")
    with pytest.raises(DataError, match=r"class_labels_indices.csv: the indices are not 0 to 0; download it again"):
        list_samples(f"audioset:{tree}")


# --- VGGSound ---


def test_vggsound_has_no_header_and_commas_in_its_labels(tree):
    rows = ("---g-f_I2yQ,1,people marching,test", '-0SdAVK79lg,30,"cattle, bovinae mooing",train')
    tree.text("vggsound.csv", *rows).clips("video/---g-f_I2yQ_000001.mp4", "video/-0SdAVK79lg_000030.mp4")
    corpus = open_corpus(f"vggsound:{tree}")
    assert [(s.name, s.label, s.split) for s in corpus.samples] == [
        ("---g-f_I2yQ_000001", "people marching", "test"),
        ("-0SdAVK79lg_000030", "cattle, bovinae mooing", "train"),
    ]
    assert corpus.classes() == ("cattle, bovinae mooing", "people marching")
    video, audio = read_sample(corpus.samples[0], CLIP)
    assert (video.shape, audio.shape) == ((4, 16, 16, 3), (6_400,))


def test_vggsound_tables_that_are_wrong_are_one_sentence(tree):
    tree.text("vggsound.csv", "---g-f_I2yQ,1,people marching,dev")
    with pytest.raises(DataError, match=r"vggsound.csv line 1: split 'dev' is neither train nor test; correct the row"):
        list_samples(f"vggsound:{tree}")
    tree.text("vggsound.csv", "---g-f_I2yQ,1,people marching,test")
    with pytest.raises(DataError, match=r"1 of 1 samples .*_000001.mp4 is missing; mend them, or leave them out with"):
        list_samples(f"vggsound:{tree}")
    with pytest.raises(DataError, match=r"has nothing left to read: 1 of 1 samples"):
        list_samples(f"vggsound:{tree}", skip_bad=True)
