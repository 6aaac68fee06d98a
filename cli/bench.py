"""`plait bench`: load on a server, the rates of the engine, and switches between models."""

from __future__ import annotations

from typing import Annotated

import typer

from .bench_serve import serve
from .bench_switch import switch
from .options import BundlePath, HbmBytes, Json
from .output import print_json, print_tables, progress_bars

__all__ = ["bench"]

bench = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Measure a server under load, the engine alone, or switches.",
)


@bench.callback()
def _group() -> None:
    """Measure a server under load, the engine alone, or switches."""


bench.command("serve")(serve)


@bench.command("engine")
def engine(
    bundle: BundlePath,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="A decoder; the bundle's first by default.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, metavar="N", help="Of which each figure is the median.")] = 5,
    hbm: HbmBytes = None,
    json: Json = False,
) -> None:
    """Measure what the engine decodes and prefills, without a server, on an otherwise idle machine.

    Decode with 1, 4, 8 and 16 answers at once and prefill of 128, 512 and 2048 tokens, as far as the bundle allows. A
    decode step cannot take less than reading the weights takes: the share of that roofline is said, with the read
    bandwidth of numpy or JAX, the faster, measured in the same run.

    \b
    plait bench engine agent.plait
    plait bench engine agent.plait --model chat --runs 9 --json
    """
    from ..compiler.bundle.reader import open_bundle
    from ..runtime.bench.engine import measure_engine
    from ..runtime.engine import Runtime

    opened = open_bundle(bundle)
    with progress_bars() as bars:
        loading = Runtime(opened, hbm=hbm, progress=lambda done, total: bars.update("load programs", done, total))
        with loading as runtime:
            rates = measure_engine(
                runtime, model, num_runs=runs, progress=lambda done, total: bars.update("measure", done, total)
            )
    if json:
        print_json(rates.to_json())
    else:
        print_tables(rates.tables())


bench.command("switch")(switch)
