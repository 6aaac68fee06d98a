"""What is measured of the tiers' use, against what the plan says, with real arrays."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest

from plait.compiler.bundle.reader import open_bundle
from plait.compiler.target import Link
from plait.runtime.clock import MonotonicClock
from plait.runtime.events import Evict, TierName, Transfer
from plait.runtime.executor import JaxExecutor
from plait.runtime.memory_use import MemoryUse, TierUse
from plait.runtime.metrics import Metrics
from plait.runtime.residency import ResidencyManager

CHUNK = 64 << 10  # the tiny decoder has about eight


class Machine:
    """An executor and the books of its tiers. Only the first look may read all arrays: others come too soon."""

    def __init__(self, path: Path) -> None:
        bundle = open_bundle(path)
        self.manifest = bundle.manifest
        self.residency = ResidencyManager(self.manifest.models, self.manifest.budget, tiered=True)
        gc.collect()  # what other tests have left would be gone at some later look
        links = {name: Link(1e9, pace=True) for name in self.manifest.target.links}  # arrays are made chunk by chunk
        target = replace(self.manifest.target, links=links)
        self.executor = JaxExecutor(bundle, target, hbm_bytes=self.manifest.budget.hbm)
        self.memory = MemoryUse(self.executor, self.residency, MonotonicClock(), Metrics())

    def move(self, model: str, source: TierName, destination: TierName, *, looks_at: int = 0) -> None:
        """Moves a model; looks at the use of the tiers when so many chunks have arrived."""
        num_bytes = self.residency.begin(model, destination)
        transfer, chunks = Transfer(1, model, source, destination, num_bytes, CHUNK), 0

        def progress(_: int) -> None:
            nonlocal chunks
            chunks += 1
            if chunks == looks_at:
                self.memory.observe()

        moved = self.executor.copy(transfer, progress)
        assert chunks >= looks_at
        self.executor.arrived(transfer, moved)
        self.residency.finish(model, 0.0)

    def hbm(self) -> TierUse:
        return next(use for use in self.memory.tiers if use.tier == "hbm")


@pytest.mark.parametrize("looks_at", [1, 4, 7])
def test_what_is_looked_at_on_its_way_counts_once(tiny_bundle: Path, looks_at: int) -> None:
    machine = Machine(tiny_bundle)
    try:
        machine.move("chat", "disk", "ddr")
        machine.move("chat", "ddr", "hbm", looks_at=looks_at)
        machine.memory.observe()
        use = machine.hbm()
        assert use.measured_bytes == use.predicted_bytes == machine.manifest.model("chat").resident_bytes
        machine.executor.evict(Evict("chat", "hbm"))
        machine.residency.evict("chat", "hbm")
        machine.move("other", "disk", "ddr")
        machine.move("other", "ddr", "hbm", looks_at=looks_at)
        machine.memory.observe()
        assert machine.hbm().measured_bytes == use.measured_bytes
    finally:
        machine.executor.release()
