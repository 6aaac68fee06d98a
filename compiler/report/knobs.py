"""What a sweep can vary: shapes, how a step is divided and fused, and numbers of the target.

A knob turns a text, as `--vary NAME=TEXT` has it, into a change of a `Trial`. Names of targets' numbers are short ones
of what `plait targets show` lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeAlias, cast

from ...errors import ConfigurationError, PlaitError
from ..bundle.spec import parse_bytes
from ..fuse import Mode
from ..fuse.sections import Orchestration
from ..mapping import Fusion
from ..mesh import Mesh
from ..partition.pins import parse_mesh
from ..subject import Weights
from ..target import Target, load_target

__all__ = ["KNOBS", "Knob", "Trial", "parse_vary", "turned"]

_WEIGHTS: tuple[str, ...] = ("stored", "dense", "fp8", "mxfp4", "q8_0", "q4_0", "int8")


@dataclass(frozen=True)
class Trial:
    """A model's step on a machine, before it is planned."""

    target: Target
    num_devices: int | None  # None: all of the target's
    batch: int
    sequence: int  # tokens of context
    phase: Literal["decode", "prefill"] = "decode"
    weights: Weights = "stored"
    mesh: Mesh | None = None  # None: the best
    num_stages: int | None = None  # likewise
    fusion: Fusion = field(default_factory=Fusion)


Turn: TypeAlias = Callable[[Trial, str], Trial]


@dataclass(frozen=True)
class Knob:
    """One thing that can be varied."""

    what: str
    turn: Turn
    is_first: bool = False  # before those that change numbers of the target


def _count(text: str) -> int:
    value = _amount(text)
    if value < 1 or value != int(value):
        raise ValueError("a whole number from 1 on is needed")
    return int(value)


def _amount(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError("a number above 0 is needed")
    return value


def _share(text: str) -> float:
    value = _amount(text)
    if value > 1:
        raise ValueError("a share is at most 1")
    return value


def _choice(text: str, known: tuple[str, ...]) -> str:
    if text not in known:
        raise ValueError(f"it is one of {', '.join(known)}")
    return text


def _tier(trial: Trial, **change: float) -> Trial:
    tiers = trial.target.tiers
    return _target(trial, tiers={**tiers, "hbm": replace(tiers["hbm"], **change)})


def _target(trial: Trial, **change: object) -> Trial:
    return replace(trial, target=replace(trial.target, **change))  # type: ignore[arg-type]


def _network(trial: Trial, **change: float) -> Trial:
    return _target(trial, network=replace(trial.target.network, **change, collectives={}))


def _compute(trial: Trial, **change: float) -> Trial:
    return _target(trial, compute=replace(trial.target.compute, **change))


def _flops(trial: Trial, text: str) -> Trial:
    """Sets the peak in the widest 16-bit type, and all others in proportion."""
    peaks = trial.target.compute.flops_per_s
    factor = _amount(text) / peaks.get("bf16", max(peaks.values()))
    return _target(
        trial,
        compute=replace(trial.target.compute, flops_per_s={name: peak * factor for name, peak in peaks.items()}),
    )


def _sram(trial: Trial, text: str) -> Trial:
    chip = trial.target.chip
    if chip is None:
        raise ValueError(f"{trial.target.name} has no chip with SRAM of its own")
    return _target(trial, chip=replace(chip, pmu_bytes=max(1, parse_bytes(text) // chip.num_pmus)))


def _clock(trial: Trial, text: str) -> Trial:
    chip = trial.target.chip
    if chip is None:
        raise ValueError(f"{trial.target.name} has no chip with a clock")
    return _target(trial, chip=replace(chip, clock_hz=_amount(text)))


def _mode(trial: Trial, text: str) -> Trial:
    return replace(trial, fusion=replace(trial.fusion, mode=cast(Mode, _choice(text, ("o0", "o3")))))


def _launches(trial: Trial, text: str) -> Trial:
    who = cast(Orchestration, _choice(text, ("hardware", "software")))
    return replace(trial, fusion=replace(trial.fusion, orchestration=who))


KNOBS: Mapping[str, Knob] = MappingProxyType(
    {
        "target": Knob("a target's name or file", lambda t, x: replace(t, target=load_target(x)), is_first=True),
        "sockets": Knob("devices in use", lambda t, x: replace(t, num_devices=_count(x))),
        "batch": Knob("sequences at once", lambda t, x: replace(t, batch=_count(x))),
        "sequence": Knob("tokens of context", lambda t, x: replace(t, sequence=_count(x))),
        "weights": Knob("form of weights", lambda t, x: replace(t, weights=cast(Weights, _choice(x, _WEIGHTS)))),
        "mesh": Knob("of a stage, as 4x4", lambda t, x: replace(t, mesh=parse_mesh(x))),
        "stages": Knob("pipeline stages", lambda t, x: replace(t, num_stages=_count(x))),
        "mode": Knob("o0 or o3", _mode),
        "launches": Knob("hardware or software", _launches),
        "flops": Knob("BF16 peak of a device, FLOP/s", _flops),
        "compute_efficiency": Knob("share of the peak", lambda t, x: _compute(t, efficiency=_share(x))),
        "launch_seconds": Knob("of a launch", lambda t, x: _compute(t, launch_seconds=_amount(x))),
        "hbm_bandwidth": Knob("bytes/s of a device", lambda t, x: _tier(t, bandwidth_bytes_per_s=_amount(x))),
        "hbm_capacity": Knob("bytes of a device", lambda t, x: _tier(t, capacity_bytes=parse_bytes(x))),
        "hbm_efficiency": Knob("share of the bandwidth", lambda t, x: _tier(t, efficiency=_share(x))),
        "sram": Knob("bytes of a chip", _sram),
        "clock": Knob("of the chip, Hz", _clock),
        "network_bandwidth": Knob("bytes/s of a device", lambda t, x: _network(t, bandwidth_bytes_per_s=_amount(x))),
        "network_latency": Knob("seconds of a step", lambda t, x: _network(t, latency_seconds=_amount(x))),
    }
)


def parse_vary(texts: list[str]) -> dict[str, tuple[str, ...]]:
    """Returns what is varied, each with its values, as `NAME=VALUE,VALUE` has them.

    Raises:
        ConfigurationError: if a name is not known, is there twice, or has no values.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, is_given, values = text.partition("=")
        name = {"devices": "sockets", "context": "sequence"}.get(name, name)
        if name not in KNOBS:
            raise ConfigurationError(f"--vary {text!r}: {name!r} cannot be varied; known: {', '.join(KNOBS)}")
        parts = tuple(dict.fromkeys(part.strip() for part in values.split(",") if part.strip()))
        if not is_given or not parts:
            raise ConfigurationError(f"--vary {text!r} has no values: write {name}=VALUE,VALUE")
        if name in found:
            raise ConfigurationError(f"--vary {name} is given twice; write all its values after one =")
        found[name] = parts
    return found


def turned(trial: Trial, settings: Mapping[str, str]) -> Trial:
    """Returns a trial with knobs turned, the target first.

    Raises:
        ConfigurationError: if a value is none of its knob.
    """
    for name, text in sorted(settings.items(), key=lambda item: not KNOBS[item[0]].is_first):
        try:
            trial = KNOBS[name].turn(trial, text)
        except (ValueError, OverflowError) as error:
            raise ConfigurationError(f"--vary {name}={text}: {error}; it is {KNOBS[name].what}") from None
        except PlaitError as error:
            raise ConfigurationError(f"--vary {name}={text}: {error}") from None
    return trial
