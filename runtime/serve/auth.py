"""Who calls, and what they may: bearer tokens with scopes, client certificates, and where a server may listen.

A token is 256 random bits that its owner keeps; the server's file holds SHA-256 hashes, one line each::

    <64 hex digits> <scope,scope> <name>

The file is read again when it changes, so that a token is revoked by deleting its line. Tokens are compared in
constant time and never logged; without TLS they are only accepted on this machine.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import ssl
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime import logs
from runtime.errors import ConfigError, OutputError, UsageError
from runtime.serve.status import denied, unauthenticated

__all__ = ["LOCAL", "SCOPES", "Address", "Caller", "Gatekeeper", "TlsFiles", "TokenFile", "check_exposure", "new_token"]

SCOPES = ("stream", "describe", "admin")  # send streams; ask what is served, also by reflection; everything
PREFIX = "legato_"  # so that scanners for leaked secrets can find one
TOKEN_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")
LINE = re.compile(r"([0-9a-f]{64}) ([a-z,]+) (\S+)")

Metadata = Iterable[tuple[str, str | bytes]]  # of a call, as gRPC gives it
Peer = Mapping[str, Sequence[bytes]]  # what TLS found out about the other side

log = logs.of(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever a call comes from; resume tokens are bound to ``name``."""

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether a scope covers the call; ``admin`` covers every one."""
        return scope in self.scopes or "admin" in self.scopes


LOCAL = Caller("anonymous", frozenset(SCOPES))  # where nothing is asked: loopback, or --insecure said aloud


# -- tokens ---------------------------------------------------------------------------------------------------------


def new_token(path: str | Path, name: str, scopes: Iterable[str]) -> str:
    """A fresh token, whose hash is added to a file that only its owner can read. This is the one time it is shown.

    Raises:
        UsageError: a scope is unknown or missing, a name is not one or taken.
        OutputError: the file cannot be written.
    """
    wanted = tuple(dict.fromkeys(scopes))
    if unknown := [s for s in wanted if s not in SCOPES]:
        raise UsageError(f"scope {unknown[0]!r} is unknown; use {', '.join(SCOPES)}")
    if not wanted:
        raise UsageError(f"a token without a scope opens nothing; use {', '.join(SCOPES)}")
    if not NAME.fullmatch(name):
        raise UsageError(f"name {name!r} is no name for a token; use up to 64 letters, digits and . _ - @")
    path = Path(path)
    if path.exists() and f"token:{name}" in {caller.name for _, caller in _read(path)}:
        raise UsageError(f"{path} has a token called {name} already; choose another name, or delete its line first")
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    _append(path, f"{_digest(token)} {','.join(wanted)} {name}\n")
    return token


class TokenFile:
    """The tokens that a server accepts; read again whenever the file has changed.

    A file that is gone, or that others may write, accepts nobody. A line that makes no sense is left out and logged
    by its number.

    Raises:
        ConfigError: at the start, the file cannot be read, others may write to it, or it holds no token.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._seen: tuple[int, ...] | None = None
        self._entries: list[tuple[bytes, Caller]] = []
        problem = self._refresh()
        if problem:
            raise ConfigError(problem)
        if not self._entries:
            raise ConfigError(f"{self.path} holds no token; make one: legato token new --name NAME --file {self.path}")

    def find(self, token: str) -> Caller | None:
        """Whose token this is; None if nobody's. Every entry is compared, whichever matches."""
        problem = self._refresh()
        if problem:
            log.error("tokens refused", why=problem)
        digest = _digest(token).encode()
        found = None
        for known, caller in self._entries:
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def _refresh(self) -> str:
        """Follow the file; a sentence where it cannot be trusted, and then nobody is accepted."""
        try:
            now = os.stat(self.path)
        except OSError as error:
            self._entries, self._seen = [], None
            return f"tokens {self.path} cannot be read: {error.strerror}; nobody is let in until it can"
        seen = (now.st_mtime_ns, now.st_size, now.st_ino, now.st_mode)
        if seen == self._seen:
            return ""
        self._seen, self._entries = seen, []
        if now.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"tokens {self.path} can be written by others; nobody is let in until: chmod 600 {self.path}"
        try:
            self._entries = [(digest.encode(), caller) for digest, caller in _read(self.path)]
        except (OSError, OutputError) as error:
            return f"tokens {self.path} cannot be read: {error}; nobody is let in until it can"
        return ""


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: Path) -> list[tuple[str, Caller]]:
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError as error:
        raise OutputError(f"tokens {path} cannot be read: {error.strerror}; choose another file") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = LINE.fullmatch(line.strip())
        scopes = frozenset(found[2].split(",")) if found else frozenset()
        if not found or not scopes <= set(SCOPES) or not NAME.fullmatch(found[3]):
            log.warning("no token on this line; it is left out", line=number, file=str(path))
            continue
        entries.append((found[1], Caller(f"token:{found[3]}", scopes)))
    return entries


def _append(path: Path, line: str) -> None:
    """One line at the end, in one write, so that two that append at once both stay whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            size = os.fstat(fd).st_size
            torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
            os.fchmod(fd, 0o600)
            os.write(fd, (("\n" if torn else "") + line).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise OutputError(f"tokens {path} cannot be written: {error.strerror}; choose another file") from error


# -- callers --------------------------------------------------------------------------------------------------------


class Gatekeeper:
    """Decides, for each call, who it is and whether it may.

    With a token file a token is needed; with client certificates the certificate was checked by TLS before, and its
    name is who calls where no token says more. With neither everybody is LOCAL: ``check_exposure`` saw to it that
    this is loopback, or was asked for aloud.
    """

    def __init__(self, tokens: TokenFile | None = None, *, certificates: bool = False) -> None:
        self._tokens, self._certificates = tokens, certificates

    def admit(self, scope: str, metadata: Metadata, peer: Peer) -> Caller:
        """The caller. Raises Refused: UNAUTHENTICATED without a token that counts, PERMISSION_DENIED without scope."""
        caller = self._who(metadata, peer)
        if not caller.may(scope):
            held = ", ".join(sorted(caller.scopes)) or "none"
            raise denied(f"scope {scope!r} is needed and this caller holds {held}; use a token that has it")
        return caller

    def _who(self, metadata: Metadata, peer: Peer) -> Caller:
        name = certificate_name(peer) if self._certificates else ""
        if self._tokens is None:
            return Caller(f"certificate:{name}", frozenset(SCOPES[:2])) if self._certificates else LOCAL
        sent = [value for key, value in metadata if key == "authorization"]
        if not sent:
            raise unauthenticated("a token is needed; send it as metadata: authorization: Bearer TOKEN")
        kind, _, token = sent[0].partition(" ") if isinstance(sent[0], str) and len(sent) == 1 else ("", "", "")
        caller = self._tokens.find(token.strip()) if kind.lower() == "bearer" else None
        if caller is None:
            raise unauthenticated("the token is not known here; ask whoever runs the server for one")
        return Caller(f"{caller.name}/certificate:{name}", caller.scopes) if name else caller


def certificate_name(peer: Peer) -> str:
    """Who a client certificate names: its first alternative name, else its common name."""
    for key in ("x509_subject_alternative_name", "x509_common_name"):
        for value in peer.get(key, ()):
            return value.decode("utf-8", "replace")
    return ""


# -- where a server listens, and behind what ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """``HOST:PORT``, ``[IPv6]:PORT`` or ``unix:PATH``."""

    text: str
    host: str  # empty for a socket in the file system
    port: int

    @classmethod
    def parse(cls, text: str, option: str = "--listen") -> "Address":
        """Raises UsageError for what is no address."""
        if text.startswith("unix:") and len(text) > len("unix:"):
            return cls(text, "", 0)
        host, _, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not bare or not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in bare and bare == host):
            raise UsageError(f"{option} {text!r} is no address; write HOST:PORT, [IPv6]:PORT or unix:PATH")
        return cls(text, bare, int(port))

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        if not self.host or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: the server's certificate chain and key, and the authority whose client certificates are asked for."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Raises ConfigError where a file cannot be read, or certificate and key do not belong together."""
        for option, path in (("--tls-cert", self.cert), ("--tls-key", self.key), ("--tls-client-ca", self.client_ca)):
            if path is not None:
                _read_pem(option, path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        except (ssl.SSLError, ValueError, OSError):
            raise ConfigError(
                f"--tls-cert {self.cert} and --tls-key {self.key} do not belong together, are no PEM, or the key has "
                "a passphrase; give a certificate chain and its bare key"
            ) from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError:
                raise ConfigError(f"--tls-client-ca {self.client_ca} holds no certificate; give a PEM file") from None

    def stamp(self) -> tuple[int, ...]:
        """Changes when one of the files does."""
        return tuple(os.stat(path).st_mtime_ns for path in (self.cert, self.key, self.client_ca) if path is not None)

    def read(self) -> tuple[bytes, bytes, bytes | None]:
        """Key, certificate chain, authority: what gRPC's credentials are made of."""
        authority = None if self.client_ca is None else self.client_ca.read_bytes()
        return self.key.read_bytes(), self.cert.read_bytes(), authority


def check_exposure(address: Address, tls: TlsFiles | None, *, tokens: bool, insecure: bool) -> None:
    """Refuse to serve strangers in the clear. Raises ConfigError with the way out."""
    if tls is not None or address.local:
        return
    if tokens:
        raise ConfigError(
            f"--tokens over {address.text} without TLS would let anybody on the way read them; "
            "add --tls-cert and --tls-key, or listen on 127.0.0.1"
        )
    if not insecure:
        raise ConfigError(
            f"--listen {address.text} can be reached from outside and nothing protects it; add --tls-cert and "
            "--tls-key, listen on 127.0.0.1, or say --insecure"
        )


def _read_pem(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be read: {error.strerror}; name a PEM file") from error
