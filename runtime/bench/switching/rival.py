"""Servers that hold one model each: a switch ends the process and starts another, as is usual.

Of a rival only the command is known here, and that it is an OpenAI-compatible server. What a switch takes is counted
from the start of the process to the first token; the time to the first token of the next request is what is left of
it when the model is there.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from ....compiler.bundle.reader import open_bundle
from ....errors import ExecutionError
from ..client import Endpoint, Reply, ask, connect

__all__ = ["Rival", "RivalAnswer", "llama_cpp", "plait_serve", "transformers_serve"]

_POLL_SECONDS = 0.02
_START_SECONDS = 180.0
_STOP_SECONDS = 10.0
_END_SECONDS = 1.0
_ENDPOINT = Endpoint("chat", temperature=0, asks_usage=False, timeout_seconds=120)


@dataclass(frozen=True)
class RivalAnswer:
    """An answer of a server that was started for it."""

    ready_seconds: float  # from the start of the process until it listened
    ttft_seconds: float  # from the start of the process
    seconds: float  # from the start of the process to the end of the answer
    hot_ttft_seconds: float | None = None  # of the request after it; None: none was made


@dataclass(frozen=True)
class Rival:
    """A server that can be started with one model."""

    name: str
    command: Callable[[int, int], Sequence[str]]  # of a port and the number of a model, in the order of the cycle
    model: Callable[[int], str]  # what requests call it
    environment: tuple[tuple[str, str], ...] = ()

    def answer(self, number: int, prompt: str, num_tokens: int, *, asks_again: bool = False) -> RivalAnswer:
        """Starts the server with a model, asks it, and ends it.

        Args:
            number: Of the model.
            prompt: The user's message.
            num_tokens: Of the answer, at most.
            asks_again: Whether to ask for a token more, to know what a hot model takes.

        Raises:
            ExecutionError: if it does not start or does not answer.
        """
        began = time.perf_counter()
        with self._started(number) as url:
            ready = time.perf_counter() - began
            first = asyncio.run(self._ask(url, number, prompt, num_tokens))
            again = asyncio.run(self._ask(url, number, f"{prompt} Now.", 1)) if asks_again else None
            return RivalAnswer(
                ready,
                ready + (first.ttft_seconds or first.end_seconds),
                ready + first.end_seconds,
                None if again is None else again.ttft_seconds,
            )

    async def _ask(self, url: str, number: int, prompt: str, num_tokens: int) -> Reply:
        async with connect(url, _ENDPOINT, None) as http:
            reply = await ask(http, _ENDPOINT, self.model(number), prompt, num_tokens)
        if reply.failure is not None:
            raise ExecutionError(f"{self.name} did not answer: {reply.failure}")
        return reply

    @contextmanager
    def _started(self, number: int) -> Iterator[str]:
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                list(self.command(port, number)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **dict(self.environment)},
                start_new_session=True,
            )
            try:
                _wait_for(port, process)
                yield url
            except ExecutionError as error:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_END_SECONDS)  # a connection is lost before its process is seen to have ended
                log.seek(0)
                lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
                how = "" if process.returncode is None else f" (its process ended with {_code(process.returncode)})"
                raise ExecutionError(f"{error}{how}; its log ends: {lines[-1] if lines else 'empty'}") from None
            finally:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
                process.kill()
                process.wait()


def transformers_serve(python: str, models: Sequence[Path]) -> Rival | None:
    """Returns `transformers serve` of an interpreter; None if it has none or a model is no Hugging Face directory."""
    if not all((model / "config.json").is_file() for model in models):
        return None
    if not _runs(python, "import torch, transformers.cli.serve, fastapi, uvicorn"):
        return None
    cli = "from transformers.cli.transformers import main; main()"

    def command(port: int, number: int) -> Sequence[str]:
        model = str(models[number])
        return [python, "-c", cli, "serve", model, "--port", str(port), "--dtype", "bfloat16", "--device", "cpu"]

    offline = (("HF_HUB_OFFLINE", "1"),)
    return Rival("transformers serve, bf16", command, lambda number: str(models[number]), offline)


def llama_cpp(python: str, gguf: Path) -> Rival | None:
    """Returns llama-cpp-python's server of an interpreter, with the same file as every model; None if it has none."""
    if not _runs(python, "import llama_cpp.server.app"):
        return None

    def command(port: int, number: int) -> Sequence[str]:
        del number
        return [python, "-m", "llama_cpp.server", "--model", str(gguf), "--port", str(port), "--n_ctx", "256"]

    return Rival(f"llama-cpp-python, {gguf.stat().st_size / 1e6:.0f} MB", command, lambda number: "any")


def plait_serve(command: Sequence[str], bundle: Path) -> Rival:
    """Returns plait itself, serving a bundle of one model.

    Args:
        command: That runs plait.
        bundle: Of the model that stands for all.
    """
    name = open_bundle(bundle).manifest.models[0].name
    return Rival(
        "plait serve",
        lambda port, number: [*command, "serve", str(bundle), "--port", str(port)],
        lambda number: name,
    )


def _runs(python: str, code: str) -> bool:
    try:
        return subprocess.run([python, "-c", code], capture_output=True, timeout=120, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _code(code: int) -> str:
    """Returns how a process ended, in words."""
    return f"code {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Waits until a server answers HTTP.

    Raises:
        ExecutionError: if it ends before, or takes too long.
    """
    deadline = time.monotonic() + _START_SECONDS
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=5) as http:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ExecutionError("a server has ended")
            try:
                http.get("/v1/models")
                return
            except httpx.TransportError:
                time.sleep(_POLL_SECONDS)
    raise ExecutionError(f"a server did not listen within {_START_SECONDS:.0f} s")
