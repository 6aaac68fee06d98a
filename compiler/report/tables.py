"""An inspection as facts, tables and JSON: what `plait inspect` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from ..fuse.report import contents_of, report_sections
from ..fuse.sections import Section
from ..partition.blame import Reshard
from ..text import Table, format_bytes, format_count, format_flops, format_seconds
from .insights import insights
from .inspection import Inspection

__all__ = ["facts", "reshard_table", "tables", "tier_rows", "to_dict"]

_MOST_RESHARDS = 8


def facts(seen: Inspection) -> list[tuple[str, str]]:
    """Returns what is said first: names with values."""
    made, plan, timed = seen.compilation, seen.partition, seen.schedule
    stages = f"{len(plan.stages)} stages of " if len(plan.stages) > 1 else ""
    found = [
        ("plan", f"{seen.name} {made.dtype} on {made.target.name}"),
        ("parameters", f"{format_count(made.sizes.parameters)}, {format_count(made.sizes.active_parameters)} active"),
        ("devices", f"{plan.num_devices}: {stages}{plan.mesh}"),
        ("step", f"{format_seconds(timed.seconds)}, {timed.bound} bound, {timed.num_launches} launches"),
        ("tokens", _tokens(seen)),
        ("FLOPs", f"{format_flops(made.traced.graph.flops)} a step, {timed.busy_compute:.1%} of the peak"),
        ("HBM traffic", f"{format_bytes(timed.hbm_bytes)} a device, {timed.busy_memory:.0%} of what HBM sustains"),
        ("network", format_seconds(timed.network_seconds + timed.handover_seconds)),
    ]
    if timed.joules is not None:
        found.append(("energy", f"{timed.joules:.3g} J a step, {timed.joules / seen.num_tokens:.3g} J a new token"))
    found.append(("layout", f"{plan.status}, gap {plan.gap:.1%} to its lower bound"))
    return found


def _tokens(seen: Inspection) -> str:
    shapes, timed = seen.compilation.configuration, seen.schedule
    total = f"{seen.tokens_per_s:,.1f} tokens/s"
    if shapes.phase == "decode" and timed.seconds:
        return f"{total}, {1 / timed.seconds:,.1f} a user"
    return f"{total}, {seen.num_tokens:,} a step"


def tables(seen: Inspection) -> list[Table]:
    """Returns the tables, those about time first."""
    return [report_sections(seen.sections), _time_table(seen), _tier_table(seen), reshard_table(seen)]


def _time_table(seen: Inspection) -> Table:
    timed = seen.schedule
    rows = [
        (f"kernels bound by {bound}", format_seconds(seconds), f"{seconds / timed.seconds:.1%}")
        for bound, seconds in sorted(timed.bound_seconds.items(), key=lambda item: -item[1])
        if seconds
    ]
    for name, seconds in (
        ("hand-over between stages", timed.handover_seconds),
        ("keys and values into caches", timed.append_seconds),
        ("host", timed.host_seconds),
    ):
        if seconds:
            rows.append((name, format_seconds(seconds), f"{seconds / timed.seconds:.1%}"))
    within = f"of it collectives {format_seconds(timed.network_seconds)}" if timed.network_seconds else ""
    return Table("where the time goes", ("what ", "seconds", "share"), tuple(rows), within)


def tier_rows(seen: Inspection) -> Iterator[tuple[str, int, int, str]]:
    """Yields of each tier its name, the bytes in use on the fullest device, those that there are, and what they are."""
    target = seen.compilation.target
    if target.chip is not None:
        largest = max(seen.sections.sections, key=lambda section: section.sram_bytes)
        yield "sram", largest.sram_bytes, target.chip.sram_bytes, f"section {largest.id}, buffers of its stages"
    held = max(seen.partition.stages, key=lambda stage: stage.footprint.total).footprint
    limit = seen.partition.budget_bytes or target.tiers["hbm"].usable_bytes
    parts = {
        "parameters": held.parameters,
        "state": held.state,
        "caches": held.cache,
        "inputs": held.inputs,
        "temporaries": held.temporaries,
    }
    yield "hbm", held.total, limit, ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
    if "ddr" in target.tiers:
        spilled = max((stage.ddr_bytes for stage in seen.mapped.tiers.stages), default=0) if seen.mapped.tiers else 0
        yield "ddr", spilled, target.tiers["ddr"].usable_bytes, "spilled buffers" if spilled else "nothing is spilled"


def _tier_table(seen: Inspection) -> Table:
    rows = tuple(
        (tier, format_bytes(held), format_bytes(limit), f"{held / limit:.1%}" if limit else "", what)
        for tier, held, limit, what in tier_rows(seen)
    )
    return Table("tiers of the fullest device", ("tier ", "in use", "of", "share", "what "), rows)


def reshard_table(seen: Inspection, most: int = _MOST_RESHARDS) -> Table:
    """Returns what is sent, the most expensive first, with what would remove it where that was looked for."""
    rows = tuple(_reshard_row(seen, each) for each in seen.reshards[:most])
    left = len(seen.reshards) - len(rows)
    heads = ("sent ", "times", "what ", "for ", "bytes", "in all", "line ", "removed by ")
    note = f"and {left} more; `plait explain` has them all" if left > 0 else ""
    return Table("what is sent" if rows else "nothing is sent", heads, rows, note)


def _reshard_row(seen: Inspection, reshard: Reshard) -> tuple[str, ...]:
    return (
        " + ".join(reshard.kinds),
        str(reshard.count),
        reshard.value,
        reshard.reader,
        format_bytes(reshard.bytes),
        format_seconds(reshard.seconds),
        reshard.source or "-",
        remedy_text(seen, reshard),
    )


def remedy_text(seen: Inspection, reshard: Reshard) -> str:
    """Returns what would remove a reshard, and what the plan then costs; empty if it was not looked for."""
    remedy = reshard.remedy
    if remedy is None:
        return ""
    if remedy.cost is None:
        return "needed"
    change = remedy.cost - seen.partition.cost
    is_same = abs(change) < 1e-6 * seen.partition.cost
    more = "the same" if is_same else f"{'+' if change > 0 else '-'}{format_seconds(abs(change))}"
    pins = " and ".join(f"'{pattern}={axes}'" for pattern, axes in remedy.pins)
    return f"pin {pins} ({more})" if pins else f"another plan ({more})"


def to_dict(seen: Inspection) -> dict[str, object]:
    """Returns an inspection as JSON has it."""
    timed = seen.schedule
    return {
        "name": seen.name,
        "target": seen.compilation.target.name,
        "dtype": seen.compilation.dtype,
        "configuration": asdict(seen.compilation.configuration),
        "num_devices": seen.partition.num_devices,
        "mesh": seen.partition.mesh.shape,
        "num_stages": len(seen.partition.stages),
        "tokens_per_s": seen.tokens_per_s,
        "schedule": timed.to_dict(),
        "sections": [_section_dict(seen, section) for section in seen.sections.sections],
        "tiers": {
            tier: {"bytes": held, "limit_bytes": limit, "what": what} for tier, held, limit, what in tier_rows(seen)
        },
        "placement": {
            "cost": seen.placement.cost,
            "lower_bound": seen.placement.lower_bound,
            "max_utilisation": seen.placement.max_utilisation,
        },
        "partition": {
            "cost": seen.partition.cost,
            "lower_bound": seen.partition.lower_bound,
            "status": seen.partition.status,
            "device_bytes": seen.partition.device_bytes,
            "budget_bytes": seen.partition.budget_bytes,
        },
        "reshards": [asdict(reshard) for reshard in seen.reshards],
        "what_if": [
            {
                "kind": each.kind,
                "what": each.what,
                "num_devices": each.num_devices,
                "batch": each.batch,
                "seconds": each.schedule.seconds if each.schedule else None,
                "joules": each.schedule.joules if each.schedule else None,
                "why": each.why,
            }
            for each in seen.variants
        ],
        "insights": [asdict(insight) for insight in insights(seen)],
    }


def _section_dict(seen: Inspection, section: Section) -> dict[str, object]:
    return {
        "id": section.id,
        "title": seen.title(section),
        "contents": contents_of(section),
        "launches": seen.sections.counts[section.id],
        "kernels": section.num_kernels,
        "seconds": section.seconds,
        "share": seen.share(section),
        "bound": section.bound,
        "margin": section.margin if section.margin != float("inf") else None,
        "terms_seconds": section.terms,
        "flops": section.flops,
        "read_bytes": section.read_bytes,
        "written_bytes": section.written_bytes,
        "num_pcus": section.num_pcus,
        "num_pmus": section.num_pmus,
        "sram_bytes": section.sram_bytes,
        "num_tiles": section.num_tiles,
        "num_passes": section.num_passes,
    }
