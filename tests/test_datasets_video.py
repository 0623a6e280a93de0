"""Public video sets: each on a small tree in its published layout, with its published file names."""

import numpy as np
import pytest

from encoders.datasets.charades import actions
from encoders.datasets.corpus import classes_of, open_corpus
from encoders.datasets.reader import read_sample, seconds_of
from encoders.datasets.sample import list_samples
from encoders.errors import DataError, UsageError
from tests.trees import CLIP, Tree, gradient


@pytest.fixture
def tree(tmp_path, tmp_path_factory) -> Tree:
    return Tree(tmp_path, tmp_path_factory.getbasetemp())


def triples(samples):
    return [(s.path.name, s.label, s.split) for s in samples]


# --- Kinetics ---

HEADER = "label,youtube_id,time_start,time_end,split"
# quoted as in the official tables
TRAIN = ('"playing trumpet","--0edUL8zmA",92,102,"train"', "tai chi,abcdefghijk,5,15,train")
VAL = ("tai chi,-1IlTIWPNs4,60,70,validate",)


def kinetics(tree: Tree) -> Tree:
    """As CVDF ships it: flat folders, annotations apart, replacements for broken files."""
    tree.text("annotations/train.csv", HEADER, *TRAIN).text("annotations/val.csv", HEADER, *VAL)
    return tree.clips("train/--0edUL8zmA_000092_000102.mp4", "train/abcdefghijk_000005_000015.mp4").clips(
        "val/-1IlTIWPNs4_000060_000070.mp4"
    )


def test_kinetics_as_it_is_hosted(tree):
    kinetics(tree)
    corpus = open_corpus(f"kinetics400:{tree}")
    assert triples(corpus.samples) == [
        ("--0edUL8zmA_000092_000102.mp4", "playing trumpet", "train"),
        ("abcdefghijk_000005_000015.mp4", "tai chi", "train"),
        ("-1IlTIWPNs4_000060_000070.mp4", "tai chi", "val"),
    ]
    assert corpus.classes() == ("playing trumpet", "tai chi")
    assert [corpus.targets(s) for s in corpus.samples] == [(0,), (1,), (1,)]
    video, audio = read_sample(corpus.samples[0], CLIP)
    assert (video.shape, audio.shape) == ((4, 16, 16, 3), (6_400,))
    assert seconds_of(corpus.samples[0]) == pytest.approx(1, abs=0.1)


def test_kinetics_in_folders_by_label_with_tables_beside_them(tree):
    tree.text("train.csv", HEADER, *TRAIN).text("validate.csv", HEADER, *VAL)
    tree.clips("train/playing trumpet/--0edUL8zmA_000092_000102.mp4", "train/tai chi/abcdefghijk_000005_000015.mp4")
    tree.clips("val/tai chi/-1IlTIWPNs4_000060_000070.mp4")
    for name in ("kinetics400", "kinetics600", "kinetics700"):
        assert [s.split for s in list_samples(f"{name}:{tree}")] == ["train", "train", "val"]


def test_kinetics_without_tables_is_labelled_by_its_folders(tree):
    tree.clips("train/tai chi/a0000000000_000005_000015.mp4", "train/abseiling/b0000000000_000001_000011.mp4")
    tree.clips("val/tai chi/c0000000000_000005_000015.mp4")
    corpus = open_corpus(f"kinetics700:{tree}", splits=["val"])
    assert triples(corpus.samples) == [("c0000000000_000005_000015.mp4", "tai chi", "val")]
    assert corpus.classes() == ("abseiling", "tai chi")  # of all splits, so that training and test agree
    (tree.folder / "train/zumba").mkdir()
    with pytest.raises(DataError, match=r"class 'zumba' is empty \(.*train/zumba\); fill the folder or remove it"):
        list_samples(f"kinetics700:{tree}")


def test_a_replacement_stands_in_for_the_broken_clip(tree):
    kinetics(tree).clips("replacement/replacement_for_corrupted_k400/abcdefghijk_000005_000015.mp4")
    (tree.folder / "train/abcdefghijk_000005_000015.mp4").write_bytes(b"")
    assert "replacement" in str(list_samples(f"kinetics400:{tree}", splits=["train"])[1].path)


def test_videos_that_are_gone_are_counted_and_left_out_on_demand(tree):
    kinetics(tree)
    (tree.folder / "train/abcdefghijk_000005_000015.mp4").unlink()
    with pytest.raises(DataError, match=r"1 of 3 samples of .* because .*abcdefghijk_000005_000015.mp4 is missing; "):
        list_samples(f"kinetics400:{tree}")
    assert len(list_samples(f"kinetics400:{tree}", splits=["val"])) == 1  # another split is not held up
    corpus = open_corpus(f"kinetics400:{tree}", skip_bad=True)
    assert len(corpus.samples) == 2
    assert [bad.reason.rsplit("/", 1)[1] for bad in corpus.bad] == ["abcdefghijk_000005_000015.mp4 is missing"]
    assert corpus.classes() == classes_of(f"kinetics400:{tree}") == ("playing trumpet", "tai chi")


def test_kinetics_tables_that_are_wrong_are_one_sentence(tree):
    with pytest.raises(DataError, match=r"holds neither train.csv nor a folder train; give the folder that holds Kin"):
        list_samples(f"kinetics400:{tree}")
    tree.text("train.csv", HEADER, "tai chi,abcdefghijk,five,15,train")
    with pytest.raises(DataError, match=r"train.csv line 2: time_start 'five' is not a number of at least 0; correct"):
        list_samples(f"kinetics400:{tree}")
    tree.text("train.csv", HEADER, TRAIN[1], TRAIN[1]).clips("train/abcdefghijk_000005_000015.mp4")
    with pytest.raises(DataError, match="abcdefghijk_000005_000015 is listed twice"):
        list_samples(f"kinetics400:{tree}")
    assert len(list_samples(f"kinetics400:{tree}", skip_bad=True)) == 1
    tree.bytes("train.csv", f"{HEADER}\nd\xe9j\xe0 vu,abcdefghijk,5,15,train\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train.csv cannot be read \(it is not UTF-8 text\)"):
        list_samples(f"kinetics400:{tree}")


def test_a_test_set_without_labels_has_no_targets(tree):
    kinetics(tree).text("annotations/test.csv", "youtube_id,time_start,time_end,split", "zzzzzzzzzzz,1,11,test")
    tree.clips("test/zzzzzzzzzzz_000001_000011.mp4")
    corpus = open_corpus(f"kinetics600:{tree}", splits=["test"])
    assert [corpus.targets(s) for s in corpus.samples] == [()]


# --- Charades ---

CHARADES = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"


def charades(tree: Tree) -> Tree:
    tree.text("Charades_v1_classes.txt", "c000 Holding some clothes", "c001 Putting clothes somewhere", "c002 Dancing")
    row = '{},{},Home,6,7,Yes,"A person, at home.",clothes,"One, two",{},30.6'
    tree.text(
        "Charades_v1_train.csv",
        CHARADES,
        row.format("46GP8", "HR43", "c002 11.90 21.20;c000 0.00 12.60;c002 25.0 30"),
        row.format("N11GT", "0KZ7", ""),
    )
    tree.text("Charades_v1_test.csv", CHARADES, row.format("YSKX3", "T7C3", "c001 0.00 5.00"))
    return tree.clips(*(f"Charades_v1_480/{name}.mp4" for name in ("46GP8", "N11GT", "YSKX3")))


def test_charades_keeps_every_action_of_a_video(tree):
    corpus = open_corpus(f"charades:{charades(tree)}")
    assert corpus.multi_label
    assert [(s.name, s.labels, s.speaker, s.split) for s in corpus.samples] == [
        ("46GP8", ("c000", "c002"), "HR43", "train"),
        ("N11GT", (), "0KZ7", "train"),
        ("YSKX3", ("c001",), "T7C3", "test"),
    ]
    assert [corpus.targets(s) for s in corpus.samples] == [(0, 2), (), (1,)]
    assert corpus.titles() == ("Holding some clothes", "Putting clothes somewhere", "Dancing")
    assert actions(corpus.samples[0]) == [("c002", 11.9, 21.2), ("c000", 0.0, 12.6), ("c002", 25.0, 30.0)]


def test_charades_labels_must_be_in_the_class_list(tree):
    charades(tree).text("Charades_v1_classes.txt", "c000 Holding some clothes", "c001 Putting clothes somewhere")
    with pytest.raises(DataError, match=r"1 of 3 .* the class list does not have 'c002', the label of 46GP8; mend"):
        list_samples(f"charades:{tree}")
    tree.text("Charades_v1_test.csv", CHARADES, "YSKX3,T7C3,Home,6,7,Yes,s,o,d,c001 0.00,30.6")
    with pytest.raises(DataError, match=r"test.csv line 2: action 'c001 0.00' is not CLASS START END; correct the row"):
        list_samples(f"charades:{tree}")


# --- AViD ---


def test_avid_lists_what_its_dictionaries_name(tree):
    tree.json("dataset/avid_train.json", {"yrpxojhg.mp4": "tap dancing", "gzsyeiym.mp4": "none"})
    tree.json("dataset/avid_val.json", {"ovpgieoc.mp4": "baking"})
    tree.clips("AViD_small/yrpxojhg.mp4", "AViD_small/gzsyeiym.mp4", "ovpgieoc.mp4")
    corpus = open_corpus(f"avid:{tree}")
    assert triples(corpus.samples) == [
        ("yrpxojhg.mp4", "tap dancing", "train"),
        ("gzsyeiym.mp4", "none", "train"),
        ("ovpgieoc.mp4", "baking", "val"),
    ]
    assert corpus.classes() == ("baking", "none", "tap dancing")
    tree.json("dataset/avid_val.json", ["ovpgieoc.mp4"])
    with pytest.raises(DataError, match=r"avid_val.json holds a list where a dict belongs; download it again"):
        list_samples(f"avid:{tree}")
    tree.text("dataset/avid_val.json", "{")
    with pytest.raises(DataError, match=r"avid_val.json is no JSON \(line 2\); download it again"):
        list_samples(f"avid:{tree}")


# --- Something-Something v2 ---


def ssv2(tree: Tree, folder: str = "labels/", old: str = "") -> Tree:
    entry = {"id": "78687", "label": "potato on vicks box", "template": "Putting [something] on [something]"}
    tree.json(f"{folder}{old}train.json", [entry | {"placeholders": ["potato", "vicks box"]}])
    tree.json(f"{folder}{old}validation.json", [{"id": "74225", "label": "x", "template": "Holding [something]"}])
    tree.json(f"{folder}{old}test.json", [{"id": "1420"}])
    tree.json(f"{folder}{old}labels.json", {"Putting something on something": "0", "Holding something": "1"})
    return tree.clips(*(f"20bn-something-something-v2/{name}.webm" for name in ("78687", "74225", "1420")))


@pytest.mark.parametrize(("folder", "old"), [("labels/", ""), ("", "something-something-v2-")])
def test_ssv2_labels_are_templates_without_brackets(tree, folder, old):
    corpus = open_corpus(f"ssv2:{ssv2(tree, folder, old)}")
    assert triples(corpus.samples) == [
        ("78687.webm", "Putting something on something", "train"),
        ("74225.webm", "Holding something", "val"),
        ("1420.webm", "", "test"),
    ]
    assert corpus.classes() == ("Putting something on something", "Holding something")  # not alphabetical
    video, audio = read_sample(corpus.samples[0], CLIP)
    assert video.shape == (4, 16, 16, 3)
    assert audio is None


def test_ssv2_lists_that_are_wrong_are_one_sentence(tree):
    with pytest.raises(DataError, match=r"holds no train.json \(nor .*something-something-v2-train.json"):
        list_samples(f"ssv2:{tree}")
    ssv2(tree).json("labels/train.json", [{"id": "78687"}])
    with pytest.raises(DataError, match=r"train.json: entry 0 lacks an id or a template; download it again"):
        list_samples(f"ssv2:{tree}")
    ssv2(tree).json("labels/labels.json", {"Holding something": "1"})
    with pytest.raises(DataError, match=r"labels.json: the indices are not 0 to 0; download it again"):
        list_samples(f"ssv2:{tree}")


# --- EPIC-KITCHENS-100 ---

EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)


def epic(tree: Tree) -> Tree:
    at = "epic-kitchens-100-annotations/EPIC_100"
    tree.text(f"{at}_verb_classes.csv", "id,key,instances,category", "0,take,\"['take', 'get']\",retrieve", "1,put,x,y")
    tree.text(f"{at}_noun_classes.csv", "id,key,instances,category", "0,tap,x,y", "1,spoon,x,y", "2,plate,x,y")
    row = "{},P01,{},00:00:00.1,{},{},1,5,take plate,take,{},plate,{},['plate'],[2]"
    tree.text(f"{at}_train.csv", EPIC, row.format("P01_01_0", "P01_01", "00:00:00.10", "00:00:00.50", 0, 2))
    tree.text(f"{at}_validation.csv", EPIC, row.format("P01_101_0", "P01_101", "00:00:00.00", "00:00:00.10", 1, 1))
    test = "P01_01_1,P01,P01_01,00:00:00.5,00:00:00.50,00:00:00.90,5,9"
    tree.text(f"{at}_test_timestamps.csv", ",".join(EPIC.split(",")[:8]), test)
    tree.clips("P01/videos/P01_01.MP4")
    return tree.pictures(*(f"P01/rgb_frames/P01_101/frame_{i:010d}.jpg" for i in range(1, 11)))


def test_epic_kitchens_segments_have_two_heads(tree):
    corpus = open_corpus(f"epic_kitchens:{epic(tree)}")
    assert corpus.heads == ("noun", "verb")
    assert corpus.classes("verb") == ("take", "put")
    assert corpus.classes("noun") == ("tap", "spoon", "plate")
    first, second, third = corpus.samples
    assert (first.name, first.start, first.seconds, first.split) == ("P01_01_0", 0.1, pytest.approx(0.4), "train")
    assert (first.notes["verb"], first.notes["noun"], first.notes["narration"]) == ("take", "plate", "take plate")
    assert [(corpus.targets(s, "noun"), corpus.targets(s, "verb")) for s in (first, second, third)] == [
        ((2,), (0,)),
        ((1,), (1,)),
        ((), ()),
    ]
    assert (first.frame_rate, second.frame_rate) == (0.0, 50.0)  # a video, and the frames of the extension
    with pytest.raises(UsageError, match="has no head ''; it has noun, verb"):
        corpus.classes()


def test_epic_kitchens_frames_are_read_like_a_video(tree):
    video, frames = open_corpus(f"epic_kitchens:{epic(tree)}").samples[:2]
    assert read_sample(video, CLIP)[0].shape == (4, 16, 16, 3)
    clip, sound = read_sample(frames, CLIP, start=0.02)  # second frame at 50 per second
    assert (clip.shape, sound) == ((4, 16, 16, 3), None)
    assert seconds_of(frames) == pytest.approx(0.1)
    tree.text(
        "epic-kitchens-100-annotations/EPIC_100_video_info.csv", "video_id,duration,fps,resolution", "P01_101,1,25,x"
    )
    assert list_samples(f"epic_kitchens:{tree}", splits=["val"])[0].frame_rate == 25


def test_epic_kitchens_tables_that_are_wrong_are_one_sentence(tree):
    table = "epic-kitchens-100-annotations/EPIC_100_train.csv"
    row = "P01_01_0,P01,P01_01,0,{},{},1,5,n,take,{},plate,2,[],[]"
    for fields, reason in (
        (("00:00:0x", "00:00:01", 0), r"line 2: time '00:00:0x' is not HH:MM:SS.SS; correct the row"),
        (("00:00:02", "00:00:01", 0), r"line 2: the segment ends at 1 s, before 2 s; correct it"),
        (("00:00:00", "00:00:01", 9), r"line 2: verb_class 9 is not below 2; take one release"),
    ):
        epic(tree).text(table, EPIC, row.format(*fields))
        with pytest.raises(DataError, match=reason):
            list_samples(f"epic_kitchens:{tree}")
    (tree.folder / table).unlink()
    with pytest.raises(DataError, match=r"holds no EPIC_100_train.csv \(nor annotations/EPIC_100_train.csv"):
        list_samples(f"epic_kitchens:{tree}")


# --- Moments in Time ---


def moments(tree: Tree) -> Tree:
    tree.text("moments_categories.txt", "clapping,0", "baking,1")
    tree.text("trainingSet.csv", "clapping/yt-5of6ffo6-Bw_205.mp4,clapping,4,0", "baking/flickr-1_2.mp4,baking,3,1")
    tree.text("validationSet.csv", "baking/getty-2.mp4,baking,3,0")
    tree.clips("training/clapping/yt-5of6ffo6-Bw_205.mp4", "training/baking/flickr-1_2.mp4")
    return tree.clips("validation/baking/getty-2.mp4")


def test_moments_classes_are_in_the_order_of_its_categories(tree):
    corpus = open_corpus(f"moments:{moments(tree)}")
    assert triples(corpus.samples) == [
        ("yt-5of6ffo6-Bw_205.mp4", "clapping", "train"),
        ("flickr-1_2.mp4", "baking", "train"),
        ("getty-2.mp4", "baking", "val"),
    ]
    assert corpus.classes() == ("clapping", "baking")
    assert corpus.samples[1].notes == {"for": "3", "against": "1"}


def test_moments_without_tables_lists_what_lies_there(tree):
    moments(tree)
    for name in ("moments_categories.txt", "trainingSet.csv", "validationSet.csv"):
        (tree.folder / name).unlink()
    corpus = open_corpus(f"moments:{tree}")
    assert [s.label for s in corpus.samples] == ["baking", "clapping", "baking"]
    assert corpus.classes() == ("baking", "clapping")


def test_a_table_that_reaches_outside_its_folder_is_refused(tree):
    moments(tree).text("validationSet.csv", "../../secret.mp4,baking,3,0")
    with pytest.raises(DataError, match=r"validationSet.csv line 1: file '../../secret.mp4' lies outside .*validation"):
        list_samples(f"moments:{tree}")


# --- one law for all ---


@pytest.mark.parametrize(
    ("name", "build"),
    [("kinetics400", kinetics), ("charades", charades), ("ssv2", ssv2), ("epic_kitchens", epic), ("moments", moments)],
)
def test_listing_twice_gives_the_same_and_every_sample_can_be_read(tree, name, build):
    build(tree)
    samples = list_samples(f"{name}:{tree}")
    assert samples == list_samples(f"{name}:{tree}")
    assert len({s.id for s in samples}) == len(samples)
    for sample in samples:
        assert read_sample(sample, CLIP)[0].shape == (4, 16, 16, 3)


def test_the_gradient_comes_out_upright(tree):
    sample = open_corpus(f"ssv2:{ssv2(tree)}").samples[0]
    clip = read_sample(sample, CLIP)[0][0].astype(int)
    assert clip[8, -1, 0] - clip[8, 0, 0] > 100
    assert clip[-1, 8, 1] - clip[0, 8, 1] > 100
    assert np.ptp(gradient()[..., 2]) == 0


# --- folders that are not as they should be ---


def test_links_in_a_circle_end(tree):
    tree.json("avid_train.json", {"a.mp4": "baking"}).json("avid_val.json", {}).clips("videos/a.mp4")
    for name in ("up", "over"):
        (tree.folder / "videos" / name).symlink_to(tree.folder, target_is_directory=True)
    assert [s.path.name for s in list_samples(f"avid:{tree}")] == ["a.mp4"]


def test_a_linked_tree_is_found(tree, tmp_path_factory):
    tree.clips("elsewhere/a.mp4").json("avid_val.json", {}).json("set/avid_train.json", {"a.mp4": "baking"})
    tree.json("set/avid_val.json", {})
    (tree.folder / "set/videos").symlink_to(tree.folder / "elsewhere", target_is_directory=True)
    assert len(list_samples(f"avid:{tree}/set")) == 1


@pytest.mark.parametrize(
    "name", ["caf\udce9.mp4", "a\ud800b.mp4", "nul\0.mp4", "a" * 300 + ".mp4", "../../etc.mp4", ".mp4"]
)
def test_file_names_that_can_be_none_are_missing_and_no_more(tree, name):
    tree.json("avid_train.json", {name: "baking", "a.mp4": "baking"}).json("avid_val.json", {}).clips("a.mp4")
    corpus = open_corpus(f"avid:{tree}", splits=["train[:100%]"], skip_bad=True)
    assert [s.name for s in corpus.samples] == ["a"]
    assert len(corpus.bad) == 1


def test_numbers_out_of_bounds_are_one_sentence(tree):
    tree.text("avid_train.json", f'{{"a": {"9" * 5000}}}').json("avid_val.json", {})
    with pytest.raises(
        DataError, match=r"avid_train.json is no JSON \(its values are out of bounds\); download it again"
    ):
        list_samples(f"avid:{tree}")
    tree.text("avid_train.json", "[" * 100_000)
    with pytest.raises(DataError, match=r"avid_train.json is no JSON"):
        list_samples(f"avid:{tree}")


def test_frames_without_a_rate_are_refused(tree):
    epic(tree).text(
        "epic-kitchens-100-annotations/EPIC_100_video_info.csv", "video_id,duration,fps,resolution", "P01_101,1,0,x"
    )
    with pytest.raises(DataError, match=r"EPIC_100_video_info.csv: P01_101 has 0 frames per second; correct the row"):
        list_samples(f"epic_kitchens:{tree}")


def test_a_row_that_is_cut_short_is_named(tree):
    tree.text("train.csv", HEADER, "tai chi,abcdefghijk")
    with pytest.raises(DataError, match=r"train.csv line 2 is cut short; download it again"):
        list_samples(f"kinetics400:{tree}")
