from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plait.cli import main
from plait.errors import ConfigurationError

GOLDEN = Path(__file__).parents[1] / "golden"
COMMAND = [str(Path(sys.executable).with_name("plait"))]
COMMANDS = (
    "pull",
    "models",
    "targets",
    "compile",
    "verify",
    "explain",
    "inspect",
    "diff",
    "sweep",
    "convert",
    "bundle",
    "check",
    "run",
    "chat",
    "serve",
    "top",
    "calibrate",
)


@pytest.mark.parametrize("command", ["", *COMMANDS], ids=lambda command: command or "plait")
def test_help_is_the_golden_text(plait, command: str, monkeypatch, request) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("PLAIT_API_KEY", raising=False)
    outcome = plait(*([command] if command else []), "--help")
    golden = GOLDEN / f"help_{command or 'plait'}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == golden.read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(plait, command: str) -> None:
    assert f"  plait {command}" in plait(command, "--help").out


def test_no_command_shows_the_help(plait) -> None:
    outcome = plait()
    assert outcome.code == 0
    assert all(f"  {command} " in outcome.out for command in COMMANDS)


def test_version(plait) -> None:
    assert plait("--version").out == "plait 0.1.0\n"


def test_nothing_heavy_is_imported_before_a_command_needs_it() -> None:
    check = (
        "import sys, plait.cli.main; sys.exit(not {'jax', 'numpy', 'pydantic_core', 'fastapi'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["--bogus"], "No such option: --bogus"),
        (["run"], "Missing argument 'BUNDLE'"),
        (["run", "a", "b", "c", "--temperature", "hot"], "Invalid value for '--temperature'"),
        (["compile", "x", "--phase", "score"], "'score' is not one of 'prefill', 'decode'"),
    ],
    ids=["command", "option", "argument", "number", "choice"],
)
def test_wrong_arguments_are_one_line(plait, arguments: list[str], says: str) -> None:
    assert says in plait(*arguments).complaint()


def failing(error: BaseException):
    def targets() -> None:
        raise error

    return targets


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ConfigurationError("two\n  lines"), 2, "plait: two lines\n"),
        (ValueError("a defect"), 1, "plait: unexpected ValueError: a defect; `plait --debug …` shows the traceback\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["deliberate", "defect", "Ctrl-C"],
)
def test_an_error_becomes_a_line_and_an_exit_code(plait, monkeypatch, error, code: int, says: str) -> None:
    monkeypatch.setitem(main._COMMANDS, "targets", failing(error))
    outcome = plait("targets")
    assert (outcome.code, outcome.out, outcome.err) == (code, "", says)


def test_debug_shows_where_an_error_came_from(monkeypatch) -> None:
    monkeypatch.setitem(main._COMMANDS, "targets", failing(ValueError("a defect")))
    monkeypatch.setattr(sys, "argv", ["plait", "--debug", "targets"])
    with pytest.raises(ValueError, match="a defect"):
        main.run()


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as pipe:
        done = subprocess.run([*COMMAND, "targets"], stdout=pipe, stderr=subprocess.PIPE, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("seconds", [0.4, 0.6, 0.8, 1.2, 2.0])  # imports first, then programs, then a question
def test_ctrl_c_is_quiet_at_any_moment(tiny_bundle, seconds: float) -> None:
    process = subprocess.Popen([*COMMAND, "chat", tiny_bundle], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"")
