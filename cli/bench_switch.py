"""`plait bench switch`: what an agent notices of switches between models."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ..errors import ConfigurationError
from .bench_variants import one_model_bundle, variants_bundle
from .options import Json
from .output import Bars, note, print_json, print_tables, progress_bars

if TYPE_CHECKING:
    from ..compiler.bundle.reader import Bundle
    from ..runtime.bench.switching.rival import Rival

__all__ = ["switch"]

_Bundle: TypeAlias = Annotated[
    Path | None,
    typer.Argument(
        metavar="[BUNDLE]",
        help="Four chat models or more, an embedding and a sparse one; by default variants of SmolLM2 are made.",
    ),
]
_Link: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="GB/S",
        help="Pace of the link from ddr to hbm in the loop; by default a switch lasts ten decode steps, as on SN40L.",
    ),
]
_RivalPython: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PYTHON",
        help="Interpreter with `transformers serve` or llama-cpp-python's server; may be given several times. "
        "Without one plait itself is started anew for each model.",
    ),
]
_CacheDir: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where variants and bundle are kept; ~/.cache/plait/switch.")
]
_Perfetto: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a timeline of the declared loop, for ui.perfetto.dev.")
]


def switch(
    bundle: _Bundle = None,
    turns: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of the loop with all resident, and of the declared one.")
    ] = 300,
    block: Annotated[int, typer.Option(min=1, metavar="N", help="Turns of one way before the next one's.")] = 12,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="That the other ways take part in, and of switches alone.")
    ] = 5,
    link: _Link = None,
    rival_python: _RivalPython = None,
    processes: Annotated[bool, typer.Option(help="Start a process per switch as well.")] = True,
    variants: Annotated[int, typer.Option(min=4, metavar="N", help="Of SmolLM2, if no bundle is given.")] = 8,
    cache_dir: _CacheDir = None,
    perfetto: _Perfetto = None,
    json: Json = False,
) -> None:
    """Measure switches, and an agent's loop over more models than there is room for.

    Each turn embeds a question, ranks passages, answers in 32 tokens and has a guard judge the answer; each turn has
    another chat model and guard. With room for half of the bytes, and the loop declared as a workflow, learned, or
    unknown, it is compared with all models resident, with reloading files, and with a process per switch; in turns, in
    one run. Switches alone are measured unpaced. For an otherwise idle machine with 16 GB; it takes about a quarter of
    an hour, the first time longer: eight variants of SmolLM2 with noise in their weights are made and bundled.

    \b
    plait bench switch
    plait bench switch --rival-python ~/venv/bin/python --perfetto timeline.json
    plait bench switch agent.plait --turns 24 --rounds 2 --no-processes --json
    """
    from ..models.cache import cache_directory
    from ..runtime.bench.switching.child import RemoteStation
    from ..runtime.bench.switching.report import SwitchReport
    from ..runtime.bench.switching.run import Plan, run_switching

    if link is not None and not (math.isfinite(link) and link > 0):
        raise ConfigurationError(f"--link is {link:g}: it must be above 0")
    if variants % 2:
        raise ConfigurationError(f"--variants is {variants}: chat models and guards are pairs, so it must be even")
    if perfetto is not None and not perfetto.parent.is_dir():
        raise ConfigurationError(f"cannot write {perfetto}: there is no directory {perfetto.parent}")
    directory = cache_directory() / "switch" if cache_dir is None else cache_dir
    with progress_bars() as bars:
        opened = _opened(bundle, directory, variants, bars)
        rivals = _rivals(opened, rival_python or (), directory, bars) if processes else []
        pace = None if link is None else link * 1e9
        plan = Plan(opened.path, pace, turns, block, rounds, wants_timeline=perfetto is not None)
        runs = run_switching(plan, RemoteStation, rivals, bars.update)
    report = SwitchReport(plan, runs)
    if perfetto is not None and runs.timeline is not None:
        perfetto.write_bytes(runs.timeline)
    if json:
        print_json(report.to_json())
    else:
        print_tables(report.tables())


def _opened(bundle: Path | None, directory: Path, num_variants: int, bars: Bars) -> Bundle:
    from ..compiler.bundle.reader import open_bundle
    from ..runtime.bench.switching.agent import Roles

    opened = variants_bundle(directory, num_variants // 2, bars) if bundle is None else open_bundle(bundle)
    if opened.manifest.target.kind != "tiered":
        raise ConfigurationError(
            f"bundle {opened.manifest.name!r} is for a target without tiers; there are no switches"
        )
    Roles.of(opened.manifest)
    return opened


def _rivals(bundle: Bundle, pythons: Sequence[str], directory: Path, bars: Bars) -> list[Rival]:
    """Returns the servers to be started for each model: those of these interpreters, or else plait itself."""
    from ..models import registry
    from ..runtime.bench.switching.agent import Roles
    from ..runtime.bench.switching.rival import llama_cpp, plait_serve, transformers_serve

    chat, guard = Roles.of(bundle.manifest).pairs[0]
    sources = {entry.name: entry.source for entry in bundle.manifest.models}
    found: list[Rival] = []
    for python in pythons:
        of_python = [transformers_serve(python, [Path(sources[name]) for name in (chat, guard)])]
        if bundle.path.is_relative_to(directory):  # its models are SmolLM2, as this file is
            of_python.append(llama_cpp(python, registry.pull("smollm2-135m")))
        if not any(of_python):
            note(f"{python} runs neither `transformers serve` with these models nor llama-cpp-python's server")
        found += [rival for rival in of_python if rival is not None]
    if found:
        return found
    command = [sys.executable, "-c", f"from {__package__}.main import run; run()"]
    return [plait_serve(command, one_model_bundle(bundle, chat, directory, bars))]
