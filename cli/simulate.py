"""`plait simulate`: what a target would take, without having it."""

from __future__ import annotations

import typer

from .simulate_request import request
from .simulate_trace import trace

__all__ = ["simulate"]

simulate = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Say what a target would take, without having it.",
)


@simulate.callback()
def _group() -> None:
    """Say what a target would take, without having it."""


simulate.command("request")(request)
simulate.command("trace")(trace)
