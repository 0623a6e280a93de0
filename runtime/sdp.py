"""Session descriptions: the part of SDP (RFC 8866) that says which RTP comes to which port, and how it is coded. Pure.

Read are ``c=``, ``m=``, ``a=rtpmap``, ``a=fmtp`` (with H.264's parameter sets, RFC 6184, section 8.1), ``a=framerate``,
``a=rtcp`` (RFC 3605) and ``a=rtcp-mux`` (RFC 5761); other lines are passed over.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from runtime.errors import SourceError
from runtime.packet import CodecConfig
from runtime.payloads import START_CODE

__all__ = ["Format", "Media", "codec_of", "parse_sdp", "static_format"]

MOST_BYTES = 1 << 16  # of a description
MOST_MEDIA = 32
MODALITIES = {"video": "video", "audio": "audio"}
STATIC = {0: ("PCMU", 8000, 1), 8: ("PCMA", 8000, 1)}  # RFC 3551, table 4: those that we decode
SPOKEN = ("H264", "OPUS", "PCMU", "PCMA")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """What one payload type means."""

    payload_type: int
    encoding: str  # upper case, as in rtpmap
    rate: int  # Hz of the RTP clock
    channels: int = 1
    parameters: Mapping[str, str] = field(default_factory=dict)  # of fmtp, names in lower case
    frame_rate: Fraction | None = None

    @property
    def modality(self) -> str:
        return "video" if self.encoding == "H264" else "audio"


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """One ``m=`` line with what belongs to it."""

    kind: str  # video, audio, ...
    port: int  # 0: refused by one side
    address: str = ""  # of c=, where the media goes; "" = not said
    rtcp_port: int = 0
    formats: tuple[Format, ...] = ()  # those that are spoken here, by preference


def static_format(payload_type: int) -> Format | None:
    """A payload type whose meaning needs no description (RFC 3551, section 6)."""
    if payload_type not in STATIC:
        return None
    encoding, rate, channels = STATIC[payload_type]
    return Format(payload_type=payload_type, encoding=encoding, rate=rate, channels=channels)


def codec_of(chosen: Format) -> CodecConfig:
    """What a decoder of this format must know. Opus is decoded to two channels, whatever is coded (RFC 7587)."""
    base = Fraction(1, chosen.rate)
    if chosen.encoding == "H264":
        sets = _parameter_sets(chosen.parameters.get("sprop-parameter-sets", ""))
        return CodecConfig(codec="h264", time_base=base, extradata=sets, frame_rate=chosen.frame_rate)
    if chosen.encoding == "OPUS":
        return CodecConfig(codec="opus", time_base=base, sample_rate=48_000, channels=2)
    law = "pcm_mulaw" if chosen.encoding == "PCMU" else "pcm_alaw"
    return CodecConfig(codec=law, time_base=base, sample_rate=chosen.rate, channels=chosen.channels)


def _parameter_sets(text: str) -> bytes:
    """Annex B of a comma-separated list in base64; what is no base64 is left out, the stream may bring its own."""
    out = b""
    for part in filter(None, text.split(",")):
        try:
            unit = base64.b64decode(part, validate=True)
        except (binascii.Error, ValueError):
            continue
        out += START_CODE + unit if unit else b""
    return out


def parse_sdp(text: str) -> list[Media]:
    """The media of a description, in its order. Raises SourceError where there is none that can be received."""
    if len(text) > MOST_BYTES:
        raise SourceError(f"session description has {len(text)} characters; {MOST_BYTES} is the most")
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    if not lines or not lines[0].startswith("v="):
        raise SourceError("session description does not begin with v=0; give an SDP file as ffmpeg -sdp_file writes it")
    session: list[str] = []
    blocks: list[list[str]] = []
    for line in lines:
        if line.startswith("m=") and len(blocks) < MOST_MEDIA:
            blocks.append([line])
        elif not line.startswith("m="):
            (blocks[-1] if blocks else session).append(line)
    address = _address(session)
    media = [found for block in blocks if (found := _media(block, address)) is not None]
    if not media:
        raise SourceError("session description names no media; it needs an m=video or m=audio line")
    return media


def _media(block: Sequence[str], session: str) -> Media | None:
    """A block that begins with its m= line; None for a kind or transport that carries no RTP."""
    match = re.fullmatch(r"m=(\w+) (\d{1,5})(?:/\d+)? (\S+) (.+)", block[0])
    if match is None:
        raise SourceError(f"session description has a line {block[0][:80]!r}; write m=video PORT RTP/AVP PAYLOAD-TYPE")
    kind, port, transport = match[1], int(match[2]), match[3]
    if "RTP/" not in transport or port > 65535:
        return None
    if "SAVP" in transport:
        raise SourceError(f"session description asks for {transport}; encrypted RTP is not supported, use RTP/AVP")
    maps, parameters = _by_payload(block, "rtpmap"), _by_payload(block, "fmtp")
    rate = _frame_rate(block)
    formats = [_format(int(n), maps, parameters, rate) for n in match[4].split() if n.isdecimal() and int(n) < 128]
    return Media(
        kind=kind,
        port=port,
        address=_address(block) or session,
        rtcp_port=_rtcp_port(block, port),
        formats=tuple(f for f in formats if f is not None and MODALITIES.get(kind) == f.modality),
    )


def _format(
    number: int, maps: Mapping[int, str], parameters: Mapping[int, str], rate: Fraction | None
) -> Format | None:
    match = re.fullmatch(r"([\w.-]+)/(\d{1,7})(?:/(\d{1,2}))?", maps.get(number, ""))
    if match is None:
        return static_format(number)
    encoding, clock, channels = match[1].upper(), int(match[2]), int(match[3] or 1)
    if encoding not in SPOKEN or not clock or not 1 <= channels <= 2:
        return None
    if encoding == "OPUS" and clock != 48_000:
        return None
    pairs = (part.strip().partition("=") for part in parameters.get(number, "").split(";"))
    named = {name.strip().lower(): value.strip() for name, _, value in pairs if name.strip()}
    return Format(
        payload_type=number, encoding=encoding, rate=clock, channels=channels, parameters=named, frame_rate=rate
    )


def _by_payload(block: Sequence[str], name: str) -> dict[int, str]:
    """``a=NAME:PAYLOAD-TYPE VALUE`` lines."""
    out = {}
    for line in block:
        if match := re.fullmatch(rf"a={name}:\s*(\d{{1,3}})\s+(.+)", line):
            out[int(match[1])] = match[2]
    return out


def _frame_rate(block: Sequence[str]) -> Fraction | None:
    for line in block:
        if match := re.fullmatch(r"a=framerate:\s*(\d{1,3}(?:\.\d{1,6})?)", line):
            return Fraction(match[1]) or None
    return None


def _address(lines: Sequence[str]) -> str:
    """Of the first c= line, without time to live and count."""
    for line in lines:
        if match := re.fullmatch(r"c=IN IP[46] ([^/\s]+)\S*", line):
            return match[1]
    return ""


def _rtcp_port(block: Sequence[str], port: int) -> int:
    if "a=rtcp-mux" in block:
        return port
    for line in block:
        if (match := re.match(r"a=rtcp:\s*(\d{1,5})\b", line)) and 0 < int(match[1]) < 65536:
            return int(match[1])
    return port + 1 if 0 < port < 65535 else 0
