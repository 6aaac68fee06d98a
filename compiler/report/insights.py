"""What a plan says, in plain language: each sentence has numbers that are computed, and says from what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..cost import peak_flops_per_s
from ..fuse.sections import Bound
from ..implementations import implementations_for
from ..schedule import Schedule
from ..text import format_bytes, format_seconds
from .inspection import Inspection
from .variants import Variant

__all__ = ["BOUND_NAMES", "Insight", "Topic", "insights", "share_text", "times"]

Topic: TypeAlias = Literal["time", "what if", "memory", "network", "chip", "energy", "optimality"]
_SAME = 0.01  # changes below are told as none
_ALL = 0.9995  # shares above are told as all


@dataclass(frozen=True)
class Insight:
    """One sentence about a plan."""

    topic: Topic
    text: str
    basis: str  # what its numbers are computed from


def insights(seen: Inspection) -> tuple[Insight, ...]:
    """Returns what a plan says, what matters most first."""
    return (
        *_runs(seen),
        *_bounds(seen),
        *_compute(seen),
        *(insight for variant in seen.variants for insight in _variant(seen, variant)),
        *_network(seen),
        *_memory(seen),
        *_chip(seen),
        *_energy(seen),
        *_optimality(seen),
    )


BOUND_NAMES: Mapping[Bound, str] = {
    "compute": "compute",
    "sram": "SRAM",
    "hbm": "HBM",
    "ddr": "DDR",
    "network": "collectives",
    "launch": "launching",
}


def _runs(seen: Inspection) -> Iterator[Insight]:
    """Says of a target that runs that its kernels are a model only."""
    target = seen.compilation.target
    if implementations_for(target):
        yield Insight(
            "time",
            f"{target.name} runs a step as one program: these kernels are those of a device that launches each.",
            "the target, for which programs are lowered",
        )


def _bounds(seen: Inspection) -> Iterator[Insight]:
    timed = seen.schedule
    bound, seconds = max(timed.bound_seconds.items(), key=lambda item: item[1])
    share, whole = seconds / timed.seconds, format_seconds(timed.seconds)
    of_step = f"{share_text(share)} of a step ({format_seconds(seconds)} of {whole})"
    if share > _ALL:
        of_step = f"Practically all of a step ({whole})"
    yield Insight(
        "time",
        f"{of_step} is in kernels bound by {BOUND_NAMES[bound]}.",
        "the schedule: time of each kernel by what bounds it",
    )
    section = seen.by_time[0]
    count = seen.sections.counts[section.id]
    margin = f"; what bounds it takes {section.margin:.1f} times as long as what comes next" * (section.margin < 1000)
    launched = f"launched {count} times, is" if count > 1 else "launched once, is"
    yield Insight(
        "time",
        f"One kernel, section {section.id} ({seen.title(section)}), {launched} {seen.share(section):.1%} of all "
        f"kernels' time{margin}.",
        "sections: seconds of one launch, times its launches",
    )
    if timed.host_seconds > _SAME * timed.seconds:
        yield Insight(
            "time",
            f"The host takes {format_seconds(timed.host_seconds)} of a step ({timed.host_seconds / timed.seconds:.0%}) "
            f"for the sequences beyond the first.",
            "the target's sequence_seconds, times the batch less one",
        )
    if timed.append_seconds > _SAME * timed.seconds:
        yield Insight(
            "time",
            f"Keys and values that join caches take {format_seconds(timed.append_seconds)} of a step "
            f"({timed.append_seconds / timed.seconds:.0%}), those of all sequences but one.",
            "the target's append_seconds, of each head's key and value in each layer that a device adds to its caches",
        )


def _compute(seen: Inspection) -> Iterator[Insight]:
    timed = seen.schedule
    hbm = f"HBM is at {share_text(timed.busy_memory)} of what it sustains"
    text = f"Compute is idle {share_text(1 - timed.busy_compute)} of a step; {hbm}"
    basis = "FLOPs and bytes of a step, at the target's peak and sustained bandwidth"
    larger = next((each for each in seen.variants if each.kind == "batch" and each.schedule is not None), None)
    if larger is not None and larger.schedule is not None:
        batch = seen.compilation.configuration.batch
        slower = larger.schedule.seconds / timed.seconds
        gained = (larger.batch / larger.schedule.seconds) / (batch / timed.seconds)
        text += (
            f": batch {larger.batch} instead of {batch} costs {slower:.2g} times the time for {larger.batch // batch} "
            f"times the tokens, {gained:.2g} times the tokens a second"
        )
        basis = f"this plan, and one made for batch {larger.batch} on the same mesh"
    yield Insight("time", f"{text}.", basis)


def _variant(seen: Inspection, variant: Variant) -> Iterator[Insight]:
    if variant.kind == "batch" and variant.schedule is not None:
        return  # told with what is idle
    if variant.schedule is None:
        yield Insight("what if", f"With {variant.what} there is no plan: {variant.why}.", "a plan that was tried")
        return
    other = variant.schedule
    telling = {"launches": _launches, "unfused": _unfused, "devices": _devices, "batch": _devices}
    yield Insight("what if", telling[variant.kind](seen, variant, other), _basis(variant))


def _basis(variant: Variant) -> str:
    if variant.kind == "devices":
        return f"a plan made for {variant.what}"
    return "the same partition, fused again"


def _launches(seen: Inspection, variant: Variant, other: Schedule) -> str:
    return (
        f"Launches by the host would make a step take {times(other.seconds, seen.schedule.seconds)} "
        f"({format_seconds(other.seconds)}, {other.num_launches} launches)."
    )


def _unfused(seen: Inspection, variant: Variant, other: Schedule) -> str:
    return (
        f"Without fusion, an operation a kernel, a step would take {times(other.seconds, seen.schedule.seconds)} "
        f"({format_seconds(other.seconds)}, {other.num_launches} launches instead of {seen.schedule.num_launches})."
    )


def _devices(seen: Inspection, variant: Variant, other: Schedule) -> str:
    timed = seen.schedule
    stages = f"{other.num_stages} stages of " if other.num_stages > 1 else ""
    rate = timed.seconds * seen.partition.num_devices / (other.seconds * variant.num_devices)
    return (
        f"With {variant.num_devices} devices instead of {seen.partition.num_devices} ({stages}{other.mesh}) a step "
        f"would take {format_seconds(other.seconds)} instead of {format_seconds(timed.seconds)}; each device would "
        f"then do {rate:.2f} times the work a second."
    )


def share_text(share: float) -> str:
    """Returns a share in percent, with a digit more where it is close to nothing or to all: `99.7%`."""
    return f"{share:.0%}" if 0.05 < share < 0.95 or share in (0.0, 1.0) else f"{share:.1%}"


def times(seconds: float, before: float) -> str:
    """Returns how much longer something takes, in words: `5.8 times as long`."""
    ratio = seconds / before
    if abs(ratio - 1) < _SAME:
        return "as long"
    return f"{ratio:.2g} times as long" if ratio < 10 else f"{ratio:.0f} times as long"


def _network(seen: Inspection) -> Iterator[Insight]:
    timed = seen.schedule
    sent = timed.network_seconds + timed.handover_seconds
    if not seen.reshards or sent == 0:
        yield Insight("network", "Nothing is sent between devices.", "the sharding's collectives")
        return
    worst = seen.reshards[0]
    kinds = " and ".join(kind.replace("_", "-") for kind in worst.kinds)
    yield Insight(
        "network",
        f"Collectives take {format_seconds(sent)}, {sent / timed.seconds:.0%} of a step; the most expensive is the "
        f"{kinds} of {worst.value} for {worst.reader} ({worst.source or 'no line'}), {worst.count} times "
        f"{format_bytes(worst.bytes)}, {format_seconds(worst.seconds)} in all.",
        "reshards of the sharding, at the network's latency and bandwidth",
    )
    remedy = worst.remedy
    if remedy is not None and remedy.cost is not None and remedy.pins:
        pins = " ".join(f"--pin '{pattern}={axes}'" for pattern, axes in remedy.pins)
        change = remedy.cost - seen.partition.cost
        is_same = abs(change) < 1e-6 * seen.partition.cost
        more = "costs the same" if is_same else f"costs {format_seconds(abs(change))} more"
        yield Insight(
            "network",
            f"{pins} would remove it, and the best plan then {more}.",
            "the sharding problem, solved again without it",
        )


def _memory(seen: Inspection) -> Iterator[Insight]:
    plan = seen.partition
    fullest = max(plan.stages, key=lambda stage: stage.footprint.total).footprint
    limit = plan.budget_bytes or seen.compilation.target.tiers["hbm"].usable_bytes
    text = f"The fullest device holds {format_bytes(fullest.total)} of {format_bytes(limit)}"
    basis = "live ranges of the fullest device"
    shapes = seen.compilation.configuration
    left = limit - fullest.total
    if fullest.cache and left > 0:
        tokens = left * shapes.context * shapes.batch / fullest.cache
        text += f"; what is left would be KV cache for about {tokens:,.0f} more tokens"
        basis += "; caches per token as they are divided now"
    yield Insight("memory", f"{text}.", basis)


def _chip(seen: Inspection) -> Iterator[Insight]:
    busiest = seen.placement.bottleneck
    if busiest is None:
        return
    slows = "more than it carries, which is not in that section's time" if busiest.max_utilisation > 1 else None
    yield Insight(
        "chip",
        f"The busiest link between tiles is at {busiest.max_utilisation:.0%} while section {busiest.section} streams "
        f"({busiest.mean_utilisation:.1%} on average over all links), {slows or 'so routing slows nothing'}.",
        "routes of the placement, at the link's bytes a cycle",
    )


def _energy(seen: Inspection) -> Iterator[Insight]:
    timed, power = seen.schedule, seen.compilation.target.power
    if timed.joules is None or power is None or not timed.joules:
        return
    idle = power.idle_watts * timed.seconds * timed.num_devices / timed.joules
    yield Insight(
        "energy",
        f"A step takes {timed.joules:.3g} J on {timed.num_devices} devices, {timed.joules / seen.num_tokens:.3g} J a "
        f"new token; {idle:.0%} of it would be drawn by idle devices too.",
        "the target's idle and peak watts",
    )


def _optimality(seen: Inspection) -> Iterator[Insight]:
    plan, timed = seen.partition, seen.schedule
    found = "proven best" if plan.gap < 1e-6 else f"at most {plan.gap:.1%} from the best"
    yield Insight(
        "optimality",
        f"The layout is {found} on its mesh; combinations of meshes and stages that were tried: {len(plan.tried)}.",
        "lower bound of the sharding problem",
    )
    tier = seen.compilation.target.tiers["hbm"]
    flops = timed.flops / peak_flops_per_s(seen.compilation.target, seen.compilation.dtype)
    least = max(timed.hbm_bytes / tier.bandwidth_bytes_per_s, flops)
    what = "a device's FLOPs at the peak" if least == flops else "a device's HBM traffic at the peak bandwidth"
    yield Insight(
        "optimality",
        f"A step takes {timed.seconds / least:.2f} times as long as {what} alone ({format_seconds(least)}).",
        "bytes and FLOPs of all launches, at the target's peaks",
    )
