"""A plan ready to be reported: its stages' nouns, what it sends, and other plans to hold it against.

Comes in: a compilation, as `plan_file.read_plan` gives it. Goes out: an `Inspection`. The step is mapped onto its
target again, which takes a second; other plans and remedies are looked for until a time limit.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from ...errors import ConfigurationError
from ..fuse.sections import Section, Sections
from ..fuse.work import Work
from ..mapping import Mapped, map_step
from ..partition.blame import Reshard
from ..partition.explain import explain
from ..partition.pins import resolve_pins
from ..partition.result import Partition
from ..pipeline import Compilation
from ..place import Placement
from ..schedule import Schedule
from .variants import Variant, variants_of

__all__ = ["Inspection", "inspect_plan", "module_of"]

_NUM_REMEDIES = 3  # reshards for which what removes them is looked for
_SHARE_OF_REMEDIES = 0.4  # of the time that there is
_NUMBER = re.compile(r"\.\d+")  # of a layer
_MOST_NAMES = 3  # of modules in a title


@dataclass(frozen=True)
class Inspection:
    """A plan, mapped, with what explains it."""

    compilation: Compilation
    partition: Partition
    mapped: Mapped
    placement: Placement
    schedule: Schedule
    reshards: tuple[Reshard, ...]  # the most expensive first
    variants: tuple[Variant, ...]  # other plans of the same model

    @property
    def sections(self) -> Sections:
        """Its kernels."""
        return self.mapped.sections

    @property
    def name(self) -> str:
        """Of the traced graph."""
        return self.compilation.traced.graph.name

    @property
    def by_time(self) -> list[Section]:
        """Sections, those that take most of a step first."""
        counts = self.sections.counts
        return sorted(self.sections.sections, key=lambda section: -section.seconds * counts[section.id])

    def share(self, section: Section) -> float:
        """Returns the part of all sections' time that one takes, with all its launches."""
        whole = self.sections.seconds
        return section.seconds * self.sections.counts[section.id] / whole if whole else 0.0

    def works(self, begin: int, section: Section) -> Sequence[Work]:
        """Returns what one launch of a section does, an operation each."""
        return self.mapped.works[begin : begin + section.end - section.begin]

    def title(self, section: Section) -> str:
        """Returns the modules that a section computes, of all layers alike: `layers.*`, or `norm, head`."""
        return module_of(self.works(section.begin, section), is_pattern=True)

    @property
    def num_tokens(self) -> int:
        """New tokens of a step, of all sequences."""
        return self.compilation.new_tokens

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all sequences a second."""
        return self.num_tokens / self.schedule.seconds if self.schedule.seconds else 0.0

    @functools.cached_property
    def launch_of_operation(self) -> dict[int, int]:
        """Which launch, by position, runs an operation."""
        return dict(
            chain.from_iterable(
                ((operation, number) for operation in range(launch.begin, launch.begin + section.end - section.begin))
                for number, launch in enumerate(self.sections.launches)
                for section in (self.sections.sections[launch.section],)
            )
        )


def module_of(works: Sequence[Work], *, is_pattern: bool = False) -> str:
    """Returns the module that a stretch of operations is of: the common part of their paths, or their first parts.

    Args:
        works: The operations.
        is_pattern: Name all layers alike, with `*` for a number.
    """
    named = [_NUMBER.sub(".*", work.path) if is_pattern else work.path for work in works if not work.is_view]
    paths = [tuple(part for part in path.split("/") if part) for path in named]
    paths = [path for path in paths if path]
    if not paths:
        return works[0].name if works else "nothing"
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    if common:
        return "/".join(common)
    firsts = list(dict.fromkeys(path[0] for path in paths))
    more = ", …" if len(firsts) > _MOST_NAMES else ""
    return ", ".join(firsts[:_MOST_NAMES]) + more


def inspect_plan(
    compilation: Compilation,
    *,
    time_limit_seconds: float = 6.0,
    progress: Callable[[str], None] = lambda text: None,
) -> Inspection:
    """Returns a plan with what is reported of it.

    Args:
        compilation: The plan, up to its partition.
        time_limit_seconds: For other plans and for what would remove reshards; 0 looks for neither.
        progress: Told what is done.

    Raises:
        ConfigurationError: if nothing was partitioned.
    """
    plan = compilation.partition
    if plan is None:
        raise ConfigurationError(
            f"the plan of {compilation.traced.graph.name} stopped before its partition; compile it up to that stage"
        )
    mapped = map_step(
        compilation.traced,
        plan,
        compilation.target,
        compilation.dtype,
        configuration=compilation.configuration,
        fusion=compilation.fusion,
        progress=progress,
    )
    assert mapped.placement is not None
    assert mapped.schedule is not None
    end = time.monotonic() + time_limit_seconds
    progress("what is sent")
    explanation = explain(
        compilation.traced,
        plan,
        compilation.target,
        dtype=compilation.dtype,
        pins=resolve_pins(compilation.traced.graph, compilation.parallelism.pins, plan.mesh),
        top=_NUM_REMEDIES if time_limit_seconds else 0,
        time_limit_seconds=max(0.01, time_limit_seconds * _SHARE_OF_REMEDIES),
        progress=progress,
    )
    return Inspection(
        compilation=compilation,
        partition=plan,
        mapped=mapped,
        placement=mapped.placement,
        schedule=mapped.schedule,
        reshards=explanation.reshards,
        variants=variants_of(compilation, plan, mapped, end=end, progress=progress),
    )
