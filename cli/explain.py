"""`plait explain`: why a plan sends and divides what it does; in which forms a bundle's products run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from .explain_bundle import explain_bundle
from .options import Json, is_bundle
from .output import print_facts, print_json, print_tables, spinner

__all__ = ["explain"]


def explain(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN|BUNDLE", help="What `plait compile -o` or `plait bundle` made.")
    ],
    pattern: Annotated[
        str | None,
        typer.Argument(
            help="Operations or weights, as a pin names them, or a part of their names; of a bundle, a model.",
            metavar="PATTERN",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=0, metavar="N", help="Of how many reshards to find what removes them.")] = 5,
    all_: Annotated[
        bool,
        typer.Option("--all", help="Say of every strategy what it would cost, not of 10; of a bundle, every form."),
    ] = False,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=0.1, metavar="S", help="Seconds for making other plans.")
    ] = 30.0,
    json: Json = False,
) -> None:
    """Say why a plan, or a bundle, is as it is.

    Without a pattern: every reshard with the line that asks for it, its bytes and its time, and for the most expensive
    the pin that would remove it, with what a step takes then. With a pattern: how the operations and weights that it
    names are divided, what other ways would cost, and which there are not, and why. Of a bundle: in which forms its
    matrix products were timed, which of them run, and how far stored weights are from dense ones.

    \b
    plait compile llama-3.1-405b --target sn40l-16 -o plan
    plait explain plan
    plait explain plan 'layers.*/mlp/linear#3'
    plait explain plan attention.query --all
    plait explain agent.plait chat
    """
    if is_bundle(plan):
        explain_bundle(plan, pattern, show_all=all_, as_json=json)
        return
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
