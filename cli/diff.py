"""`plait diff`: two plans side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigurationError
from .options import Json
from .output import print_json, print_tables, spinner

if TYPE_CHECKING:
    from ..compiler.partition.difference import Planned

__all__ = ["diff"]

_HELP = "Directory that `plait compile -o` made, or its plan.json."


def diff(
    plan_a: Annotated[Path, typer.Argument(metavar="PLAN_A", help=_HELP)],
    plan_b: Annotated[Path, typer.Argument(metavar="PLAN_B", help=_HELP)],
    json: Json = False,
) -> None:
    """Say in what two plans differ: in all, and by component.

    A component is a module, or a weight, of all layers together. Plans of different models, phases or targets are
    compared by the names of their components.

    \b
    plait compile smollm2-135m --mesh 2x4 -o a
    plait compile smollm2-135m --mesh 2x4 --pin 'layers.*.mlp.down.weight=-,x*y' -o b
    plait diff a b
    """
    with spinner("reading the plans"):
        from ..compiler.partition.difference import difference

        found = difference(_read(plan_a), _read(plan_b))
    if json:
        print_json(found.to_dict())
        return
    print_tables(found.tables())


def _read(path: Path) -> Planned:
    from ..compiler.partition.difference import Planned
    from ..compiler.plan_file import read_plan

    compilation = read_plan(path)
    if compilation.partition is None:
        raise ConfigurationError(f"{path} divides nothing; compile it up to its stage 'partition'")
    return Planned(str(path), compilation.traced, compilation.partition, compilation.target, compilation.dtype)
