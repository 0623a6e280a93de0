"""Networks that other people's packages carry: found where they are installed, taken only when they are what we know.

A package's code is never imported; its model files are read as data. Which files they are is settled by their SHA-256,
so that a feature means the same on every machine, whatever the package index serves.
"""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from encoders.errors import DataError, MissingExtraError

__all__ = ["Package", "installed"]


@dataclass(frozen=True, kw_only=True)
class Package:
    """A release, and the files of it that hold a network."""

    name: str  # of the distribution
    module: str  # the folder it installs
    version: str
    files: Mapping[str, str]  # path below that folder, to its SHA-256
    install: str  # the command that brings it and what runs it
    licence: str


def installed(package: Package) -> dict[str, Path]:
    """Where the files lie.

    Raises:
        MissingExtraError: the package is not there, or is another release; the sentence says what to install.
        DataError: a file of it is missing or not the one we know.
    """
    try:
        found = importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(
            f"this encoder needs the networks of {package.name} {package.version}; install them with: {package.install}"
        ) from None
    if found != package.version:
        raise MissingExtraError(
            f"this encoder was made for {package.name} {package.version} and {found} is installed; "
            f"change it with: {package.install}"
        )
    spec = importlib.util.find_spec(package.module)
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise DataError(f"{package.name} {found} is installed without its folder {package.module}; install it again")
    return {name: _checked(Path(folders[0]) / name, digest, package) for name, digest in package.files.items()}


def _checked(path: Path, digest: str, package: Package) -> Path:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); install it again: {package.install}") from None
    if found != digest:
        raise DataError(
            f"{path} is not the file of {package.name} {package.version} (sha256 {found[:12]}…, expected "
            f"{digest[:12]}…); install it again: {package.install}"
        )
    return path
