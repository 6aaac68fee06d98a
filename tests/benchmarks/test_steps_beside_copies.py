"""How much a copy from ddr to hbm slows decode steps down that go on meanwhile, by the size of its chunks.

In turns, so that whatever else the machine does hits all alike: steps alone, then beside copies in chunks of each size.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from plait.compiler.bundle.reader import Bundle
from plait.runtime.events import CHUNK_BYTES, Decode, Sampling, SequenceEntry, TierName, Transfer
from plait.runtime.executor import JaxExecutor

CHUNKS = {"alone": 0, "16 MiB": CHUNK_BYTES, "4 MiB": 4 << 20, "1 MiB": 1 << 20}
NUM_ROUNDS, NUM_STEPS = 12, 12
GREEDY = Sampling(0.0, 1.0, 0)


class Steps:
    """A hot decoder, and an encoder that is copied again and again."""

    def __init__(self, bundle: Bundle) -> None:
        self.executor = JaxExecutor(bundle, bundle.manifest.target, hbm_bytes=bundle.manifest.budget.hbm)
        self.entries = {entry.name: entry for entry in self.executor.load_programs(lambda done, total: None)}
        programs = [program.configuration for program in self.entries["chat"].programs]
        self.shapes = next(shapes for shapes in programs if (shapes.phase, shapes.batch) == ("decode", 1))
        moves: list[tuple[str, TierName, TierName]] = [
            ("chat", "disk", "ddr"),
            ("embed", "disk", "ddr"),
            ("chat", "ddr", "hbm"),
        ]
        for name, source, destination in moves:
            transfer = self.transfer(name, source, destination, CHUNK_BYTES)
            self.executor.arrived(transfer, self.executor.copy(transfer, lambda num_bytes: None))
        self.copy_seconds: list[float] = []

    def transfer(self, model: str, source: TierName, destination: TierName, chunk_bytes: int) -> Transfer:
        return Transfer(1, model, source, destination, self.entries[model].moved_bytes, chunk_bytes)

    def seconds_of_one(self, position: int) -> float:
        entry = SequenceEntry(1, (5,), 64 + position, tuple(range(8)), GREEDY, 1)
        began = time.perf_counter()
        self.executor.run(Decode(position, "chat", self.shapes, (entry,), 1))
        return time.perf_counter() - began

    @contextmanager
    def beside_copies(self, chunk_bytes: int) -> Iterator[None]:
        """Copies the encoder all the while, with nothing else on the link; not at all in chunks of no bytes."""
        ended = threading.Event()

        def copy() -> None:
            while chunk_bytes and not ended.is_set():
                transfer = self.transfer("embed", "ddr", "hbm", chunk_bytes)
                began = time.perf_counter()
                self.executor.copy(transfer, lambda num_bytes: None).release()
                self.copy_seconds.append(time.perf_counter() - began)

        thread = threading.Thread(target=copy)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def test_a_copy_delays_a_step_by_less_than_the_copy_takes(agent_bundle: Bundle) -> None:
    steps = Steps(agent_bundle)
    seconds: dict[str, list[float]] = {name: [] for name in CHUNKS}
    for _ in range(5):
        steps.seconds_of_one(0)
    for _ in range(NUM_ROUNDS):
        for name, chunk_bytes in CHUNKS.items():
            with steps.beside_copies(chunk_bytes):
                seconds[name] += [steps.seconds_of_one(position) for position in range(NUM_STEPS)]
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    copy = statistics.median(steps.copy_seconds)
    shown = ", ".join(f"{name} {median * 1000:.1f} ms" for name, median in medians.items())
    print(f"\na decode step {shown}; a copy of {steps.entries['embed'].moved_bytes / 1e6:.0f} MB {copy * 1000:.1f} ms")
    steps.executor.release()
    assert medians["16 MiB"] - medians["alone"] < copy
