"""The sets of curri-MAE: each on a small tree in its published layout, split by who is heard and seen."""

from collections import Counter
from fractions import Fraction

import pytest

from encoders.datasets.corpus import open_corpus
from encoders.datasets.crema_d import ACTORS
from encoders.datasets.equal_clips import PROTOCOL, spread
from encoders.datasets.lombard_grid import transcript
from encoders.datasets.ravdess import ACTORS as ACTORS_24
from encoders.datasets.reader import read_sample
from encoders.datasets.sample import list_samples, shipped
from encoders.datasets.speakers import drawn
from encoders.errors import DataError, UsageError
from tests.trees import CLIP, Tree


@pytest.fixture
def tree(tmp_path, tmp_path_factory) -> Tree:
    return Tree(tmp_path, tmp_path_factory.getbasetemp())


def empty(tree: Tree, *paths: str) -> Tree:
    """Files that are only listed."""
    for folder in {path.rpartition("/")[0] for path in paths}:
        (tree.folder / folder).mkdir(parents=True, exist_ok=True)
    for path in paths:
        (tree.folder / path).touch()
    return tree


# --- who goes where ---


def test_the_draw_is_the_same_everywhere_and_another_for_another_seed():
    sizes = {"test": 14, "val": 14}
    first, again, other = (drawn(ACTORS, sizes, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert Counter(first.values()) == Counter(other.values()) == {"train": 63, "test": 14, "val": 14}
    assert drawn(reversed(ACTORS), sizes, 0) == first
    assert sorted(name for name, split in first.items() if split == "test")[:4] == GOLDEN


GOLDEN = ["1001", "1016", "1017", "1020"]


def test_nobody_left_to_train_on_is_one_sentence():
    with pytest.raises(DataError, match=r"^1 speakers \(s1\) cannot be split into 1 for test, 1 for val and one for"):
        drawn(["s1"], {"test": 1, "val": 1}, 0)


# --- which clips ---


def test_clips_stand_side_by_side_in_the_middle():
    assert spread(3.0, Fraction(2, 5), 5) == ((0.5, 0.9, 1.3, 1.7, 2.1), False)
    assert spread(2.0, Fraction(2, 5), 5) == ((0.0, 0.4, 0.8, 1.2, 1.6), False)  # exactly full
    assert spread(10.0, Fraction(1, 2), 10).starts[0] == 2.5


def test_a_short_recording_is_spread_over_and_says_so():
    starts, overlap = spread(1.6, Fraction(2, 5), 5)
    assert starts == (0.0, 0.3, 0.6, 0.9, 1.2) and overlap
    assert spread(0.4, Fraction(2, 5), 3) == ((0.0, 0.0, 0.0), True)
    with pytest.raises(DataError, match=r"it lasts 0.390 s, less than one clip of 0.4 s; leave it out"):
        spread(0.39, Fraction(2, 5), 5)


def test_later_cuts_move_as_far_as_there_is_room():
    clip = Fraction(2, 5)
    assert spread(3.0, clip, 5, later=0.3).starts == (0.8, 1.2, 1.6, 2.0, 2.4)
    assert spread(2.2, clip, 5, later=0.3).starts == (0.2, 0.6, 1.0, 1.4, 1.8)  # the last ends with the recording
    assert spread(1.6, clip, 5, later=0.4) == ((0.4, 0.6, 0.8, 1.0, 1.2), True)
    assert spread(0.6, clip, 3, later=9.0) == ((0.2, 0.2, 0.2), True)
    assert spread(1.0, clip, 1, later=0.2).starts == (0.5,)


def test_clips_apart_are_fewer_in_a_short_recording():
    clip = Fraction(2, 5)
    assert spread(1.9, clip, 5, apart=True) == ((0.15, 0.55, 0.95, 1.35), False)
    assert spread(2.0, clip, 5, apart=True).starts == (0.0, 0.4, 0.8, 1.2, 1.6)
    assert spread(9.0, clip, 5, apart=True) == spread(9.0, clip, 5)
    assert not any(spread(n * 0.4, clip, n, apart=apart).overlap for n in range(1, 20) for apart in (False, True))
    assert spread(0.4, clip, 3, apart=True, later=1.0) == ((0.0,), False)
    with pytest.raises(DataError, match=r"less than one clip of 0.4 s"):
        spread(0.39, clip, 5, apart=True)


def test_the_paper_s_clips():
    spans = {name: float(p.clips * p.seconds) for name, p in PROTOCOL.items()}
    assert (spans["crema_d"], spans["ravdess"], spans["lombard_grid"], spans["audioset_20k"]) == (2.0, 4.0, 2.5, 5.0)


# --- CREMA-D ---

CREMA = ("1001_DFA_ANG_XX", "1001_IEO_HAP_LO", "1006_TIE_NEU_XX", "1040_ITH_SAD_X")


def test_crema_d_as_it_is_published(tree):
    empty(tree, *(f"VideoFlash/{name}.flv" for name in CREMA[:3]), *(f"AudioWAV/{name}.wav" for name in CREMA))
    empty(tree, "VideoDemographics.csv", "AudioMP3/1001_DFA_ANG_XX.mp3", "VideoFlash/README.flv")
    corpus = open_corpus(f"crema_d:{tree}")
    assert [(s.name, s.path.suffix, s.label, s.speaker) for s in corpus.samples] == [
        ("1001_DFA_ANG_XX", ".flv", "anger", "1001"),
        ("1001_IEO_HAP_LO", ".flv", "happy", "1001"),
        ("1006_TIE_NEU_XX", ".flv", "neutral", "1006"),
        ("1040_ITH_SAD_X", ".wav", "sad", "1040"),  # the one file whose level is cut short
    ]
    assert corpus.classes() == ("anger", "disgust", "fear", "happy", "neutral", "sad")
    assert corpus.samples[1].notes == {"sentence": "IEO", "level": "LO"}
    split = {s.speaker: s.split for s in corpus.samples}
    assert split == {"1001": "test", "1006": "train", "1040": "train"}  # whoever else is there
    assert open_corpus(f"crema_d:{tree}?seed=1").samples[0].split == "train"


def test_crema_d_converted_can_be_read(tree):
    corpus = open_corpus(f"crema_d:{tree.clips('1001_DFA_ANG_XX.mp4')}")
    video, audio = read_sample(corpus.samples[0], CLIP, start=0.3)
    assert video.shape == (4, 16, 16, 3) and audio.shape == (6_400,)


@pytest.mark.parametrize("name", ["1092_DFA_ANG_XX", "1001_DFX_ANG_XX", "1001_DFA_JOY_XX"])
def test_a_name_that_only_looks_like_crema_d_is_one_sentence(tree, name):
    with pytest.raises(
        DataError, match=f"{name}.flv is named like a recording of CREMA-D and has .*; rename or remove"
    ):
        list_samples(f"crema_d:{empty(tree, f'VideoFlash/{name}.flv')}")


# --- RAVDESS ---


def ravdess_names(actors: int = 24) -> list[str]:
    """Every full-AV file of the official release."""
    names = []
    for actor in range(1, actors + 1):
        for channel, emotions in (("01", range(1, 9)), ("02", range(1, 7))):
            if channel == "02" and actor == 18:
                continue
            for emotion in emotions:
                for strength in ("01",) if emotion == 1 else ("01", "02"):
                    names += [
                        f"01-{channel}-{emotion:02}-{strength}-{statement}-{repetition}-{actor:02}"
                        for statement in ("01", "02")
                        for repetition in ("01", "02")
                    ]
    return names


@pytest.mark.slow
def test_ravdess_has_its_published_counts(tree):
    """Livingstone and Russo 2018: 1440 speech and 1012 song recordings; 188 of them neutral."""
    empty(tree, *(f"Actor_{name[-2:]}/{name}.mp4" for name in ravdess_names()))
    corpus = open_corpus(f"ravdess:{tree}")
    assert Counter(s.notes["channel"] for s in corpus.samples) == {"speech": 1_440, "song": 1_012}
    assert len(open_corpus(f"ravdess:{tree}?neutral=false").samples) == 2_264
    assert len(open_corpus(f"ravdess:{tree}?song=false&neutral=false").samples) == 1_344


def test_ravdess_is_split_by_actor_across_speech_and_song(tree):
    kinds = (("01", 1), ("02", 4))  # neutral speech, sad song
    names = [f"01-{channel}-0{emotion}-01-01-01-{actor}" for actor in ACTORS_24 for channel, emotion in kinds]
    empty(tree, *(f"Actor_{name[-2:]}/{name}.mp4" for name in names))
    empty(tree, "Actor_01/02-01-01-01-01-01-01.mp4", "Audio/Actor_01/03-01-01-01-01-01-01.wav")  # one modality only
    corpus = open_corpus(f"ravdess:{tree}")
    assert sorted(s.name for s in corpus.samples) == sorted(names)
    speakers = {split: {s.speaker for s in corpus.samples if s.split == split} for split in ("train", "val", "test")}
    assert {split: len(names) for split, names in speakers.items()} == {"train": 16, "val": 4, "test": 4}
    assert speakers["test"] == {"04", "07", "15", "20"} and len(set.union(*speakers.values())) == 24
    seven = open_corpus(f"ravdess:{tree}?neutral=false")
    assert len(seven.samples) == 24 and len(seven.classes()) == 7 and "neutral" not in seven.classes()
    assert {s.speaker for s in seven.samples if s.split == "test"} == speakers["test"]
    other = {s.speaker for s in open_corpus(f"ravdess:{tree}?seed=1&song=false", splits=["test"]).samples}
    assert len(other) == 4 and other != speakers["test"]


def test_ravdess_names_say_what_was_done(tree):
    (sample,) = open_corpus(f"ravdess:{tree.clips('Actor_12/01-02-06-02-01-02-12.mp4')}").samples
    assert (sample.label, sample.speaker) == ("fearful", "12")
    assert sample.notes == {"channel": "song", "intensity": "strong", "statement": "kids", "repetition": "02"}


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("Actor_25/01-01-01-01-01-01-25.mp4", "is named like a recording of RAVDESS and says what it has not; rename"),
        ("Actor_01/01-01-09-01-01-01-01.mp4", "is named like a recording of RAVDESS and says what it has not; rename"),
        ("Actor_01/01-03-01-01-01-01-01.mp4", "is named like a recording of RAVDESS and says what it has not; rename"),
        ("Actor_01/03-01-01-01-01-01-01.wav", "holds recordings of one modality only .*; add those whose names begin"),
        ("Actor_01/film.mp4", "holds no recording named like 01-01-03-01-01-01-01.mp4; give the folder that holds"),
    ],
)
def test_a_folder_that_is_not_ravdess_is_one_sentence(tree, path, sentence):
    with pytest.raises(DataError, match=sentence):
        list_samples(f"ravdess:{empty(tree, path)}")


# --- Lombard GRID ---


def test_lombard_grid_as_it_unpacks(tree):
    names = [f"s{talker}_{how}_bbim3a" for talker in range(2, 56) for how in "lp"]
    empty(tree, *(f"lombardgrid/{view}/{name}.mov" for view in ("front", "side") for name in names))
    empty(tree, "lombardgrid/front/s46_p_gbszs_WRONG_sgbszs.mov", "lombardgrid/front/s27_l_bah2s_WRONG_#sil.mov")
    empty(tree, "lombardgrid/audio/s2_l_bbim3a.wav", "lombardgrid/alignment/s2_l_bbim3a.json")
    corpus = open_corpus(f"lombard_grid:{tree}")
    assert len(corpus.samples) == 109 and {s.path.parent.name for s in corpus.samples} == {"front"}
    assert Counter(s.label for s in corpus.samples) == {"lombard": 54, "plain": 55}
    speakers = {split: {s.speaker for s in corpus.samples if s.split == split} for split in ("train", "val", "test")}
    assert {split: len(names) for split, names in speakers.items()} == {"train": 38, "val": 8, "test": 8}
    of = {s.name: s for s in corpus.samples}
    assert of["s2_l_bbim3a"].sound.name == "s2_l_bbim3a.wav" and of["s3_l_bbim3a"].sound is None
    assert of["s2_l_bbim3a"].notes["transcript"] == "bin blue in m three again"
    assert of["s46_p_gbszs_WRONG_sgbszs"].notes["transcript"] == "set green by s zero soon"
    assert corpus.classes() == ("lombard", "plain")


def test_a_sound_in_a_file_of_its_own_is_heard_with_the_picture(tree):
    names = [f"s{talker}_p_lrwz9n" for talker in (2, 3, 4)]
    tree.clips(*(f"front/{name}.mp4" for name in names), "audio/s2_p_lrwz9n.wav")
    (tree.folder / "front/s2_p_lrwz9n.mp4").rename(tree.folder / "front/s2_p_lrwz9n.mov")
    samples = {s.speaker: s for s in open_corpus(f"lombard_grid:{tree}").samples}
    assert {s.split for s in samples.values()} == {"train", "val", "test"}
    for sample in samples.values():
        video, audio = read_sample(sample, CLIP, start=0.2)
        assert video.shape == (4, 16, 16, 3) and audio.shape == (6_400,) and abs(audio).max() > 0.5
    assert samples["s2"].sound is not None


def test_sentences_by_their_codes():
    assert transcript("lrwz9n") == "lay red with z nine now" and transcript("pgazzp") == "place green at z zero please"
    assert transcript("gbszs") == transcript("xbim3a") == transcript("bbim3aa") == ""


def test_a_folder_that_is_not_lombard_grid_is_one_sentence(tree):
    with pytest.raises(DataError, match=r"holds no front/TALKER_l_SENTENCE.mov such as front/s2_l_bbim3a.mov; give"):
        list_samples(f"lombard_grid:{empty(tree, 'front/bbim3a.mov')}")
    with pytest.raises(DataError, match=r"^2 speakers \(s2, s3\) cannot be split"):
        list_samples(f"lombard_grid:{empty(tree, 'front/s2_l_bbim3a.mov', 'front/s3_l_bbim3a.mov')}")


# --- AudioSet-20K ---

HEADER = "# YTID, start_seconds, end_seconds, positive_labels"


def test_audioset_20k_is_the_balanced_part_and_needs_nothing_else(tree):
    tree.text("balanced_train_segments.csv", HEADER, '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"')
    tree.clips("train/--4gqARaEJE.mp4")
    corpus = open_corpus(f"audioset_20k:{tree}")
    (sample,) = corpus.samples
    assert (sample.name, sample.split, sample.labels, sample.label) == ("--4gqARaEJE", "train", (), "")
    assert corpus.classes() == () and corpus.targets(sample) == ()


# --- options ---


def test_options_are_read_or_refused_in_one_sentence(tree):
    empty(tree, "Actor_01/01-01-03-01-01-01-01.mp4")
    for text, sentence in (
        (f"ravdess:{tree}?sead=1", "setting 'sead' is unknown; did you mean seed"),
        (f"ravdess:{tree}?seed=one", "seed='one' is not of type int; give a whole number, such as 3"),
        (f"ravdess:{tree}?seed=1&song", "dataset option 'song' of .* is not key=value; write for example"),
        (f"grid:{tree}?seed=1", "dataset grid has no options and seed is set; leave it out"),
        (f"vggsound:{tree}?seed=1", "dataset vggsound has no options and seed is set; leave it out"),
    ):
        with pytest.raises(UsageError, match=sentence):
            open_corpus(text)


def test_a_folder_may_have_a_question_mark_in_its_name(tree):
    empty(tree, "what?seed=3/Actor_01/01-01-03-01-01-01-01.mp4")
    assert len(open_corpus(f"ravdess:{tree}/what?seed=3").samples) == 1


# --- recordings ---


def test_the_sample_of_ravdess_is_read():
    try:
        folder = shipped("ravdess", "ravdess-av-sample")
    except UsageError:
        pytest.skip("LEGATO_DATA is not set")
    corpus = open_corpus(f"ravdess:{folder}")
    takes = sorted(s.name for s in corpus.samples)
    assert takes and all(name.startswith("01-") for name in takes) and {s.speaker for s in corpus.samples} == {"01"}
    assert len({s.split for s in corpus.samples}) == 1
    video, audio = read_sample(corpus.samples[0], CLIP, start=1.0)
    assert video.shape == (4, 16, 16, 3) and audio.any()
