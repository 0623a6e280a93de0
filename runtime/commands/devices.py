"""``legato devices``: what there is to see with, to hear with and to compute with; and why something cannot be used."""

import os
import sys
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer

from runtime.errors import LegatoError

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One line of the list."""

    name: str  # what --camera, --mic or --device take
    about: str = ""
    reason: str = ""  # why it cannot be used; "" where nothing speaks against it
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        return not self.reason


@app.command()
def devices(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, and nothing else.")] = False,
    try_cameras: Annotated[bool, typer.Option("--try", help="Open each camera to see whether it works.")] = False,
) -> None:
    """List cameras, microphones and accelerators, with the reason when one cannot be used."""
    from runtime.output import as_line

    found = {
        "cameras": cameras(opened=try_cameras),
        "microphones": microphones(),
        "accelerators": accelerators(),
    }
    if as_json:
        print(as_line({kind: [asdict(d) | {"usable": d.usable} for d in listed] for kind, listed in found.items()}))
        return
    for kind, listed in found.items():
        print(f"{kind}:")
        width = max((len(device.name) for device in listed), default=0)
        for device in listed:
            line = f"  {device.name:<{width}}  {device.about}".rstrip()
            print(line + (f"  ({device.reason})" if device.reason and device.about else f"  {device.reason}".rstrip()))


def cameras(*, opened: bool = False) -> list[Listed]:
    """Cameras of this machine; ``opened`` tries each, which lights its lamp."""
    from runtime.sources import webcam

    try:
        known = webcam.cameras()
    except LegatoError as error:
        return [Listed(name="none", reason=str(error))]
    listed = []
    for number, name in known.items():
        reason = webcam.why_not(number) or (_does_not_open(number) if opened else "")
        listed.append(Listed(name=str(number), about=name, reason=reason))
    return listed or [
        Listed(name="none", reason="no camera was found; --camera also takes an address (rtsp://, http://)")
    ]


def microphones() -> list[Listed]:
    """Inputs that PortAudio lists."""
    from runtime.sources.microphone import PORT_AUDIO

    try:
        known = PORT_AUDIO.inputs()
    except LegatoError as error:
        return [Listed(name="none", reason=str(error))]
    except Exception as error:  # a sound system can fail in any way
        return [Listed(name="none", reason=f"the sound system does not answer ({error})")]
    listed = [
        Listed(
            name=str(i.number),
            about=f"{i.name}, {i.host}, {i.rate} Hz, {i.channels} channel{'' if i.channels == 1 else 's'}"
            + (", default" if i.default else ""),
            facts={"host": i.host, "sample_rate": i.rate, "channels": i.channels, "default": i.default},
        )
        for i in known
    ]
    return listed or [Listed(name="none", reason="no microphone was found; plug one in, or use --mic none")]


def accelerators() -> list[Listed]:
    """GPUs that torch can use, and the CPU."""
    import torch

    listed = [_gpu(torch, number) for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    if not listed:
        listed.append(Listed(name="cuda", reason=_why_no_gpu(torch)))
    bf16 = _cpu_has_bf16(torch)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    about = f"{threads} threads, bf16 {'yes' if bf16 else 'no'}"
    return [*listed, Listed(name="cpu", about=about, facts={"threads": threads, "bf16": bf16})]


def _gpu(torch: Any, number: int) -> Listed:
    try:
        properties = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
    except RuntimeError as error:
        return Listed(name=f"cuda:{number}", reason=str(error).splitlines()[0])
    facts = {"memory_bytes": total, "free_bytes": free, "bf16": torch.cuda.is_bf16_supported()}
    about = f"{properties.name}, {total / 2**30:.0f} GiB ({free / 2**30:.0f} free)"
    return Listed(name=f"cuda:{number}", about=about, facts=facts)


def _why_no_gpu(torch: Any) -> str:
    if torch.version.cuda is None:
        return "this torch was built for CPUs only"
    return "no CUDA GPU was found, or its driver is too old for this torch"


def _cpu_has_bf16(torch: Any) -> bool:
    """Whether bf16 is computed with, not emulated."""
    capabilities = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check()) if check is not None else "AVX512_BF16" in capabilities or sys.platform == "darwin"


def _does_not_open(number: int) -> str:
    """Why a camera gives no picture; it gets a few seconds."""
    from runtime.sources.device import DevicePolicy
    from runtime.sources.webcam import Webcam

    try:
        with Webcam(number, policy=DevicePolicy(open_seconds=5.0)):
            return ""
    except LegatoError as error:
        return str(error)
