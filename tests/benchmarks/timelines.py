"""What a server's engine did and when, to be laid beside a simulation: steps, copies of KV blocks and transfers.

Run as a program it serves a bundle, and writes what was done to a file when it is told to end.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from plait.compiler.target import load_target
from plait.runtime.engine import Runtime
from plait.runtime.events import (
    Action,
    Decode,
    Embed,
    Event,
    LoadBlocks,
    Prefill,
    SaveBlocks,
    StepDone,
    Transfer,
    TransferDone,
)
from plait.runtime.server.serve import serve

__all__ = ["Span", "comparison", "read_spans", "served_and_watched", "spans"]


@dataclass(frozen=True)
class Span:
    """A step, a copy or a transfer."""

    kind: str
    model: str
    begin_seconds: float
    seconds: float


def spans(seen: Iterable[tuple[float, Event | Action]]) -> Iterator[Span]:
    """Yields what was carried out, in the order of its end."""
    begun: dict[int, tuple[float, str, str]] = {}
    for at, item in seen:
        match item:
            case Prefill() | Decode() | Embed():
                begun[item.step_id] = at, f"{item.configuration.id} of {len(item.entries)}", item.model
            case SaveBlocks() | LoadBlocks():
                begun[item.step_id] = at, "save blocks" if isinstance(item, SaveBlocks) else "load blocks", item.model
            case Transfer():
                begun[item.transfer_id] = at, f"{item.source}->{item.destination}", item.model
            case StepDone(number) | TransferDone(number):
                since, kind, model = begun.pop(number)
                yield Span(kind, model, since, at - since)
            case _:
                pass


def comparison(real: Sequence[Span], simulated: Sequence[Span]) -> Iterator[str]:
    """Yields a line for each kind of step, and a heading: how many, and the mean of what one took."""
    found: defaultdict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for which, done in enumerate((real, simulated)):
        for span in done:
            found[span.kind][which].append(1000 * span.seconds)
    yield f"{'':<30} {'real':>6} {'simulated':>10}   {'real ms':>9} {'simulated ms':>13}"
    for kind, (one, other) in sorted(found.items()):
        means = (f"{fmean(each):.1f}" if each else "-" for each in (one, other))
        yield "{:<30} {:>6} {:>10}   {:>9} {:>13}".format(kind, len(one), len(other), *means)


@contextmanager
def served_and_watched(bundle: Path, target: Path, file: Path) -> Iterator[str]:
    """Serves a bundle in a process of its own; yields its URL, and leaves its `Span`s in a file."""
    command = [sys.executable, __file__, str(bundle), str(target), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def read_spans(file: Path) -> list[Span]:
    """Returns what `served_and_watched` has left; times are those of the monotonic clock."""
    return [Span(**each) for each in json.loads(file.read_text())]


def _main(bundle: str, target: str, file: str) -> None:
    seen: list[tuple[float, Event | Action]] = []
    with Runtime(Path(bundle), target=load_target(target)) as runtime:
        runtime.watch(lambda seconds, item: seen.append((seconds, item)))
        serve(runtime, port=0, announce=lambda url: print(json.dumps(url), flush=True))
    Path(file).write_text(json.dumps([asdict(each) for each in spans(seen)]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
