"""Bundles: a folder with ``bundle.json`` and weights in safetensors, or an encoder's in ONNX; what is served.

``Bundle.load`` checks everything that can be checked without building a model (versions, checksums, sizes, finite
weights) and imports no torch; ``Bundle.models`` builds the models and checks that each weight has its place.
Nothing here, or behind it, reads a pickle.
"""

import difflib
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import BundleError, OutputError, UsageError
from runtime.manifest import Manifest, parse_manifest
from runtime.weights import check_weights

if TYPE_CHECKING:
    from torch import Tensor

    from runtime.models import Models

MANIFEST = "bundle.json"
WEIGHTS = (".safetensors", ".onnx")
SHIPPED = Path(__file__).parent / "bundles"


def shipped_bundles() -> list[str]:
    """Names of the bundles in the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}"))


@dataclass(frozen=True)
class Bundle:
    """A bundle that was found whole. ``hash`` is the SHA-256 of its manifest, which holds those of its weights."""

    path: Path
    manifest: Manifest
    hash: str

    @classmethod
    def load(cls, name_or_path: str | Path) -> "Bundle":
        """The shipped bundle of that name, or the one in that folder.

        Raises:
            UsageError: there is no bundle of that name.
            BundleError: a file is missing, altered or cut, a weight is not finite, or the format is newer.
        """
        path = _find(name_or_path)
        manifest, digest = _read(path)
        for name in manifest.weights_files:
            _check_file(path, name, manifest.sha256.get(name))
        return cls(path, manifest, digest)

    @staticmethod
    def write(
        folder: str | Path,
        manifest: Manifest,
        tensors: "Mapping[str, Mapping[str, Tensor] | bytes]",
        files: Mapping[str, str] | None = None,
        check: "Callable[[Bundle], object] | None" = None,
    ) -> "Bundle":
        """Writes a bundle whole or not at all, and loads it.

        ``tensors`` maps each weight file that the manifest names to its tensors, or its bytes where it is an ONNX
        file; the checksums are filled in here.
        ``files`` are texts that lie beside them, such as a card. A bundle that is in ``folder`` already is replaced;
        its own texts stay unless ``files`` has new ones. ``check`` may look at the bundle before it gets its name;
        what it raises is raised here, and nothing is written.

        Raises:
            BundleError: the tensors are not those the manifest names, one of them is not finite, or a text has no
                file name of its own.
            OutputError: the folder holds something else, or cannot be written.
        """
        folder = Path(os.path.abspath(folder))
        _check_names(manifest, tensors)
        _check_texts(manifest, files or {})
        _check_target(folder)
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        try:
            part.mkdir(parents=True)
            _fill(part, folder, manifest, tensors, files or {})
            made = Bundle.load(part)
            if check is not None:
                check(made)
            _put(part, folder)
        except BundleError as error:
            raise BundleError(str(error).replace(str(part), str(folder))) from error
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"bundle {folder} cannot be written: {error.strerror or error}; make room or choose another place"
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return Bundle.load(folder)

    def models(self, device: str = "cpu") -> "Models":
        """The models on a device, frozen. Raises BundleError where weights and presets do not fit."""
        from runtime.models import build_models

        return build_models(self.path, self.manifest, device)


def _find(name_or_path: str | Path) -> Path:
    text, path = str(name_or_path), Path(name_or_path)
    known = shipped_bundles()
    if text in known:
        return SHIPPED / text
    if path.is_dir():
        return path
    if path.is_file():
        raise BundleError(f"{text} is not a bundle but a file; name the folder that holds {MANIFEST}")
    if path.name != text:
        raise BundleError(f"there is no folder {text}; name a bundle folder, or one of: {', '.join(known) or 'none'}")
    close = difflib.get_close_matches(text, known, n=1)
    hint = f"did you mean {close[0]}? known" if close else "known"
    raise UsageError(f"bundle {text!r} is unknown; {hint}: {', '.join(known) or 'none'}; or give a bundle's folder")


def _read(path: Path) -> tuple[Manifest, str]:
    try:
        data = (path / MANIFEST).read_bytes()
        text = data.decode("utf-8")
    except FileNotFoundError as error:
        raise BundleError(f"{path} is not a bundle: it holds no {MANIFEST}") from error
    except OSError as error:
        raise BundleError(f"bundle {path}: {MANIFEST} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"bundle {path}: {MANIFEST} is not text; restore the file") from error
    return parse_manifest(text, str(path)), hashlib.sha256(data).hexdigest()


def _check_file(folder: Path, name: str, digest: str | None) -> None:
    """One weight file: there, whole, unaltered, finite."""
    file = folder / name
    if digest is None:
        raise BundleError(f"bundle {folder}: {MANIFEST} has no sha256 for {name}; make the bundle again")
    try:
        if file.suffix == ".safetensors":  # what an ONNX file holds is onnxruntime's to check, as models are built
            check_weights(file)
        found = _digest(file)
    except FileNotFoundError as error:
        raise BundleError(f"bundle {folder}: {name} is missing; restore the file") from error
    except OSError as error:
        raise BundleError(f"bundle {folder}: {name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BundleError(f"bundle {folder}: {name} {error}; restore the file") from error
    if found != digest:
        raise BundleError(
            f"bundle {folder}: {name} is not what the bundle was made with (sha256 {found[:12]}…, "
            f"expected {digest[:12]}…); restore the file"
        )


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_names(manifest: Manifest, tensors: Mapping[str, object]) -> None:
    named = set(manifest.weights_files)
    if missing := sorted(named - set(tensors)):
        raise BundleError(f"bundle {manifest.name}: there are no tensors for {missing[0]}; give those of each part")
    if extra := sorted(set(tensors) - named):
        raise BundleError(f"bundle {manifest.name}: no part of the manifest names {extra[0]}; name it or leave it out")


def _check_texts(manifest: Manifest, files: Mapping[str, str]) -> None:
    for name in files:
        if Path(name).name != name or name == MANIFEST or name.endswith(WEIGHTS):
            raise BundleError(f"bundle {manifest.name}: a text cannot be called {name!r}; give it another name")


def _check_target(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose another folder for the bundle")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise OutputError(f"{folder} holds something that is no bundle; choose another folder")


def _fill(
    part: Path,
    folder: Path,
    manifest: Manifest,
    tensors: "Mapping[str, Mapping[str, Tensor] | bytes]",
    files: Mapping[str, str],
) -> None:
    """Everything of the bundle into ``part``, the manifest last."""
    from safetensors.torch import save

    for name, state in tensors.items():
        if isinstance(state, bytes):
            _write_file(part / name, state)
            continue
        own = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}  # shares no memory
        _write_file(part / name, save(own))
    texts = {old.name: old.read_bytes() for old in _texts(folder)}
    for name, data in (texts | {name: text.encode() for name, text in files.items()}).items():
        _write_file(part / name, data)
    digests = {name: _digest(part / name) for name in manifest.weights_files}
    try:
        text = manifest.model_copy(update={"sha256": digests}).to_json()
    except ValueError as error:
        raise BundleError(f"bundle {manifest.name}: the manifest holds a value that is no JSON ({error})") from error
    _write_file(part / MANIFEST, text.encode())


def _texts(folder: Path) -> list[Path]:
    """What lies in a bundle beside manifest and weights."""
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.is_file() and p.name != MANIFEST and p.suffix not in WEIGHTS]


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put(part: Path, folder: Path) -> None:
    """Gives a finished folder its name; an old one steps aside until the new one is there."""
    if not folder.exists():
        os.rename(part, folder)
        return
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    os.rename(folder, old)
    try:
        os.rename(part, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old)
