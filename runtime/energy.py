"""The energy of steps, measured where this machine has counters, modelled where its target says what it draws.

Comes in: a step about to run, and how long it took. Goes out: the joules of each of its requests, shared by the tokens
that it computed for them. Idling between steps belongs to nobody. What is measured is a package's or a GPU's counter
over the time of the step, whatever else runs there; what is modelled is the devices' peak power for that time, as
simulations reckon it.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from ..compiler.target import Target
from .events import Step
from .request import JoulesSource

__all__ = ["EnergyMeter", "energy_meter"]

_POWERCAP = Path("/sys/class/powercap")
_PACKAGES = "intel-rapl:[0-9]*"

JouleCounter = Callable[[], float]  # joules since some moment


class EnergyMeter:
    """Says what steps take.

    Args:
        watts: Of all devices while a step computes; None where a counter is read.
        counter: Joules of this machine so far.
    """

    def __init__(self, *, watts: float | None = None, counter: JouleCounter | None = None) -> None:
        self.source: JoulesSource = "modelled" if counter is None else "measured"
        self._watts = watts or 0.0
        self._counter = counter
        self._begin = 0.0

    def begin(self) -> None:
        """Begins a step."""
        if self._counter is not None:
            self._begin = self._counter()

    def end(self, step: Step, seconds: float) -> dict[int, float]:
        """Returns the joules of each request in the step that has ended, after so many seconds."""
        joules = self._watts * seconds if self._counter is None else self._counter() - self._begin
        tokens = Counter[int]()
        for entry in step.entries:
            tokens[entry.request_id] += len(entry.tokens)
        total = tokens.total()
        return {request_id: joules * count / total for request_id, count in tokens.items()}


def energy_meter(target: Target, num_devices: int, *, powercap: Path = _POWERCAP) -> EnergyMeter | None:
    """Returns what measures, or else models, the energy of this machine; None if it can be neither.

    Args:
        target: What this machine is.
        num_devices: Of it that compute.
        powercap: Where Linux has the counters of CPU packages.
    """
    counter = _gpu_counter(num_devices) if jax.default_backend() == "gpu" else _package_counter(powercap)
    if counter is not None:
        return EnergyMeter(counter=counter)
    return None if target.power is None else EnergyMeter(watts=target.power.peak_watts * num_devices)


def _package_counter(powercap: Path) -> JouleCounter | None:
    """Returns a counter of all CPU packages, by RAPL; None where it can't be read, e.g. by others than root."""
    packages = [path for path in sorted(powercap.glob(_PACKAGES)) if path.name.count(":") == 1]
    try:
        counters = [_Wrapping(path / "energy_uj", int((path / "max_energy_range_uj").read_text())) for path in packages]
        for counter in counters:
            counter.read()
    except (OSError, ValueError):
        return None
    return (lambda: sum(counter.read() for counter in counters) / 1e6) if counters else None


class _Wrapping:
    """A counter in a file that starts over at its range."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._last: int | None = None
        self._total = 0

    def read(self) -> int:
        """Returns how far it has come since the first reading."""
        now = int(self._path.read_text())
        if self._last is not None:
            self._total += (now - self._last) % (self._limit + 1)
        self._last = now
        return self._total


def _gpu_counter(num_devices: int) -> JouleCounter | None:
    """Returns a counter of the first GPUs, by NVML; None without pynvml, a driver, or a GPU that counts."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handles: Sequence[object] = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(num_devices)]

        def read() -> float:
            return sum(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1e3

        read()
    except Exception:  # NVML raises a class of its own for each way to be missing
        return None
    return read
