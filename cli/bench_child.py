"""`plait serve` in a child process, for as long as a benchmark takes.

A process of its own, as a server has: load and engine then share the machine, and not one interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ConfigurationError

__all__ = ["served"]

_STOP_SECONDS = 20  # that running answers get to end


@contextmanager
def served(bundle: Path, options: Sequence[str] = ()) -> Iterator[str]:
    """Serves a bundle on a free loopback port; yields its URL.

    Args:
        bundle: What `plait bundle` made.
        options: Further options of `plait serve`.

    Raises:
        ConfigurationError: if it cannot be served, with what `plait serve` says of it.
    """
    command = [sys.executable, "-c", f"from {__package__}.main import run; run()", "serve", str(bundle)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--json", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the benchmark, which ends the server afterwards
        )
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            if not ready:
                process.wait()
                log.seek(0)
                raise ConfigurationError(_complaint(log.read().decode(errors="replace"), bundle))
            yield json.loads(ready)["url"]
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    finally:  # also after a second Ctrl-C; nothing happens to one that has ended
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _complaint(log: str, bundle: Path) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1].removeprefix("plait: ") if lines else f"{bundle} cannot be served; try `plait serve {bundle}`"
