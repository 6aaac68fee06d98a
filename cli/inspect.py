"""`plait inspect`: a plan or a bundle, as a summary, a page, or files for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ..errors import ConfigurationError
from .garbage import uncollected
from .options import Json, is_bundle
from .output import note, print_facts, print_json, print_tables, spinner

if TYPE_CHECKING:
    from ..compiler.report.inspection import Inspection

__all__ = ["inspect"]

_File: TypeAlias = Path | None


def inspect(
    plan: Annotated[
        Path,
        typer.Argument(metavar="PLAN|BUNDLE", help="Directory of `plait compile -o` or `plait bundle`, or plan.json."),
    ],
    html: Annotated[_File, typer.Option(metavar="FILE", help="Write one page that needs nothing else.")] = None,
    perfetto: Annotated[
        _File, typer.Option(metavar="FILE", help="Write the schedule as a trace for ui.perfetto.dev.")
    ] = None,
    csv: Annotated[
        _File, typer.Option(metavar="DIR", help="Write section_report, stage_report and paths_report of SambaTune.")
    ] = None,
    model_explorer: Annotated[
        _File, typer.Option("--model-explorer", metavar="FILE", help="Write the graph for Google's Model Explorer.")
    ] = None,
    dot: Annotated[_File, typer.Option(metavar="FILE", help="Write sections and what goes between them.")] = None,
    time_limit: Annotated[
        float,
        typer.Option("--time-limit", min=0, metavar="S", help="Seconds for other plans to compare with."),
    ] = 6.0,
    json: Json = False,
) -> None:
    """Sum up a plan or a bundle, as text, as a page, for other tools.

    Of a plan: its kernels and what bounds them, where its time and its bytes go, what it sends and which line asks for
    it, and what other plans would take; they are made for this, until the time limit. Of a bundle: its models, where
    they are, and what a switch takes.

    \b
    plait compile llama-3.1-405b --target sn40l-16 -o plan
    plait inspect plan
    plait inspect plan --html plan.html --perfetto trace.json
    plait inspect plan --csv reports --model-explorer graph.json --dot sections.dot
    plait inspect agent.plait
    """
    files = {"--html": html, "--perfetto": perfetto, "--csv": csv, "--model-explorer": model_explorer, "--dot": dot}
    wanted = {option: path for option, path in files.items() if path is not None}
    if is_bundle(plan):
        from .inspect_bundle import inspect_bundle

        if wanted:
            raise ConfigurationError(f"{', '.join(wanted)}: files are of plans of `plait compile`, {plan} is a bundle")
        inspect_bundle(plan, as_json=json)
        return
    for option, path in wanted.items():
        if option != "--csv" and path.is_dir():
            raise ConfigurationError(f"cannot write {path}: it is a directory; {option} takes a file")
    with uncollected(), spinner("reading the plan") as show:
        from ..compiler.plan_file import read_plan
        from ..compiler.report import inspect_plan

        seen = inspect_plan(read_plan(plan), time_limit_seconds=time_limit, progress=show)
        for option, path in wanted.items():
            show(f"writing {path}")
            _write(seen, option, path)
    if json:
        from ..compiler.report.tables import to_dict

        print_json({**to_dict(seen), "files": [str(path) for path in wanted.values()]})
        return
    _print(seen)
    for path in wanted.values():
        note(f"written: {path}")


def _write(seen: Inspection, option: str, path: Path) -> None:
    """Writes one kind of file, whole or not at all."""
    from ..compiler.files import write_files

    if option == "--csv":
        from ..compiler.report.sambatune import sambatune_files

        write_files(path, sambatune_files(seen))
        return
    write_files(path.parent, {path.name: _made(seen, option)})


def _made(seen: Inspection, option: str) -> bytes:
    if option == "--html":
        from ..compiler.report.page import page

        return page(seen)
    if option == "--perfetto":
        from ..compiler.report.perfetto import perfetto_json

        return perfetto_json(seen)
    if option == "--model-explorer":
        from ..compiler.report.model_explorer import model_explorer_json

        return model_explorer_json(seen)
    from ..compiler.report.dot import dot_text

    return dot_text(seen).encode()


def _print(seen: Inspection) -> None:
    from ..compiler.report.insights import insights
    from ..compiler.report.tables import facts, tables

    print_facts(facts(seen))
    print()
    print_tables(tables(seen))
    print("\ninsights")
    for insight in insights(seen):
        print(f"- {insight.text}\n  [{insight.topic}: {insight.basis}]")
