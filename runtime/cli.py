"""The command ``legato``: finds a subcommand's module when it is called, and turns errors into one sentence.

Each command lives in ``runtime/commands/<name>.py`` as a typer app called ``app``; a command's module is imported
when it runs, so ``legato --help`` costs neither torch nor PyAV. Exit codes: 0 fine, 1 failed, 2 wrong usage,
130 after Ctrl-C.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from io import TextIOWrapper
from typing import Any, NoReturn

# OpenMP's threads spin by default; two-thread work then slows several times beside any other load.
# Must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
from typer.core import TyperGroup

from runtime.errors import LegatoError

STOPPED = 130  # exit code after Ctrl-C

# command -> (module in runtime.commands, what ``legato --help`` says of it), in the order shown
COMMANDS = {
    "demo": ("demo", "Replay a lossy recording through the default bundle, watch it live, get a report."),
    "replay": ("replay", "Replay a file, folder or packet recording through a bundle."),
    "live": ("live", "Run a bundle on this machine's webcam and microphone."),
    "devices": ("devices", "List cameras, microphones and accelerators."),
    "serve": ("serve", "Serve bundles over gRPC."),
    "send": ("send", "Send a file, webcam or recording to a server."),
    "token": ("token", "Make tokens for a server."),
    "datasets": ("datasets", "List the datasets that can be read, or what is found of one."),
    "features": ("features", "Write the frozen encoders' features of recordings to a file."),
    "train": ("train", "Train encoders, imputers and heads."),
    "eval": ("evaluate", "Measure accuracy and error by loss rate."),
    "explain": ("explain", "Show where a trained classifier looks, and how its features lie."),
    "bundle": ("bundle", "Make, describe and check bundles."),
    "import-weights": ("import_weights", "Read published checkpoints into our layout."),
}


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name, (module, _) in COMMANDS.items() if find_spec(f"runtime.commands.{module}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        module, about = COMMANDS[cmd_name]
        if ctx.meta.get("legato.listing"):
            return typer.core.TyperCommand(cmd_name, help=about)
        command = typer.main.get_command(importlib.import_module(f"runtime.commands.{module}").app)
        command.name = cmd_name
        return _readable(command)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        ctx.meta["legato.listing"] = True
        super().format_help(ctx, formatter)


def _readable(command: Any) -> Any:
    """A command whose help flows to the width of the terminal: lines of a docstring end where the source did."""
    if command.help:
        paragraphs = command.help.replace("``", "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for inner in getattr(command, "commands", {}).values():
        _readable(inner)
    return command


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def legato(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    """Audio-visual inference that keeps playing when packets drop."""
    if version:
        from runtime import __version__

        print(f"legato {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every failure is one sentence on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows ? instead of failing
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command line."""
    try:
        code = typer.main.get_command(app).main(
            args=None if arguments is None else list(arguments), prog_name="legato", standalone_mode=False
        )
        sys.stdout.flush()
        if code == STOPPED:  # how typer hands Ctrl-C on
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except LegatoError as error:
        return fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return fail("stopped", STOPPED)
    except BrokenPipeError:  # `legato ... | head` read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return fail(_refused(error), 1)
    except Exception as error:
        return _usage(error)


def _refused(error: OSError) -> str:
    """What the system would not do; the way out depends on why."""
    from runtime.output import FULL, reason

    place = f" ({error.filename})" if error.filename else ""
    way_out = "make room or choose another place" if error.errno in FULL else "choose another place or name"
    return f"the system refused: {reason(error)}{place}; {way_out}"


def fail(sentence: str, code: int) -> int:
    """Say why on stderr and pass the exit code on."""
    print(f"legato: {sentence}", file=sys.stderr)
    return code


def _usage(error: Exception) -> int:
    """typer's own complaints about the command line; anything else is a mistake of ours and keeps its traceback."""
    show = getattr(error, "format_message", None)
    if show is None:
        raise error
    if not show():  # no arguments: the help is already on screen
        return int(getattr(error, "exit_code", 2))
    context = getattr(error, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    return fail(f"{show().rstrip('.')}{hint}", int(getattr(error, "exit_code", 2)))
