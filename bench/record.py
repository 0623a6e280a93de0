"""How a bench keeps what it found: ``NAME.json`` with everything, ``NAME.md`` to read, both with the commit."""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def commit() -> str:
    """The commit measured, with ``+changes`` where the tree differs from it; ``unknown`` outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "runtime", "imputation", "encoders", "protos")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+changes" if changed else "")


def circumstances() -> dict[str, Any]:
    """What a reader needs to repeat it."""
    import os

    return {
        "commit": commit(),
        "command": " ".join(["python", "-m", _module(), *map(_portable, sys.argv[1:])]),
        "python": platform.python_version(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def write_results(folder: Path, name: str, values: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Write both files and print the one to read."""
    about = circumstances()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"about": about, **values}, indent=1) + "\n")
    text = "\n".join([*lines, "", f"`{about['command']}` at commit {about['commit']}, Python {about['python']}, "
                                  f"{about['processors']} processors."])  # fmt: skip
    (folder / f"{name}.md").write_text(text + "\n")
    print(text)


def _portable(argument: str) -> str:
    """An absolute path says where one machine keeps things; its name is enough."""
    key, equals, value = argument.rpartition("=")
    return key + equals + (Path(value).name if Path(value).is_absolute() else value)


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec is not None else Path(sys.argv[0]).stem
