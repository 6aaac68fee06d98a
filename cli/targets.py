"""`plait targets`: the machines that plait can plan for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .options import Json
from .output import format_bytes, print_json, print_table

__all__ = ["targets"]


def targets(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A target, or the path of a TOML file.")] = None,
    json: Json = False,
) -> None:
    """List the targets, or show one as the TOML that it is.

    \b
    plait targets
    plait targets cpu-tiered > mine.toml    a copy to be changed, for `target: mine.toml` in a bundle file
    """
    from ..compiler.target import load_target, target_names

    if name is not None:
        from ..compiler.target_file import target_to_toml

        target = load_target(name)
        if json:
            print_json(asdict(target))
        else:
            print(target_to_toml(target), end="")
        return
    known = [load_target(each) for each in target_names()]
    if json:
        print_json([asdict(target) for target in known])
        return
    rows = [
        (
            target.name,
            target.kind,
            target.num_devices,
            ", ".join(f"{tier} {format_bytes(it.capacity_bytes)}" for tier, it in target.tiers.items()),
            target.description,
        )
        for target in known
    ]
    print_table(["target ", "kind ", "devices", "capacity ", "description "], rows)
