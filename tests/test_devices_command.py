"""``legato devices``: what there is, and why something cannot be used."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from runtime import cli
from runtime.commands import devices
from runtime.errors import SourceError
from runtime.sources import microphone, webcam
from tests.devices import FakeSoundCard, sound_input


@pytest.fixture
def card(monkeypatch) -> FakeSoundCard:
    card = FakeSoundCard(
        [sound_input("Built-in Audio"), sound_input("HDMI", channels=0), sound_input("USB", 16_000, 1)]
    )
    monkeypatch.setattr(microphone, "PORT_AUDIO", microphone.PortAudio(lambda: card))
    return card


@pytest.fixture
def one_camera(monkeypatch) -> None:
    monkeypatch.setattr(webcam, "cameras", lambda: {0: "HD Webcam"})
    monkeypatch.setattr(webcam, "why_not", lambda number: "")


def listing(capsys, *options: str) -> Any:
    assert cli.run(["devices", *options]) == 0
    return capsys.readouterr().out


def test_everything_is_listed_with_what_the_options_take(capsys, card, one_camera):
    text = listing(capsys)
    assert "cameras:\n  0  HD Webcam\n" in text
    assert "  0  Built-in Audio, Fake, 48000 Hz, 2 channels, default\n" in text
    assert "  2  USB, Fake, 16000 Hz, 1 channel\n" in text and "HDMI" not in text
    assert "accelerators:" in text and "threads, bf16" in text


def test_json_says_the_same_to_a_machine(capsys, card, one_camera):
    found = json.loads(listing(capsys, "--json"))
    assert list(found) == ["cameras", "microphones", "accelerators"]
    assert found["cameras"] == [{"name": "0", "about": "HD Webcam", "reason": "", "facts": {}, "usable": True}]
    assert found["microphones"][0]["facts"] == {
        "host": "Fake",
        "sample_rate": 48_000,
        "channels": 2,
        "default": True,
    }
    cpu = found["accelerators"][-1]
    assert cpu["name"] == "cpu" and cpu["facts"]["threads"] >= 1 and isinstance(cpu["facts"]["bf16"], bool)


def test_without_portaudio_the_reason_says_what_to_install(monkeypatch):
    def missing() -> Any:
        raise SourceError(microphone.NO_PORTAUDIO)

    monkeypatch.setattr(microphone, "PORT_AUDIO", microphone.PortAudio(missing))
    (only,) = devices.microphones()
    assert not only.usable and "apt install libportaudio2" in only.reason


def test_a_sound_system_that_breaks_is_a_reason(monkeypatch):
    monkeypatch.setattr(microphone, "PORT_AUDIO", SimpleNamespace(inputs=lambda: 1 / 0))
    assert "the sound system does not answer (division by zero)" in devices.microphones()[0].reason


def test_nothing_found_is_said_with_the_way_out(monkeypatch, card):
    card.devices = []
    monkeypatch.setattr(webcam, "cameras", dict)
    assert "no microphone was found" in devices.microphones()[0].reason
    assert "--camera also takes an address" in devices.cameras()[0].reason


def test_a_camera_without_permission_or_that_is_busy_says_so(capsys, monkeypatch, one_camera, card):
    monkeypatch.setattr(
        webcam, "why_not", lambda number: "/dev/video0 may not be read; add yourself to the group video"
    )
    assert "HD Webcam  (/dev/video0 may not be read; add yourself to the group video)" in listing(capsys)
    monkeypatch.setattr(webcam, "why_not", lambda number: "")
    monkeypatch.setattr(devices, "_does_not_open", lambda number: "another program may be using it")
    assert devices.cameras(opened=True)[0].reason == "another program may be using it"
    assert devices.cameras()[0].usable


def test_gpus_are_listed_with_name_and_memory(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: SimpleNamespace(name="Fast GPU"))

    def memory(number: int) -> tuple[int, int]:
        if number == 1:
            raise RuntimeError("CUDA error: out of memory\nmore")
        return 30 * 2**30, 40 * 2**30

    monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
    first, second, cpu = devices.accelerators()
    assert (first.name, first.about) == ("cuda:0", "Fast GPU, 40 GiB (30 free)") and first.usable
    assert second.reason == "CUDA error: out of memory" and cpu.name == "cpu"


def test_no_gpu_has_a_reason(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert devices.accelerators()[0].reason == "this torch was built for CPUs only"
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "no CUDA GPU was found" in devices.accelerators()[0].reason
