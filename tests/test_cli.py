"""The command line: one sentence for every failure, its exit code, and nothing half-written."""

import errno
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import typer

from runtime import cli
from runtime.errors import OutputError, SourceError, UsageError
from runtime.output import ResultFile, part_of


@pytest.fixture
def command(monkeypatch):
    """Installs a command called ``replay`` that does what it is told."""

    def install(action):
        app = typer.Typer(add_completion=False)
        app.command()(action)
        module = ModuleType("runtime.commands.replay")
        module.__spec__ = ModuleSpec("runtime.commands.replay", None)
        module.app = app
        monkeypatch.setitem(sys.modules, "runtime.commands.replay", module)

    return install


def raising(error):
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (SourceError("cats.mkv is not there"), 1, "cats.mkv is not there"),
        (UsageError("no such profile"), 2, "no such profile"),
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "Permission denied (/x)"),
        (typer.BadParameter("no"), 2, "no"),
    ],
)
def test_a_failure_is_one_sentence_and_an_exit_code(command, capsys, error, code, sentence):
    command(raising(error))
    assert cli.run(["replay"]) == code
    out, err = capsys.readouterr()
    assert out == "" and sentence in err and err.startswith("legato: ") and err.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback(command):
    command(raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        cli.run(["replay"])


def test_success_is_zero_and_typer_s_exit_codes_pass(command):
    command(lambda: None)
    assert cli.run(["replay"]) == 0
    command(raising(typer.Exit(1)))
    assert cli.run(["replay"]) == 1


@pytest.mark.parametrize("arguments", [["unheard-of"], ["replay", "--unheard-of"], ["--unheard-of"]])
def test_wrong_usage_is_one_sentence_and_exit_code_2(command, capsys, arguments):
    command(lambda: None)
    assert cli.run(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--help" in err and "nheard-of" in err


def test_help_lists_the_commands_and_imports_none_of_them(capsys):
    before = set(sys.modules)
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "replay" in shown and "features" in shown and "demo" in shown
    assert not [name for name in set(sys.modules) - before if name.startswith("runtime.commands.")]


def test_only_commands_that_exist_are_offered():
    names = cli.LazyGroup().list_commands(None)
    home = os.path.join(os.path.dirname(cli.__file__), "commands")
    assert names and all(os.path.exists(os.path.join(home, cli.COMMANDS[name][0] + ".py")) for name in names)


def test_help_and_version_load_neither_torch_nor_pyav_and_openmp_is_told_to_wait():
    check = (
        "import os, sys; from runtime import cli; cli.run(['--help']); cli.run(['--version']);"
        "heavy = {'torch', 'av', 'cv2', 'matplotlib', 'grpc', 'sounddevice'} & set(sys.modules);"
        "sys.exit(1 if heavy or os.environ['OMP_WAIT_POLICY'] != 'PASSIVE' else 0)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("legato 0.1.0")


def test_python_m_runtime_is_the_command():
    done = subprocess.run([sys.executable, "-m", "runtime", "replay"], capture_output=True, text=True)
    assert done.returncode == 2 and "Missing argument" in done.stderr and "Traceback" not in done.stderr


def test_a_result_gets_its_name_when_it_is_complete(tmp_path):
    with ResultFile(tmp_path / "new" / "out.jsonl") as file:
        file.write_json({"a": 1.5})
        assert not (tmp_path / "new" / "out.jsonl").exists()
    assert (tmp_path / "new" / "out.jsonl").read_text() == '{"a":1.5}\n'


@pytest.mark.parametrize("error", [SourceError("cut"), KeyboardInterrupt()])
def test_an_unfinished_result_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(type(error)), ResultFile(tmp_path / "out.jsonl") as file:
        file.write("half")
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device on which every write fails")
def test_a_full_disk_is_one_sentence_that_names_the_result(tmp_path):
    result = ResultFile(tmp_path / "out.jsonl")
    part_of(tmp_path / "out.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"out\.jsonl could not be written: No space left on device"), result as file:
        file.write("x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="could not be written"), ResultFile(tmp_path / "taken" / "out.jsonl"):
        pass
