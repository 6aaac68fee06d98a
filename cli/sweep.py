"""`plait sweep`: one model planned in many ways, and which of them no other one beats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from ..errors import ConfigurationError
from .garbage import uncollected
from .options import Json, WeightsForm
from .output import note, print_json, print_tables, progress_bars

if TYPE_CHECKING:
    from ..compiler.report.sweep import Metric

__all__ = ["sweep"]

_DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def sweep(
    model: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A name of `plait models`, or any source of `plait compile`.")
    ],
    target: Annotated[str, typer.Option(metavar="NAME|FILE", help="A target, or the path of a TOML file.")],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,VALUE",
            help="What to vary; may be repeated. Of the plan: target, sockets, batch, sequence, weights, mesh, stages, "
            "mode, launches. Of the target: flops, compute_efficiency, launch_seconds, hbm_bandwidth, hbm_capacity, "
            "hbm_efficiency, sram, clock, network_bandwidth, network_latency.",
        ),
    ] = None,
    phase: Annotated[Literal["decode", "prefill"], typer.Option(help="Of the step that is planned.")] = "decode",
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences at once, if not varied.")] = 1,
    sequence: Annotated[int, typer.Option(min=1, metavar="N", help="Context in tokens, if not varied.")] = 2048,
    dtype: Annotated[
        Literal["f32", "bf16"] | None, typer.Option(help="Of products and caches; as published by default.")
    ] = None,
    weights: WeightsForm = "stored",
    front: Annotated[
        str,
        typer.Option(
            metavar="METRIC,METRIC",
            help="What the front is of; by default the first two of tokens_per_s_per_user, tokens_per_s_per_socket, "
            "tokens_per_s, joules_per_token, step_seconds, device_bytes.",
            show_default=False,
        ),
    ] = "tokens_per_s_per_user,tokens_per_s_per_socket",
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one page with the front drawn.")] = None,
    json: Json = False,
) -> None:
    """Plan one model in every combination, and mark those that no other one beats.

    Each combination is partitioned, fused and scheduled; of one that does not fit it is said why. What is marked is the
    Pareto front: no other combination is as good in both metrics and better in one.

    \b
    plait sweep llama-3.1-8b --target sn40l-16 --vary sockets=4,8,16 --vary batch=1,8,32
    plait sweep deepseek-r1 --target sn50-64 --vary sockets=16,32,64 --vary sequence=2048,8192 --html front.html
    plait sweep llama-3.1-70b --target sn40l-16 --vary hbm_bandwidth=1.8e12,3.6e12 --vary sram=260MiB,520MiB
    plait sweep llama-3.1-8b --target sn40l-8 --vary batch=1,4,16 --front tokens_per_s,joules_per_token
    """
    from ..compiler.report.knobs import Trial, parse_vary
    from ..compiler.report.sweep import sweep as sweep_model
    from ..compiler.subject import read_subject
    from ..compiler.target import load_target

    metrics, varied = _metrics(front), parse_vary(vary or [])
    if html is not None and html.is_dir():
        raise ConfigurationError(f"cannot write {html}: it is a directory; --html takes a file")
    base = Trial(load_target(target), None, batch, sequence, phase, weights)
    subject = read_subject(model, base=Path())
    with uncollected(), progress_bars() as bars:
        found = sweep_model(
            subject.config,
            base,
            varied,
            name=model,
            dtype=_DTYPES[dtype] if dtype else subject.dtype,
            metrics=metrics,
            progress=lambda done, total: bars.update("plans", done, total),
        )
    if html is not None:
        from ..compiler.files import write_files
        from ..compiler.report.sweep_page import sweep_page

        write_files(html.parent, {html.name: sweep_page(found)})
        note(f"written: {html}")
    if json:
        print_json(found.to_dict())
        return
    from ..compiler.report.sweep_page import sweep_table

    print_tables([sweep_table(found)])


def _metrics(front: str) -> tuple[Metric, Metric]:
    from ..compiler.report.sweep import METRICS

    names = tuple(name.strip() for name in front.split(","))
    if len(names) != 2 or len(set(names)) != 2 or any(name not in METRICS for name in names):
        raise ConfigurationError(f"--front {front!r}: write two of {', '.join(METRICS)}, with a comma between")
    return cast("tuple[Metric, Metric]", names)
