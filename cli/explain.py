"""`plait explain`: what a plan sends and why, and why its operations are divided as they are."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import ConfigurationError
from .options import Json, PlanPath
from .output import print_facts, print_json, print_tables, spinner

__all__ = ["explain"]


def explain(
    plan: PlanPath,
    pattern: Annotated[
        str | None,
        typer.Argument(help="Operations or weights, as a pin names them, or a part of their names.", metavar="PATTERN"),
    ] = None,
    top: Annotated[int, typer.Option(min=0, metavar="N", help="Of how many reshards to find what removes them.")] = 5,
    all_: Annotated[bool, typer.Option("--all", help="Say of every strategy what it would cost, not of 10.")] = False,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=0.1, metavar="S", help="Seconds for making other plans.")
    ] = 30.0,
    json: Json = False,
) -> None:
    """Say why a plan is as it is.

    Without a pattern: every reshard with the line that asks for it, its bytes and its time, and for the most expensive
    the pin that would remove it, with what a step takes then. With a pattern: how the operations and weights that it
    names are divided, what other ways would cost, and which there are not, and why.

    \b
    plait compile llama-3.1-405b --target sn40l-16 -o plan
    plait explain plan
    plait explain plan 'layers.*/mlp/linear#3'
    plait explain plan attention.query --all
    """
    with spinner("reading the plan") as progress:
        from ..compiler.partition.explain import explain as explain_plan
        from ..compiler.partition.pins import resolve_pins
        from ..compiler.plan_file import read_plan

        compilation = read_plan(plan)
        partition = compilation.partition
        if partition is None:
            raise ConfigurationError(f"{plan} divides nothing; compile it up to its stage 'partition'")
        explanation = explain_plan(
            compilation.traced,
            partition,
            compilation.target,
            dtype=compilation.dtype,
            pins=resolve_pins(compilation.traced.graph, compilation.parallelism.pins, partition.mesh),
            pattern=pattern,
            top=top,
            limit=None if all_ else 10,
            time_limit_seconds=time_limit,
            progress=progress,
        )
    if json:
        print_json(explanation.to_dict())
        return
    print_facts(explanation.facts())
    print()
    print_tables(explanation.tables())
