"""The command line: one app of all commands, and what becomes of their errors.

What plait raises on purpose, and what is wrong about the arguments, is one line on standard error and exit code 2,
never a traceback. Ctrl-C exits with 130, a reader that has gone away with 1, both without a word; SIGTERM with 143 and
a line, unless the command makes something of it. Anything else is a defect of plait: one line and exit code 1, with the
traceback after `plait --debug`.

JAX is imported by the commands that need it, not here: help and version come at once.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from .. import __version__
from ..errors import PlaitError
from .bench import bench
from .bundle import bundle
from .calibrate import calibrate
from .chat import chat
from .check import check
from .compile import compile_
from .convert import convert
from .diff import diff
from .explain import explain
from .inspect import inspect
from .interrupts import TERMINATED, Terminated, exit_code, reliable_interrupts
from .models import models
from .pull import pull
from .run import run as run_model
from .serve import serve
from .simulate import simulate
from .solve import solve
from .sweep import sweep
from .targets import targets
from .top import top
from .verify import verify

__all__ = ["build_app", "run"]

_COMMANDS = {
    "pull": pull,
    "models": models,
    "targets": targets,
    "compile": compile_,
    "verify": verify,
    "explain": explain,
    "inspect": inspect,
    "diff": diff,
    "sweep": sweep,
    "convert": convert,
    "bundle": bundle,
    "check": check,
    "run": run_model,
    "chat": chat,
    "serve": serve,
    "top": top,
    "calibrate": calibrate,
}


@dataclass
class _Settings:
    """Options that stand before the command."""

    debug: bool = False


def build_app(settings: _Settings | None = None) -> typer.Typer:
    """Returns the app of all commands; options before the command are written into `settings`."""
    settings = settings or _Settings()
    app = typer.Typer(
        name="plait",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def root(
        context: typer.Context,
        version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    ) -> None:
        """Braid many models onto one mesh: plan, bundle and serve several models on one node.

        \b
        plait pull --all                          the named models, once
        plait bundle agent.yaml -o agent.plait    compile the models of a bundle file
        plait check agent.plait                   what fits, what a switch costs
        plait serve agent.plait                   all of them behind one OpenAI-compatible endpoint
        """
        settings.debug = debug
        if version:
            print(f"plait {__version__}")
        elif context.invoked_subcommand is None:
            print(context.get_help())

    for name, command in _COMMANDS.items():
        app.command(name)(command)
    app.add_typer(simulate, name="simulate")
    app.add_typer(solve, name="solve")
    app.add_typer(bench, name="bench")
    return app


def run() -> None:
    """Runs the command line and exits."""
    settings = _Settings()
    try:
        # A character that the terminal cannot show must not end an answer.
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        with reliable_interrupts():
            code = build_app(settings)(prog_name="plait", standalone_mode=False)
            sys.stdout.flush()
    except BrokenPipeError:
        code = _close_stdout()
    except KeyboardInterrupt:
        code = exit_code(signal.SIGINT)
    except Terminated:
        _complain(TERMINATED)
        code = exit_code(signal.SIGTERM)
    except Exception as error:
        if settings.debug:
            raise
        code = _report(error)
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception) -> int:
    """Says in one line what went wrong and returns the exit code."""
    if isinstance(error, typer.Abort):
        return exit_code(signal.SIGINT)
    if isinstance(error, typer.TyperException):  # a wrong option or argument
        _complain(f"{error.format_message()} (see --help)")
        return 2
    if isinstance(error, PlaitError):
        _complain(str(error))
        return 2
    _complain(f"unexpected {type(error).__name__}: {error}; `plait --debug …` shows the traceback")
    return 1


def _complain(message: str) -> None:
    print(f"plait: {' '.join(message.split())}", file=sys.stderr)


def _close_stdout() -> int:
    # What is still buffered would fail again when the interpreter flushes it at its end, and loudly.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
