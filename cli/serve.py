"""`plait serve`: a bundle behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import json as json_text
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from ..errors import ConfigurationError
from .check import Digest
from .options import BundlePath, HbmBytes
from .output import format_bytes, progress_bars

if TYPE_CHECKING:
    from ..compiler.bundle.reader import Bundle
    from ..runtime.engine import Runtime

__all__ = ["serve"]

_ToolParser: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="[MODEL=]FORM", help="How a model writes tool calls, if not as its chat template tells."),
]
_Canary: TypeAlias = Annotated[
    Literal["first", "always", "never"],
    typer.Option(help="When a model that woke up is asked what it said when it was bundled: refused if it differs."),
]
_ApiKey: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY", envvar="PLAIT_API_KEY", help="Key that clients need; may be given several times."),
]


def serve(
    bundle: BundlePath,
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="0 takes a free one.")] = 8000,
    hbm: HbmBytes = None,
    ddr: Annotated[str | None, typer.Option(metavar="BYTES", help="Bytes of ddr to use; likewise.")] = None,
    target: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="What this machine is, e.g. from `plait calibrate`.")
    ] = None,
    api_key: _ApiKey = None,
    digest: Digest = None,
    queue_timeout: Annotated[
        float | None, typer.Option(metavar="S", min=0, help="Seconds that a request may wait; for ever by default.")
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            metavar="S",
            min=0,
            help="Seconds that a request in need of a switch lets others go first: 0 for latency, more for throughput.",
        ),
    ] = 0.0,
    max_requests: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests under way at once; further ones get 429.")
    ] = 1024,
    tool_parser: _ToolParser = None,
    canary: _Canary = "first",
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON when ready.")] = False,
) -> None:
    """Serve a bundle behind one OpenAI-compatible endpoint.

    Models that don't fit at once are switched as requests ask for them. SIGINT and SIGTERM let running answers end.
    Keys in the environment variable PLAIT_API_KEY, separated by spaces, are not seen in the list of processes.

    \b
    plait serve agent.plait --port 8000 --hbm 350MiB
    curl http://127.0.0.1:8000/v1/models
    """
    from ..compiler.bundle.reader import open_bundle
    from ..compiler.target import load_target
    from ..runtime.engine import Runtime
    from ..runtime.server.serve import listen
    from ..runtime.server.serve import serve as serve_runtime

    if any(not key.strip() for key in api_key or ()):
        raise ConfigurationError("an --api-key is empty; leave it out to let anybody ask")
    opened = open_bundle(bundle, digest=digest)
    machine = None if target is None else load_target(target)
    listen(host, port).close()  # a taken port should not be found out after loading
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library in ("jax", "httpx"):
        logging.getLogger(library).setLevel(logging.WARNING)
    with progress_bars() as bars:
        runtime = Runtime(
            opened,
            hbm=hbm,
            ddr=ddr,
            target=machine,
            max_requests=max_requests,
            queue_timeout_seconds=queue_timeout,
            patience_seconds=patience,
            tool_parsers=_tool_parsers(tool_parser or [], opened),
            canary=canary,
            progress=lambda done, total: bars.update("load programs", done, total),
        )
    with runtime:
        serve_runtime(
            runtime, host, port, api_keys=api_key or (), announce=lambda url: _announce(runtime, url, as_json=json)
        )


def _tool_parsers(options: Sequence[str], bundle: Bundle) -> dict[str, str]:
    """Returns forms by model; one without a model is for all decoders that are not named."""
    parsers: dict[str, str] = {}
    decoders = [entry.name for entry in bundle.manifest.models if entry.kv is not None]
    for option in sorted(options, key=lambda option: "=" not in option):
        model, _, form = option.rpartition("=")
        parsers |= {model: form} if model else {name: form for name in decoders if name not in parsers}
    return parsers


def _announce(runtime: Runtime, url: str, *, as_json: bool) -> None:
    models = runtime.models()
    if as_json:
        print(json_text.dumps({"url": url, "models": [model.name for model in models]}), flush=True)
        return
    print(f"serving {runtime.name} at {url}")
    for model in models:
        names = ", ".join((model.name, *model.aliases))
        print(f"  {names}: {', '.join(model.capabilities)}, {format_bytes(model.weights_bytes)} of weights")
    print("Ctrl-C ends it", flush=True)
