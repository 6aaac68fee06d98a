"""`plait solve packing`: offsets for buffers, or the proof that they do not fit."""

from __future__ import annotations

import time
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json
from .output import format_seconds, note, print_facts, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..compiler.memory.packing import Buffer, Packing

__all__ = ["packing"]

_START_SECONDS = 0.7  # that the command takes before it is here
_END_SHARE = 0.02  # of the time limit, for checking and printing


def packing(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="Buffers in the format of MiniMalloc's benchmarks.")],
    capacity: Annotated[
        int | None,
        typer.Option("--capacity", min=0, metavar="N", help="Bytes to fit in; without it the height is minimised."),
    ] = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=0.1, max=1e6, metavar="S", help="Seconds in which the command ends.")
    ] = 60.0,
    json: Json = False,
) -> None:
    """Choose offsets for buffers so that those that are live at once do not overlap.

    Columns are lower, upper and size, and if wanted id and alignment. A buffer is live at lower <= time < upper. With a
    capacity the first packing that fits is the answer: optimal if it is as low as the lower bound, else feasible.
    Infeasible is proven: more than the capacity is live at the moment that is named, or every packing was tried. The
    first time on a machine, about 15 seconds go into compiling. Exit code 1: infeasible, or nothing found in time.

    \b
    plait solve packing buffers.csv --capacity 1048576 --time-limit 60
    plait solve packing buffers.csv --json
    """
    begin = time.monotonic()
    from ..compiler.memory.packing import read_buffers, solve_packing

    buffers = read_buffers(file)
    spent_seconds = _START_SECONDS + 1.5 * (time.monotonic() - begin) + _END_SHARE * time_limit
    answer = solve_packing(buffers, capacity, max(time_limit - spent_seconds, 0.05 * time_limit))
    is_verified = _is_verified(buffers, answer, capacity)
    if json:
        print_json(_data(answer, is_verified))
    else:
        _print(buffers, answer, is_verified)
    if answer.height is None:
        note(_why_not(answer))
        raise typer.Exit(1)


def _is_verified(buffers: Sequence[Buffer], answer: Packing, capacity: int | None) -> bool:
    """Whether the verifier agrees; False if there is nothing that it can look at.

    Raises:
        VerificationError: if it does not agree, which is a defect of the packer.
    """
    from ..compiler.verify.packing import verify_load, verify_packing

    if answer.height is not None:
        verify_packing(buffers, answer.offsets, answer.height, capacity)
        return True
    if answer.binding is not None and answer.binding.reason == "load":
        verify_load(buffers, answer.binding.moment, answer.binding.demand_bytes)
        return True
    return False


def _data(answer: Packing, is_verified: bool) -> dict[str, object]:
    why = answer.binding
    return {
        "status": answer.status,
        "height": answer.height,
        "lower_bound": answer.lower_bound,
        "gap": answer.gap if isfinite(answer.gap) else None,
        "seconds": round(answer.seconds, 3),
        "verified": is_verified,
        "nearest_height": answer.nearest_height,
        "offsets": dict(answer.offsets),
        "infeasible": None
        if why is None
        else {
            "reason": why.reason,
            "text": why.text,
            "time": why.moment,
            "demand": why.demand_bytes,
            "limit": why.limit_bytes,
            "shortfall": why.shortfall_bytes,
            "live": [{"id": name, "size": size} for name, size in why.live],
            "levers": list(why.levers),
        },
    }


def _print(buffers: Sequence[Buffer], answer: Packing, is_verified: bool) -> None:
    print_facts(
        [
            ("problem", f"{len(buffers):,} buffers"),
            ("status", answer.status),
            ("height", "none" if answer.height is None else f"{answer.height:,}"),
            ("lower bound", f"{answer.lower_bound:,}"),
            ("gap", f"{answer.gap:.4%}" if isfinite(answer.gap) else "unknown"),
            ("verified", "yes" if is_verified else "no"),
            ("time", format_seconds(answer.seconds)),
        ]
    )


def _why_not(answer: Packing) -> str:
    if answer.binding is not None:
        return answer.binding.text
    return f"nothing was found in time; the lowest packing found takes {answer.nearest_height:,} bytes"
