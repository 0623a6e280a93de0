"""PolyViT against its paper and public code: parameters, cost, golden vectors, what is shared and what is not."""

import re
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from encoders.adapters import adapted
from encoders.audiovisual.inputs import AudioInput, ImageInput, VideoInput
from encoders.audiovisual.polyvit import (
    NINE_TASKS,
    PRESETS,
    VIDEO_TASKS,
    PolyViT,
    PolyViTConfig,
    TaskHead,
    task_loss,
)
from encoders.clips import AudioSpec, VideoSpec
from encoders.errors import ConfigError, DataError, UsageError
from encoders.settings import from_dict, override, to_dict
from encoders.weights.polyvit import rules
from encoders.weights.rules import convert, invert
from tests.flax_fill import channels_first, fill, wave
from tests.macs import macs, on_meta, parameters

ABC = (
    TaskHead(name="a", modality="image", classes=3),
    TaskHead(name="b", modality="video", classes=3),
    TaskHead(name="c", modality="audio", classes=3),
)
SMALL = PolyViTConfig(
    dim=8,
    depth=2,
    heads=2,
    mlp_dim=16,
    image=ImageInput(size=32, patch=(8, 8)),
    video=VideoInput(frames=4, size=16, tubelet=(2, 8, 8)),
    audio=AudioInput(frames=24, bins=16, patch=(8, 8), front=""),
    tasks=ABC,
)
NINE = replace(PRESETS["polyvit_base"], tasks=NINE_TASKS)


def alone(config, *names):
    """The same model with some of its tasks, and only the tokenizers that these need."""
    tasks = tuple(task for task in config.tasks if task.name in names)
    used = {task.modality for task in tasks}
    return replace(config, tasks=tasks, **{m: None for m in ("image", "video", "audio") if m not in used})


def batch(modality, size=2, config=SMALL):
    return torch.randn(size, *config.inputs[modality].shape)


# --- the published numbers; golden logits computed with the public code of google-research/scenic ---


def count(config):
    return parameters(on_meta(lambda: PolyViT(config)))


def test_parameters_are_the_paper_s():
    assert count(NINE) == 92_683_471  # slide: 93 M
    assert count(replace(NINE, adapt=6)) == 177_737_935  # slide: 178 M
    by_modality = [
        count(alone(NINE, *(task.name for task in NINE_TASKS if task.modality == modality)))
        for modality in ("image", "video", "audio")
    ]
    assert by_modality == [87_007_144, 89_190_115, 86_598_212]
    assert round(sum(by_modality) / 1e6) == 263  # slide: 263 M


def test_parameters_of_nine_models_of_one_task_each():
    """The slide says 773 M, which the public code does not give."""
    millions = [round(count(alone(NINE, task.name)) / 1e6, 2) for task in NINE_TASKS]
    assert millions == [86.86, 86.17, 86.10, 86.12, 86.13, 88.93, 88.88, 86.36, 86.19]
    assert sum(millions) == pytest.approx(781.7, abs=0.05)


def test_parameters_of_the_large_video_model():
    assert round(count(replace(PRESETS["polyvit_large"], tasks=VIDEO_TASKS)) / 1e6) == 308


@pytest.mark.parametrize(
    ("task", "gflops"), [("imagenet", 55.74), ("kinetics400", 183.47), ("vggsound", 37.41)], ids=str
)
def test_a_forward_pass_costs_what_the_public_code_s_does_to_a_percent(task, gflops):
    config = alone(NINE, task)
    (part,) = config.inputs.values()
    assert macs(on_meta(lambda: PolyViT(config)), (1, *part.shape)) / 1e9 == pytest.approx(gflops, rel=0.01)


INPUTS = {"a": wave((1, 32, 32, 3)), "b": wave((1, 4, 16, 16, 3)), "c": wave((1, 24, 16, 3), 0.021)}
GOLDEN = {
    0: {
        "a": (0.087665, 0.073698, 0.025069),
        "b": (0.110227, 0.066205, -0.008954),
        "c": (0.057632, -0.030789, -0.104730),
    },
    1: {
        "a": (0.096335, 0.000737, -0.095208),
        "b": (0.204386, 0.182790, 0.075225),
        "c": (0.128166, 0.005729, -0.119402),
    },
}


@pytest.mark.parametrize("adapt", [0, 1])
@pytest.mark.parametrize("task", ["a", "b", "c"])
def test_logits_are_those_of_the_public_code(adapt, task):
    whole = PolyViT(replace(SMALL, adapt=adapt)).eval()
    only = PolyViT(alone(whole.config, task)).eval()
    for model in (whole, only):
        fill(model, rules(model.config))
        with torch.no_grad():
            logits = model(channels_first(INPUTS[task]), task)[0]
        torch.testing.assert_close(logits, torch.tensor(GOLDEN[adapt][task]), atol=2e-5, rtol=0)


def test_parameters_of_the_golden_models():
    assert [count(alone(SMALL, task)) for task in "abc"] == [2931, 4403, 2851]


@pytest.mark.parametrize("adapt", [0, 1, 2])
def test_weights_go_to_the_public_names_and_back(adapt):
    config = replace(SMALL, adapt=adapt, tasks=(*ABC, TaskHead(name="pets", modality="image", classes=2)))
    own = PolyViT(config).state_dict()
    tree = invert(own, rules(config))
    assert len(tree) == len(own)
    back = convert(tree, rules(config), own, what="the tree")
    assert all(torch.equal(back[key], own[key]) for key in own)
    assert "classification_head_bit_oxford_iiit_pet/output_projection/kernel" in tree
    assert ("vit_encoder/encoderblock_1/LayerNorm_0/scale" in tree) == (adapt < 2)
    assert ("tokenizer/tokenizer_spec/encoderblock_0/LayerNorm_0/scale" in tree) == (adapt > 0)


# --- what is shared ---


def changed_by(model, task):
    """The parameters that a step on one task reaches."""
    model.zero_grad()
    loss = task_loss(
        model.task(task), model(batch(model.task(task).modality, config=model.config), task), torch.tensor([0, 1])
    )
    loss.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize("adapt", [0, 1, 2])
def test_a_step_reaches_its_tokenizer_its_head_and_the_trunk(adapt):
    torch.manual_seed(0)
    model = PolyViT(replace(SMALL, adapt=adapt))
    for head in model.heads.values():  # zero-initialised heads let nothing through at first
        torch.nn.init.normal_(head.weight)
    touched = {task: changed_by(model, task) for task in "abc"}
    shared = set.intersection(*touched.values())
    assert shared == {name for name, _ in model.named_parameters() if name.startswith("encoder.")}
    for task, modality in zip("abc", ("image", "video", "audio"), strict=True):
        own = touched[task] - shared
        assert own == {
            name
            for name, _ in model.named_parameters()
            if name.startswith((f"tokenizers.{modality}.", f"heads.{task}."))
        }


def test_heads_start_at_zero_but_for_pictures():
    model = PolyViT(SMALL)
    assert model.heads["a"].weight.abs().sum() > 0
    assert not any(model.heads[task].weight.any() for task in "bc")
    assert not any(head.bias.any() for head in model.heads.values())


def test_sound_is_cut_time_first():
    """Tokens of sound: time row by time row, each over all frequencies."""
    model = PolyViT(SMALL).eval()
    tokenizer = model.tokenizers["audio"]
    sound = torch.zeros(1, 3, 24, 16)
    sound[:, :, 8:16, 8:] = 1  # the second of three patches in time, the second of two in frequency
    plain = tokenizer(torch.zeros_like(sound))
    moved = (tokenizer(sound) - plain).abs().sum(-1)[0]
    assert moved.nonzero().flatten().tolist() == [1 + 1 * 2 + 1]


def test_stochastic_depth_is_the_task_s_own():
    tasks = (TaskHead(name="a", modality="image", classes=3, stochastic_depth=0.4), *ABC[1:])
    model = PolyViT(replace(SMALL, depth=5, adapt=2, tasks=tasks))

    def probabilities(task):
        model(batch(model.task(task).modality), task)
        own = model.tokenizers[model.task(task).modality].blocks
        return [block.drop_path.prob for block in (*own, *model.encoder.blocks)]

    assert probabilities("a") == pytest.approx([0, 0.4, 0.2, 0.3, 0.4])  # within the tokenizer, then of the whole depth
    assert probabilities("b") == [0] * 5


def test_stochastic_depth_is_off_in_evaluation():
    tasks = tuple(replace(task, stochastic_depth=0.9) for task in ABC)
    model = PolyViT(replace(SMALL, depth=4, tasks=tasks)).eval()
    x = batch("audio")
    assert torch.equal(model(x, "c"), model(x, "c"))
    model.train()
    torch.nn.init.normal_(model.heads["c"].weight)
    assert len({model(x, "c").sum().item() for _ in range(20)}) > 1


# --- losses ---


def test_pictures_are_scored_by_sigmoids_summed_over_classes():
    task = TaskHead(name="x", modality="image", classes=4, loss="sigmoid")
    logits, labels = torch.randn(3, 4), torch.tensor([0, 2, 3])
    onehot = torch.eye(4)[labels]
    expected = -(onehot * logits.sigmoid().log() + (1 - onehot) * (-logits).sigmoid().log()).sum(1).mean()
    torch.testing.assert_close(task_loss(task, logits, labels), expected)
    torch.testing.assert_close(task_loss(task, logits, onehot), expected)


def test_softmax_losses_take_mixed_labels_too():
    task, logits, labels = ABC[1], torch.randn(3, 3), torch.tensor([0, 1, 2])
    torch.testing.assert_close(task_loss(task, logits, labels), task_loss(task, logits, torch.eye(3)[labels]))
    half = task_loss(task, logits, (torch.eye(3)[labels] + torch.eye(3)[labels.flip(0)]) / 2)
    both = (task_loss(task, logits, labels) + task_loss(task, logits, labels.flip(0))) / 2
    torch.testing.assert_close(half, both)


def test_three_tasks_of_three_modalities_can_be_learned_by_one_trunk():
    torch.manual_seed(0)
    model = PolyViT(replace(SMALL, dim=16, adapt=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    data = {task: (batch(model.task(task).modality, 6), torch.arange(6) % 3) for task in "abc"}
    for step in range(150):
        task = "abc"[step % 3]
        optimizer.zero_grad()
        loss = task_loss(model.task(task), model(data[task][0], task), data[task][1])
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert all((model(x, task).argmax(1) == y).all() for task, (x, y) in data.items())


# --- as an encoder ---


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return PolyViT(PRESETS["polyvit_tiny"]).eval()


CLIPS = {
    "video": torch.randint(0, 256, (2, 10, 64, 64, 3), dtype=torch.uint8),
    "audio": torch.randn(2, 6400) / 10,
    "image": torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8),
}


def test_a_tiny_one_serves_a_feature_per_clip_and_modality(tiny):
    assert tiny.modalities == ("video", "audio")
    assert tiny.clip_seconds == Fraction(2, 5)
    assert tiny.specs["video"] == VideoSpec(frames=10, size=64, pixel_format="rgb24", crop_share=0.625)
    assert tiny.specs["audio"] == AudioSpec(sample_rate=16_000)
    assert tiny.specs["image"].frames == 1
    with torch.no_grad():
        features = {modality: tiny.encode(clips, modality) for modality, clips in CLIPS.items()}
    assert {feature.shape for feature in features.values()} == {(2, 128)}


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_it_stands_in_a_bundle_once_for_each_modality(tiny, modality):
    one = adapted(tiny, modality, 128)
    assert one.modalities == (modality,)
    with torch.no_grad():
        assert torch.equal(one.encode(CLIPS[modality]), tiny.encode(CLIPS[modality], modality))


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_rows_of_a_batch_do_not_meet(tiny, modality):
    with torch.no_grad():
        together = tiny.encode(CLIPS[modality], modality)
        apart = torch.cat([tiny.encode(clip[None], modality) for clip in CLIPS[modality]])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_gray_clips_and_silence_are_clips(tiny):
    with torch.no_grad():
        gray = tiny.encode(CLIPS["video"][..., 0], "video")
        repeated = tiny.encode(CLIPS["video"][..., :1].expand(-1, -1, -1, -1, 3), "video")
        assert torch.equal(gray, repeated)
        assert tiny.encode(torch.zeros(1, 6400), "audio").isfinite().all()


def test_a_model_of_one_modality_is_not_asked_which():
    config = replace(PRESETS["polyvit_tiny"], image=None, audio=None)
    encoder = PolyViT(config).eval()
    assert encoder.modalities == ("video",)
    assert encoder.spec == encoder.specs["video"]
    assert torch.equal(encoder.encode(CLIPS["video"]), encoder.encode(CLIPS["video"], "video"))


def test_a_model_of_pictures_serves_clips_of_one_frame():
    encoder = PolyViT(replace(PRESETS["polyvit_tiny"], video=None, audio=None)).eval()
    assert (encoder.modalities, encoder.spec.frames) == (("video",), 1)
    assert torch.equal(encoder.encode(CLIPS["image"], "video"), encoder.encode(CLIPS["image"], "image"))


def test_base_looks_for_2_56_seconds_and_hears_eight():
    """Clips of a stream are of one length, so it serves one of the two; both can be trained."""
    config = replace(PRESETS["polyvit_base"], dim=8, heads=2, depth=1, mlp_dim=8)
    both, encoder = (PolyViT(c).eval() for c in (config, replace(config, image=None, video=None)))
    assert (both.modalities, both.clip_seconds) == (("video",), Fraction(64, 25))
    assert (encoder.modalities, encoder.clip_seconds) == (("audio",), 8)
    spectrograms = override(PRESETS["polyvit_tiny"], {"audio.front": ""})
    assert PolyViT(spectrograms).modalities == ("video",)
    assert encoder.encode(torch.randn(1, 8 * 16_000) / 10).shape == (1, 8)


def test_every_preset_is_read_back_with_its_tasks():
    for config in (*PRESETS.values(), NINE, alone(NINE, "pets")):
        assert from_dict(PolyViTConfig, to_dict(config)) == config
    changed = override(PRESETS["polyvit_tiny"], {"audio": None, "video.size": "32", "adapt": "1"})
    assert (changed.audio, changed.video.size, changed.adapt) == (None, 32, 1)


# --- what it refuses ---


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"adapt": 3}, r"adapt 3 of 2 blocks cannot be; use 0 \(all shared\) to 2"),
        ({"adapt": -1}, "adapt -1 of 2 blocks"),
        ({"heads": 3}, "heads 3 do not divide dim 8"),
        ({"depth": 0}, "depth 0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout 1.0 must lie in \[0, 1\)"),
        ({"audio": None}, "task c is one of audio, which the model has no tokenizer for; set audio, or leave"),
        ({"image": None, "video": None, "audio": None, "tasks": ()}, "image, video and audio are all none"),
        ({"tasks": (*ABC, ABC[0])}, "task a is given twice"),
        (
            {"video": VideoInput(frames=3, size=16, tubelet=(2, 8, 8))},
            "3 frames cannot be cut into patches of 2; use 2 or 4",
        ),
        ({"image": ImageInput(size=30, patch=(8, 8))}, "30 rows cannot be cut into patches of 8; use 24 or 32"),
        (
            {"audio": AudioInput(frames=20, bins=16, patch=(8, 8), front="")},
            "20 mel frames cannot be cut .* use 16 or 24",
        ),
    ],
)
def test_what_contradicts_itself_is_one_sentence(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "c 10"}, "task name 'c 10' cannot name a head; use letters, digits and _"),
        ({"name": "keys"}, "task name 'keys' cannot name a head"),
        ({"modality": "text"}, "task x has modality 'text'; use one of image, video, audio"),
        ({"classes": 0}, "task x has 0 classes; give at least 1"),
        ({"loss": "hinge"}, "task x has loss 'hinge'; use softmax or sigmoid"),
        ({"stochastic_depth": 1.0}, r"task x has stochastic_depth 1.0; give one in \[0, 1\)"),
    ],
)
def test_a_task_that_makes_no_sense_is_one_sentence(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TaskHead(**{"name": "x", "modality": "image", "classes": 2, **values})


def test_inputs_that_make_no_sense_are_one_sentence():
    with pytest.raises(ConfigError, match=r"makes 80x48 \(mel frames, bins\) of 0.8 s but the tokenizer takes 40x48"):
        AudioInput(frames=40, bins=48, patch=(8, 8), clip_seconds=Fraction(4, 5), front="log_mel_talk")
    with pytest.raises(UsageError, match="front 'log_mel_tal' is unknown; did you mean log_mel_talk"):
        AudioInput(front="log_mel_tal")
    with pytest.raises(ConfigError, match=r"crop_share 0.0 must lie in \(0, 1\]"):
        ImageInput(crop_share=0.0)
    with pytest.raises(ConfigError, match=r"video.clip_seconds 0 must be more than 0"):
        VideoInput(clip_seconds=Fraction(0))
    with pytest.raises(ConfigError, match=r"video.region 'lips' is unknown; use frame or face"):
        VideoInput(region="lips")


def test_a_batch_that_does_not_fit_is_one_sentence(tiny):
    model = PolyViT(SMALL)
    with pytest.raises(UsageError, match="task 'd' is unknown; choose from a, b, c"):
        model(batch("image"), "d")
    with pytest.raises(DataError, match="a batch of which task; name one of a, b, c"):
        model(batch("image"))
    with pytest.raises(DataError, match="the model has no head; build it with tasks, or ask for features"):
        tiny(batch("image"))
    with pytest.raises(DataError, match="image of 3x24x16 came to a tokenizer of 3x32x32; sample and resize it"):
        model(batch("audio"), "a")
    with pytest.raises(DataError, match="clips of which modality; name one of video, audio"):
        tiny.encode(CLIPS["video"])
    with pytest.raises(UsageError, match="modality 'text' is unknown; choose from audio, image, video"):
        tiny.encode(CLIPS["video"], "text")
    with pytest.raises(DataError, match=r"the model takes spectrograms, not samples; set audio\.front"):
        model.encode(torch.randn(1, 6400), "audio")
    with pytest.raises(DataError, match="clips of 10 frames came to the tokenizer of pictures; give one frame each"):
        tiny.encode(CLIPS["video"], "image")


@pytest.mark.parametrize("shape", [(1, 12_800), (1, 40), (6400,), (1, 1, 6400)])
def test_sound_of_another_length_is_refused(tiny, shape):
    with pytest.raises(
        DataError, match=r"came to a tokenizer of \(batch, 6400\) floats, 0.4 s at 16000 Hz; cut and res"
    ):
        tiny.encode(torch.zeros(shape), "audio")


@pytest.mark.parametrize(
    "clips", [torch.zeros(1, 10, 64, 64), torch.zeros(1, 64, 64).byte(), torch.zeros(1, 10, 64, 64, 2).byte()]
)
def test_what_is_no_picture_is_refused(tiny, clips):
    with pytest.raises(DataError, match=r"are no pictures; give uint8 \(batch, frames, rows, columns\), gray, or with"):
        tiny.encode(clips, "video")


def test_tasks_may_come_from_a_command_line():
    text = '[{"name": "digits", "modality": "audio", "classes": 10}]'
    changed = override(PRESETS["polyvit_tiny"], {"tasks": text, "image": "null"})
    assert changed.tasks == (TaskHead(name="digits", modality="audio", classes=10),)
    with pytest.raises(UsageError, match="modality='smell' is not of type"):
        override(PRESETS["polyvit_tiny"], {"tasks": text.replace("audio", "smell")})


# --- another implementation ---


def test_the_image_path_is_the_vision_transformer_of_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=32,
            patch_size=8,
            layer_norm_eps=1e-6,
            hidden_act="gelu_pytorch_tanh",
        ),
        add_pooling_layer=False,
    ).eval()
    config = replace(SMALL, dim=16, depth=3, mlp_dim=24, adapt=1, tasks=())
    model = PolyViT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = theirs.state_dict()
    pairs = {
        "embeddings.cls_token": model.tokenizers["image"].cls,
        "embeddings.position_embeddings": model.tokenizers["image"].positions,
        "embeddings.patch_embeddings.projection.weight": model.tokenizers["image"].embed.project.weight,
        "embeddings.patch_embeddings.projection.bias": model.tokenizers["image"].embed.project.bias,
        "layernorm.weight": model.encoder.norm.weight,
        "layernorm.bias": model.encoder.norm.bias,
    }
    blocks = [*model.tokenizers["image"].blocks, *model.encoder.blocks]
    state |= pairs | {key: value for key in state if (value := of_block(key, blocks)) is not None}
    theirs.load_state_dict(state)
    x = batch("image")
    with torch.no_grad():
        torch.testing.assert_close(
            model.tokens(x, "image"), theirs(pixel_values=x).last_hidden_state, atol=1e-5, rtol=1e-5
        )


PARTS = {  # of the names of transformers 4 and 5
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attention.query": ("query", "q_proj"),
    "attention.key": ("key", "k_proj"),
    "attention.value": ("value", "v_proj"),
    "attention.out": ("attention.output.dense", "o_proj"),
    "mlp.first": ("intermediate.dense", "fc1"),
    "mlp.second": ("output.dense", "fc2"),
}


def of_block(key, blocks):
    """Our parameter for a key of theirs; None where it is of no block."""
    found = re.search(r"layers?\.(\d+)\.(.*)\.(weight|bias)$", key)
    if found is None:
        return None
    layer, middle, last = found.groups()
    part = next(part for part, names in PARTS.items() if middle.endswith(names))
    return blocks[int(layer)].get_parameter(f"{part}.{last}")
