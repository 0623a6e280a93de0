"""Runs a target under atheris (libFuzzer for Python): coverage of our packages leads it to new inputs."""

import importlib
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

CORPORA = Path(__file__).parent.parent / "data" / "fuzz"
OURS = ("runtime", "tests")


def run(target: str) -> NoReturn:
    """Fuzz ``tests.fuzz.<target>`` with libFuzzer's options from the command line.

    New inputs go to a scratch folder; the committed corpus is only read. Folders on the command line replace both, as
    ``-merge=1 INTO FROM`` wants it.
    """
    try:
        import atheris
    except ImportError:
        sys.exit("fuzzing needs atheris; pip install atheris (it is no dependency of this project)")
    for name in [n for n in sys.modules if any(n == ours or n.startswith(f"{ours}.") for ours in OURS)]:
        del sys.modules[name]  # to be imported again, instrumented
    with atheris.instrument_imports(include=["runtime"]):
        module = importlib.import_module(f"tests.fuzz.{target}")
    arguments = sys.argv[1:]
    if not [argument for argument in arguments if not argument.startswith("-")]:
        scratch = Path(tempfile.gettempdir(), "legato-fuzz", target)
        scratch.mkdir(parents=True, exist_ok=True)
        (CORPORA / target).mkdir(parents=True, exist_ok=True)
        arguments += [str(scratch), str(CORPORA / target)]
    atheris.Setup([sys.argv[0], *arguments], module.one)
    atheris.Fuzz()
    sys.exit()
