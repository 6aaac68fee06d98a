"""`plait bench serve`: load on a server."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from ..errors import ConfigurationError
from .interrupts import exit_code
from .options import HbmBytes, Json
from .output import note, print_facts, print_json, print_tables, progress_bars

if TYPE_CHECKING:
    import httpx

    from ..runtime.bench.arrivals import Arrival, Mix
    from ..runtime.bench.client import Endpoint, Reply
    from ..runtime.bench.load import Load, Run
    from ..runtime.bench.summary import Summary

__all__ = ["serve"]

_DEFAULT_REQUESTS = 100
_WARM_UP_TOKENS = 2

_Server: TypeAlias = Annotated[
    str, typer.Argument(metavar="URL|BUNDLE", help="A server, or a bundle that is served for the time of the run.")
]
_Models: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="To be asked; several in turn. The server's first by default."),
]
_Concurrency: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Closed loop of so many clients; 1 by default.")
]
_Rate: TypeAlias = Annotated[float | None, typer.Option(metavar="R", help="Open loop: R requests a second, Poisson.")]
_Trace: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Open loop: CSV of timestamp and model, or ContextTokens, GeneratedTokens; or Mooncake's JSON lines.",
    ),
]
_Speed: TypeAlias = Annotated[float, typer.Option(metavar="X", help="Times as fast as the trace.")]
_Requests: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="How many; 100, or the whole trace, by default.")
]
_Duration: TypeAlias = Annotated[float | None, typer.Option(metavar="S", help="Seconds in which requests are sent.")]
_InputTokens: TypeAlias = Annotated[int, typer.Option(min=1, metavar="N", help="Of each prompt, random words.")]
_OutputTokens: TypeAlias = Annotated[int, typer.Option(min=1, metavar="N", help="Of each answer, at most.")]
_Scale: TypeAlias = Annotated[float, typer.Option(metavar="X", help="Times these lengths, or the trace's.")]
_Endpoint: TypeAlias = Annotated[Literal["chat", "completions"], typer.Option(help="What is asked.")]
_Temperature: TypeAlias = Annotated[float | None, typer.Option(min=0, metavar="T", help="The server's own by default.")]
_IgnoreEos: TypeAlias = Annotated[
    bool, typer.Option("--ignore-eos", help="Ask for answers of full length; not every server knows how.")
]
_NoUsage: TypeAlias = Annotated[
    bool, typer.Option("--no-usage", help="Don't ask for token counts: a chunk of the stream is a token.")
]
_Slo: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=S", help="Bound on ttft, tpot or e2e in seconds; may be given several times."),
]
_Seed: TypeAlias = Annotated[int, typer.Option(metavar="S", help="Of the arrivals; prompts are fresh in every run.")]
_WarmUp: TypeAlias = Annotated[int, typer.Option(min=0, metavar="N", help="Requests a model that don't count.")]
_Timeout: TypeAlias = Annotated[float, typer.Option(metavar="S", help="Seconds after which a request has failed.")]
_ApiKey: TypeAlias = Annotated[str | None, typer.Option(metavar="KEY", envvar="OPENAI_API_KEY", help="Of the server.")]


def serve(
    server: _Server,
    model: _Models = None,
    concurrency: _Concurrency = None,
    rate: _Rate = None,
    trace: _Trace = None,
    speed: _Speed = 1.0,
    requests: _Requests = None,
    duration: _Duration = None,
    input_tokens: _InputTokens = 128,
    output_tokens: _OutputTokens = 64,
    scale: _Scale = 1.0,
    endpoint: _Endpoint = "chat",
    temperature: _Temperature = None,
    ignore_eos: _IgnoreEos = False,
    no_usage: _NoUsage = False,
    slo: _Slo = None,
    seed: _Seed = 0,
    warm_up: _WarmUp = 1,
    timeout: _Timeout = 600.0,
    api_key: _ApiKey = None,
    hbm: HbmBytes = None,
    json: Json = False,
) -> None:
    """Put load on any OpenAI-compatible server, streamed, and say how it bore it.

    TTFT is until the first token, TPOT the time per token after it, ITL the gaps between chunks, E2E until the end.
    Failures are counted by kind, and the run goes on; with --slo they keep no bound. Goodput is the requests a second
    that keep all bounds, with the 95 % interval of Wilson. Ctrl-C prints what there is. Exit code 1: no answer at all.

    \b
    plait bench serve agent.plait --model chat --concurrency 8 --requests 64
    plait bench serve http://127.0.0.1:8000 --rate 2 --duration 60 --slo ttft=0.5 --slo tpot=0.05 --json
    plait bench serve http://127.0.0.1:8000 --trace azure.csv --speed 0.5 --scale 0.25 --requests 200
    plait bench serve http://127.0.0.1:8000 --trace arrivals.csv --speed 600 --model a --model b
    """
    from ..runtime.bench.client import Endpoint, connect
    from ..runtime.bench.load import Load
    from ..runtime.bench.measures import parse_bound
    from ..runtime.bench.summary import summarize

    _check(concurrency, trace, rate=rate, duration=duration, speed=speed, scale=scale, timeout=timeout)
    bounds = [parse_bound(text) for text in slo or ()]
    if hbm is not None and _is_url(server):
        raise ConfigurationError("--hbm is for a bundle that is served here; the server at a URL has its own")
    if requests is None and duration is None and trace is None:
        requests = _DEFAULT_REQUESTS
    asked = Endpoint(
        endpoint,
        temperature=temperature,
        asks_usage=not no_usage,
        ignores_eos=ignore_eos,
        timeout_seconds=timeout,
    )

    def loads(models: Sequence[str]) -> Load:
        from ..runtime.bench.arrivals import Mix

        mix = Mix(models, input_tokens, output_tokens, scale)
        arrivals = _arrivals(mix, rate=rate, trace=trace, speed=speed, seed=seed)
        clients = (concurrency or 1) if rate is None and trace is None else None
        return Load(arrivals, clients, requests, duration)

    loads(["any"])  # a trace that cannot be read should not be found out after loading
    with _at(server, hbm) as url, progress_bars() as bars:
        total = requests or 0
        run, was_interrupted = asyncio.run(
            _measure(
                connect(url, asked, api_key),
                asked,
                model,
                loads,
                num_warm_up=warm_up,
                progress=lambda done: bars.update("requests", done, max(total, done)),
            )
        )
    summary = summarize(run, bounds)
    _print(summary, url, endpoint, was_interrupted=was_interrupted, as_json=json)
    if was_interrupted:
        raise typer.Exit(exit_code(signal.SIGINT))
    if summary.num_answered == 0:
        note("no request was answered")
        raise typer.Exit(1)


def _print(summary: Summary, url: str, endpoint: str, *, was_interrupted: bool, as_json: bool) -> None:
    if as_json:
        print_json({"url": url, "endpoint": endpoint, "was_interrupted": was_interrupted, **summary.to_json()})
        return
    print_facts([("server", f"{url}, {endpoint}"), *summary.facts()])
    print()
    print_tables(summary.tables())


def _check(concurrency: int | None, trace: Path | None, *, rate: float | None, **positive: float | None) -> None:
    if sum(given is not None for given in (concurrency, rate, trace)) > 1:
        raise ConfigurationError("--concurrency, --rate and --trace exclude each other; give one of them")
    for name, value in {"rate": rate, **positive}.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigurationError(f"--{name} is {value:g}: it must be above 0")


def _arrivals(
    mix: Mix, *, rate: float | None, trace: Path | None, speed: float, seed: int
) -> Sequence[Arrival] | Iterator[Arrival]:
    from ..runtime.bench.arrivals import closed_loop, poisson, read_trace

    if trace is not None:
        return read_trace(trace, mix, speed=speed)
    return closed_loop(mix) if rate is None else poisson(mix, rate, seed=seed)


def _is_url(server: str) -> bool:
    return server.startswith(("http://", "https://"))


@contextmanager
def _at(server: str, hbm: str | None) -> Iterator[str]:
    """Yields the URL of a server, or of a child process that serves a bundle."""
    if not _is_url(server):
        from .bench_child import served

        with served(Path(server), [] if hbm is None else ["--hbm", hbm]) as url:
            yield url
        return
    import httpx

    try:
        has_host = bool(httpx.URL(server).host)
    except httpx.InvalidURL:
        has_host = False
    if not has_host:
        raise ConfigurationError(f"{server!r} is no URL of a server; write e.g. http://127.0.0.1:8000")
    yield server.rstrip("/").removesuffix("/v1")


async def _measure(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    models: Sequence[str] | None,
    loads: Callable[[Sequence[str]], Load],
    *,
    num_warm_up: int,
    progress: Callable[[int], None],
) -> tuple[Run, bool]:
    """Runs a load; Ctrl-C ends it.

    Returns:
        What came of it, and whether it was interrupted.
    """
    from ..runtime.bench.arrivals import Arrival
    from ..runtime.bench.client import ask, first_model
    from ..runtime.bench.load import Load, run_load
    from ..runtime.bench.prompts import prompt_of

    generator = random.Random(secrets.randbits(64))
    stop = asyncio.Event()
    async with client as http:

        async def send(arrival: Arrival) -> Reply:
            return await ask(http, endpoint, arrival.model, prompt_of(arrival, generator), arrival.output_tokens)

        with _ctrl_c_sets(stop):
            asked = models or [await first_model(http, endpoint)]
            warm_up = [Arrival(0.0, name, 1, _WARM_UP_TOKENS) for name in dict.fromkeys(asked)] * num_warm_up
            await run_load(Load(warm_up, concurrency=1), send, stop=stop)
            run = await run_load(loads(asked), send, stop=stop, progress=progress)
            return run, stop.is_set()


@contextmanager
def _ctrl_c_sets(stop: asyncio.Event) -> Iterator[None]:
    """Makes SIGINT set an event, unless it is ignored, as in a background job of a script."""
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None):
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
