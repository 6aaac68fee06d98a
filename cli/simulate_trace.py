"""`plait simulate trace`: a trace replayed on a machine that need not be there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ..errors import ConfigurationError
from .garbage import uncollected
from .options import HbmBytes, Json
from .output import print_facts, print_json, print_tables, progress_bars, spinner

if TYPE_CHECKING:
    from ..runtime.bench.arrivals import Arrival, Mix
    from ..runtime.simulation.machine import Machine
    from ..runtime.simulation.replay import Replayed

__all__ = ["trace"]

_DEFAULT_REQUESTS = 1000  # of a Poisson process

_Simulated: TypeAlias = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE|FILE.yaml", help="Directory that `plait bundle` made, or a bundle file for a rack."),
]
_Trace: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="CSV of timestamp and model, or ContextTokens, GeneratedTokens; or Mooncake's JSON lines.",
    ),
]
_Rate: TypeAlias = Annotated[
    float | None, typer.Option(metavar="R", help="Instead of a trace: R requests a second, Poisson.")
]
_Target: TypeAlias = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="What the machine is; the bundle's own by default.")
]
_Models: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="To be asked; several in turn. All that generate by default."),
]
_Names: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Keep the trace's N most used names; the most used one is the first model."),
]
_Speed: TypeAlias = Annotated[float, typer.Option(metavar="X", help="Times as fast as the trace.")]
_Limit: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Requests; the whole trace, or 1000, by default.")
]
_InputTokens: TypeAlias = Annotated[int, typer.Option(min=1, metavar="N", help="Of each prompt, if a trace has none.")]
_OutputTokens: TypeAlias = Annotated[int, typer.Option(min=1, metavar="N", help="Of each answer, likewise.")]
_Scale: TypeAlias = Annotated[float, typer.Option(metavar="X", help="Times these lengths, or the trace's.")]
_MaxInput: TypeAlias = Annotated[
    int | None, typer.Option("--max-input", min=1, metavar="N", help="Longer prompts are cut, once scaled.")
]
_MaxOutput: TypeAlias = Annotated[
    int | None, typer.Option("--max-output", min=1, metavar="N", help="Longer answers are cut, once scaled.")
]
_Bounds: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=S", help="Bound on ttft, tpot or e2e in seconds; may be given several times."),
]
_Seed: TypeAlias = Annotated[int, typer.Option(metavar="S", help="Of the arrivals of --rate.")]
_DdrBytes: TypeAlias = Annotated[str | None, typer.Option(metavar="BYTES", help="Bytes of ddr to use; likewise.")]
_Link: TypeAlias = Annotated[
    str | None, typer.Option(metavar="BYTES", help="Bytes a second from ddr to hbm, e.g. 25GB, for the target's.")
]
_QueueTimeout: TypeAlias = Annotated[
    float | None, typer.Option(metavar="S", min=0, help="Seconds that a request may wait; for ever by default.")
]
_Patience: TypeAlias = Annotated[
    float,
    typer.Option(metavar="S", min=0, help="Seconds that a request in need of a switch lets others go first."),
]
_PrefillTokens: TypeAlias = Annotated[
    int | None,
    typer.Option("--prefill-tokens", min=1, metavar="N", help="Most of a prompt at once while others are answered."),
]
_WarmUp: TypeAlias = Annotated[bool, typer.Option("--warm-up", help="Ask each model once before, as `bench serve`.")]
_Perfetto: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write steps and transfers for ui.perfetto.dev.")
]


def trace(
    bundle: _Simulated,
    trace: _Trace = None,
    rate: _Rate = None,
    target: _Target = None,
    model: _Models = None,
    names: _Names = None,
    speed: _Speed = 1.0,
    limit: _Limit = None,
    input_tokens: _InputTokens = 128,
    output_tokens: _OutputTokens = 64,
    scale: _Scale = 1.0,
    max_input: _MaxInput = None,
    max_output: _MaxOutput = None,
    slo: _Bounds = None,
    seed: _Seed = 0,
    hbm: HbmBytes = None,
    ddr: _DdrBytes = None,
    link: _Link = None,
    queue_timeout: _QueueTimeout = None,
    patience: _Patience = 0.0,
    prefill_tokens: _PrefillTokens = None,
    warm_up: _WarmUp = False,
    perfetto: _Perfetto = None,
    json: Json = False,
) -> None:
    """Replay a trace through the scheduler that serves, in simulated time, and say how a machine would bear it.

    Steps of a bundle take what was measured when it was made, or, and the host's part with it, what `plait calibrate
    --bundle` wrote into the target. Steps of a rack take what its plan says. Answers are as long as the trace has them;
    the figures are those of `plait bench serve`, and switches, bytes moved, and joules where the target has power.

    \b
    plait simulate trace agent.plait --target mine.toml --trace azure.csv --speed 0.5 --scale 0.25 --limit 200
    plait simulate trace agent.plait --rate 2 --slo ttft=0.5 --slo tpot=0.05 --perfetto time.json
    plait simulate trace rack.plait --trace arrivals.csv --names 5 --speed 600 --link 25GB --json
    plait simulate trace examples/rack.yaml --trace mooncake.jsonl --scale 0.03125 --limit 1000
    """
    from ..runtime.bench.arrivals import Mix
    from ..runtime.bench.measures import parse_bound
    from ..runtime.simulation.report import report
    from .simulated_machine import simulated_machine

    _check(trace, rate, names, speed=speed, scale=scale)
    bounds = [parse_bound(text) for text in slo or ()]
    with uncollected(), spinner("reading the bundle"):
        machine = simulated_machine(bundle, target, hbm=hbm, ddr=ddr, link=link)
        models = _asked(machine, model)
        mix = Mix(models, input_tokens, output_tokens, scale, max_input, max_output)
        asked = _arrivals(mix, trace, rate, names, speed=speed, seed=seed, limit=limit)
    replayed = _replayed(
        machine,
        asked,
        perfetto,
        prefill_tokens=prefill_tokens,
        queue_timeout_seconds=queue_timeout,
        patience_seconds=patience,
        warm_up=models if warm_up else (),
    )
    found = report(machine, replayed, bounds)
    if json:
        print_json({**found.to_json(), "seed": seed})
    else:
        print_facts(found.facts())
        print()
        print_tables(found.tables())


def _replayed(
    machine: Machine,
    asked: Sequence[Arrival],
    perfetto: Path | None,
    *,
    prefill_tokens: int | None,
    queue_timeout_seconds: float | None,
    patience_seconds: float,
    warm_up: Sequence[str],
) -> Replayed:
    """Returns what a trace comes to; writes its timeline if that is asked for."""
    from ..runtime.simulation.replay import replay
    from ..runtime.simulation.timeline import Timeline

    timeline = Timeline([entry.name for entry in machine.models]) if perfetto else None
    with uncollected(), progress_bars() as bars:
        replayed = replay(
            machine,
            asked,
            prefill_tokens=prefill_tokens,
            queue_timeout_seconds=queue_timeout_seconds,
            patience_seconds=patience_seconds,
            warm_up=warm_up,
            observe=timeline.see if timeline else None,
            progress=lambda done: bars.update("requests", done, len(asked)),
        )
    if timeline is not None and perfetto is not None:
        _write(perfetto, timeline.to_json(replayed.begin_seconds))
    return replayed


def _check(trace: Path | None, rate: float | None, names: int | None, **positive: float) -> None:
    if (trace is None) == (rate is None):
        raise ConfigurationError("give --trace or --rate: one of them says when requests come")
    if names is not None and trace is None:
        raise ConfigurationError("--names is for a trace; --rate asks the models in turn")
    for name, value in {**positive, "rate": 1.0 if rate is None else rate}.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigurationError(f"--{name} is {value:g}: it must be above 0")


def _asked(machine: Machine, names: Sequence[str] | None) -> Sequence[str]:
    """Returns the models that are asked.

    Raises:
        ConfigurationError: if the machine has not all of them, or none that generates.
    """
    known = {name: entry.name for entry in machine.models for name in (entry.name, *entry.aliases)}
    known |= {name: name for name in machine.routes}
    for name in names or ():
        if name not in known:
            few = ", ".join(islice((entry.name for entry in machine.models), 20))
            raise ConfigurationError(f"{machine.name} has no model {name!r}; it has: {few}")
    asked = [known[name] for name in names or ()] or [entry.name for entry in machine.models if entry.kv is not None]
    if not asked:
        raise ConfigurationError(f"no model of {machine.name} generates text; name a --model that is to be asked")
    return asked


def _arrivals(
    mix: Mix, trace: Path | None, rate: float | None, names: int | None, *, speed: float, seed: int, limit: int | None
) -> Sequence[Arrival]:
    from ..runtime.bench.arrivals import poisson, read_trace

    if trace is not None:
        return read_trace(trace, mix, speed=speed, num_names=names)[:limit]
    assert rate is not None
    return list(islice(poisson(mix, rate, seed=seed), limit or _DEFAULT_REQUESTS))


def _write(path: Path, data: bytes) -> None:
    from ..compiler.files import write_files

    write_files(path.parent, {path.name: data})
