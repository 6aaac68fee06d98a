"""Sections as a table for people."""

from __future__ import annotations

from collections import Counter

from ..text import Table, format_bytes, format_seconds
from .sections import Section, Sections

__all__ = ["contents_of", "report_sections"]

_MOST_ROWS = 24


def report_sections(sections: Sections) -> Table:
    """Returns a line a section, those that take most of a step first."""
    order = sorted(sections.sections, key=lambda section: -section.seconds * sections.counts[section.id])
    rows = tuple(_row(section, sections) for section in order[:_MOST_ROWS])
    hidden = len(order) - len(rows)
    note = f"and {hidden} more sections" if hidden > 0 else ""
    heads = ("section", "launches", "each", "share", "bound by ", "PCUs", "PMUs", "SRAM", "HBM", "what ")
    return Table(f"sections ({sections.mode}, launches by {sections.orchestration})", heads, rows, note)


def _row(section: Section, sections: Sections) -> tuple[str, ...]:
    count = sections.counts[section.id]
    share = section.seconds * count / sections.seconds if sections.seconds else 0.0
    margin = f" x{section.margin:.1f}" if section.margin < 1000 else ""
    return (
        str(section.id),
        str(count * section.num_kernels),
        format_seconds(section.seconds),
        f"{share:.1%}",
        f"{section.bound}{margin}",
        str(section.num_pcus or ""),
        str(section.num_pmus or ""),
        format_bytes(section.sram_bytes) if section.stages else "",
        format_bytes(section.read_bytes + section.written_bytes),
        contents_of(section),
    )


def contents_of(section: Section) -> str:
    """Returns what a section computes, in a few words: its operations, and how many of each."""
    names = Counter(stage.name for stage in section.stages)
    found = ", ".join(f"{count} {name}" if count > 1 else name for name, count in names.most_common(6))
    more = len(names) - 6
    return (f"{found}, {more} more" if more > 0 else found) or f"operations {section.begin} to {section.end - 1}"
