"""`plait solve`: the planner's own problems, read from files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigurationError, VerificationError
from .options import Json
from .output import format_seconds, note, print_facts, print_json
from .solve_packing import packing

if TYPE_CHECKING:
    from ..compiler.partition.problem import Problem
    from ..compiler.partition.solver import Solution
    from ..compiler.partition.solver.best import Progress

__all__ = ["solve"]

_START_SECONDS = 0.7  # that the command takes before it is here
_END_SHARE = 0.02  # of the time limit, for checking and printing

solve = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Solve a problem of the planner, read from a file.",
)


solve.command()(packing)


@solve.callback()
def _group() -> None:
    """Solve a problem of the planner, read from a file."""


@solve.command()
def sharding(
    file: Annotated[Path, typer.Argument(metavar="FILE.json[.gz]", help="A problem in the contest's format.")],
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=0.1, max=1e6, metavar="S", help="Seconds in which the command ends.")
    ] = 60.0,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", metavar="FILE", help="Write what the bound can be checked with.")
    ] = None,
    json: Json = False,
) -> None:
    """Choose a strategy for every node of a sharding problem, at the least cost within the memory limit.

    The format is that of the ASPLOS/EuroSys 2025 contest on intra-operator parallelism; 1e18 stands for forbidden.
    Said are the cost, a bound that no assignment goes below, the gap between the two, and whether an evaluator that
    shares no code with the solver agrees. Exit code 1: nothing is allowed, or nothing was found in time.

    \b
    plait solve sharding B.json.gz --time-limit 60
    plait solve sharding B.json --json --certificate B.dual.json
    """
    begin = time.monotonic()
    from ..compiler.partition.problem import load_document, parse_problem
    from ..compiler.partition.solver import solve as solve_problem

    document = load_document(file)
    problem = parse_problem(document, file)
    reading_seconds = time.monotonic() - begin
    # Checking the answer takes about as long as reading the problem.
    spent_seconds = _START_SECONDS + 1.5 * reading_seconds + _END_SHARE * time_limit
    with _progress_line() as progress:
        limit_seconds = max(time_limit - spent_seconds, 0.05 * time_limit)
        solution = solve_problem(problem, time_limit_seconds=limit_seconds, progress=progress)
    is_verified = _is_verified(document, solution)
    if certificate is not None:
        _write(solution, certificate)
    if json:
        print_json(_data(solution, is_verified))
    else:
        _print(problem, solution, is_verified)
    if not solution.assignment and problem.num_nodes:
        note(solution.infeasible.text if solution.infeasible else "nothing was found in time; raise --time-limit")
        raise typer.Exit(1)


def _is_verified(document: object, solution: Solution) -> bool:
    """Whether the independent evaluator finds the assignment allowed and of the same cost.

    Raises:
        VerificationError: if not, which is a defect of the solver.
    """
    from ..compiler.verify.sharding import evaluate

    if not isinstance(document, Mapping) or solution.status in ("infeasible", "unknown"):
        return False
    found = evaluate(document, solution.assignment)
    if not found.is_allowed or abs(found.cost - solution.cost) > 1e-9 * abs(found.cost):
        raise VerificationError(
            f"the assignment costs {found.cost} and peaks at {found.peak}, not what the solver says"
        )
    return True


def _data(solution: Solution, is_verified: bool) -> dict[str, object]:
    why = solution.infeasible
    return {
        "status": solution.status,
        "cost": _number(solution.cost),
        "lower_bound": _number(solution.lower_bound),
        "gap": _number(solution.gap),
        "seconds": round(solution.seconds, 3),
        "verified": is_verified,
        "certified_bound": None if solution.certificate is None else _number(solution.certificate.bound),
        "assignment": list(solution.assignment),
        "infeasible": None
        if why is None
        else {
            "reason": why.reason,
            "text": why.text,
            "time": why.time,
            "demand": _number(why.demand),
            "limit": _number(why.limit),
            "shortfall": _number(why.shortfall),
            "largest": [{"node": node, "usage": _number(usage)} for node, usage in why.largest],
            "nodes": list(why.nodes),
        },
    }


def _number(value: float) -> float | int | None:
    """As a number of JSON: integers as such, what is not finite as null."""
    if not isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 2**53 else value


def _print(problem: Problem, solution: Solution, is_verified: bool) -> None:
    certified = None if solution.certificate is None else solution.certificate.bound
    facts: list[tuple[str, object]] = [
        ("problem", f"{problem.num_nodes:,} nodes, {len(problem.edges):,} edges"),
        ("status", solution.status),
        ("cost", _text(solution.cost)),
        ("lower bound", _text(solution.lower_bound)),
        ("from dual values", "none" if certified is None else _text(certified)),
        ("gap", f"{solution.gap:.4%}" if isfinite(solution.gap) else "unknown"),
        ("verified", "yes" if is_verified else "no"),
        ("time", format_seconds(solution.seconds)),
    ]
    print_facts(facts)


def _text(value: float) -> str:
    if not isfinite(value):
        return "none"
    return f"{int(value):,}" if value == int(value) else f"{value:.9g}"


def _write(solution: Solution, path: Path) -> None:
    from json import dumps

    if solution.certificate is None:
        raise ConfigurationError(f"there are no dual values to write to {path}: the problem is {solution.status}")
    try:
        path.write_text(dumps(solution.certificate.to_json()), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def _progress_line() -> Iterator[Progress]:
    """Shows what the solver does, on standard error if that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False)
    if not console.is_terminal:
        yield lambda stage, cost, bound: None
        return
    with console.status("reducing") as status:
        yield lambda stage, cost, bound: status.update(f"{stage}: cost {cost:.6g}, bound {bound:.6g}")
