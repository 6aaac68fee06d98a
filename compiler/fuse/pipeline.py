"""What a stretch of operations costs as one kernel: stages on units of the chip, a pipeline, traffic.

The operations of a section run side by side, each on compute and memory units of its own, and rows stream through them
in tiles: a metapipeline (SARA, ISCA 2021). A stage takes the longest of its FLOPs at its compute units' rate, its bytes
in and its bytes out at its memory units' (the cost of an operator in STeP, arXiv 2511.07776). Units are given out in
proportion to work, so that stages are balanced. An operation that has to look at all rows of another one begins a new
phase; phases of one iteration (a sequence) follow each other, iterations overlap.

In SRAM are two tiles of every activation that a stage hands on, whole where it is waited for, and weights: where many
tiles pass, all of them stay; where they find no room, rows are taken in blocks, and weights are read again for each.

What another section reads is written to HBM, unless making it again there takes less than writing and reading it, as
of the scores that attention hands to its gradient.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ..cost import peak_flops_per_s
from ..target import Chip, Target
from .sections import Flow, Orchestration, Section, StageUnits
from .work import Work

__all__ = ["Fuser"]

_STREAMED_PMUS = 4  # memory units through which a weight streams that does not stay: two tiles, twice as wide


@dataclass
class _Stage:
    """An operation on its way to become a stage."""

    work: Work
    phase: int
    compute: float  # seconds of one compute unit for all rows
    moved: float  # bytes in or out, whichever are more, for all rows
    activations: float  # bytes of its buffers beside weights
    weights: float  # bytes of weights that it reads

    def sram_bytes(self, stays: bool, chip: Chip) -> int:
        streamed = min(self.weights, _STREAMED_PMUS * chip.pmu_bytes)
        return math.ceil(self.activations + (self.weights if stays else streamed))


class Fuser:
    """Costs stretches of one graph's operations on one target."""

    def __init__(
        self,
        works: Sequence[Work],
        outputs: frozenset[int],
        target: Target,
        dtype: str,
        orchestration: Orchestration = "hardware",
        *,
        remakes: bool = True,
    ) -> None:
        """Takes the work of all operations.

        Args:
            works: In order.
            outputs: Buffers that outlive the graph.
            target: The machine.
            dtype: That products are computed in.
            orchestration: Who launches kernels.
            remakes: Whether results that are cheap to make again are made again where they are read.
        """
        self.works, self.outputs, self.target = works, outputs, target
        launch = target.compute.launch_seconds
        is_by_host = orchestration == "software" and target.compute.software_launch_seconds is not None
        self.launch_seconds = (target.compute.software_launch_seconds or launch) if is_by_host else launch
        self.flops_per_s = peak_flops_per_s(target, dtype)
        self.last_reads: dict[int, int] = {}
        self.remade: dict[int, int] = {}  # buffers that are cheaper to make again than to keep: by which operation
        for place, work in enumerate(works):
            for touch in work.reads:
                self.last_reads[touch.buffer] = place
            for touch in work.writes:
                if remakes and touch.buffer not in outputs and self._is_cheap(work, touch.bytes):
                    self.remade[touch.buffer] = place
                else:
                    self.remade.pop(touch.buffer, None)

    def section(self, begin: int, end: int) -> Section | None:
        """Returns the section of the operations [begin, end), or None if the chip has not the units for it."""
        works = [*self.again(begin, end), *(work for work in self.works[begin:end] if not work.is_view)]
        read, written = self.traffic(begin, end)
        chip = self.target.chip
        if chip is None or not works:
            return self._kernel(begin, end, works, read, written)
        found = self._pipeline(begin, end, works, read, written, chip)
        if found is None and end - begin == 1:  # what is made again for it has no units left: one after the other
            return self._kernel(begin, end, works, read, written)
        return found

    def alone(self, place: int) -> Section:
        """Returns one operation as a kernel that has the whole device."""
        return self._kernel(place, place + 1, [self.works[place]], *self.traffic(place, place + 1))

    def unfused(self, begin: int) -> Section:
        """Returns one operation as it runs if nothing is fused: one launch after the other, all through HBM."""
        work = self.works[begin]
        computing = [self._compute_seconds(kernel.flops, kernel.product_flops) for kernel in work.kernels]
        moving = [kernel.bytes / self._hbm() for kernel in work.kernels]
        return Section(
            id=0,  # until the search has its place
            begin=begin,
            end=begin + 1,
            stages=(),
            flows=(),
            num_tiles=1,
            num_passes=1,
            num_kernels=len(work.kernels),
            flops=work.flops,
            read_bytes=sum(kernel.bytes for kernel in work.kernels),
            written_bytes=0.0,
            compute_seconds=sum(computing),
            sram_seconds=0.0,
            hbm_seconds=sum(map(max, computing, moving)),  # each kernel takes the longer of the two
            network_seconds=work.network_seconds,
            launch_seconds=self.launch_seconds * len(work.kernels),
        )

    def traffic(self, begin: int, end: int) -> tuple[float, float]:
        """Returns the bytes that one device reads from HBM and writes there, each buffer once."""
        read: dict[int, float] = {}
        made: dict[int, float] = {}
        for work in (*self.again(begin, end), *self.works[begin:end]):
            for touch in work.reads:
                if touch.buffer not in made:
                    read[touch.buffer] = max(read.get(touch.buffer, 0.0), touch.bytes)
            for touch in work.writes:
                made[touch.buffer] = made.get(touch.buffer, 0.0) + touch.bytes
        written = sum(size for buffer, size in made.items() if self._outlives(buffer, end))
        return sum(read.values()), written

    def _hbm(self) -> float:
        return self.target.tiers["hbm"].sustained_bytes_per_s

    def _compute_seconds(self, flops: float, product_flops: float) -> float:
        """Seconds of the whole chip."""
        share = self.target.chip.vector_share if self.target.chip else 1.0
        products = product_flops / (self.flops_per_s * self.target.compute.efficiency)
        return products + (flops - product_flops) / (self.flops_per_s * share)

    def _kernel(self, begin: int, end: int, works: Sequence[Work], read: float, written: float) -> Section:
        """A kernel that has the whole device."""
        return Section(
            id=0,  # until the search has its place
            begin=begin,
            end=end,
            stages=(),
            flows=(),
            num_tiles=1,
            num_passes=1,
            num_kernels=1 if works else 0,
            flops=sum(work.flops for work in works),
            read_bytes=read,
            written_bytes=written,
            compute_seconds=sum(self._compute_seconds(work.flops, work.product_flops) for work in works),
            sram_seconds=0.0,
            hbm_seconds=(read + written) / self._hbm(),
            network_seconds=sum(work.network_seconds for work in self.works[begin:end]),
            launch_seconds=self.launch_seconds if works else 0.0,
        )

    def _pipeline(
        self, begin: int, end: int, works: Sequence[Work], read: float, written: float, chip: Chip
    ) -> Section | None:
        rows, iterations = max(work.rows for work in works), max(work.iterations for work in works)
        num_tiles = max(1, rows // chip.tile_rows)
        stages = self._stages(works, num_tiles, iterations, chip)
        fitted = _fit(stages, num_tiles, chip)
        if fitted is None:
            return None
        stays, num_passes = fitted
        units = _units(stages, stays, chip)
        if units is None:
            return None
        rate = chip.pmu_bytes_per_cycle * chip.clock_hz
        made = tuple(
            StageUnits(
                operation=stage.work.operation,
                name=stage.work.name,
                path=stage.work.path,
                phase=stage.phase,
                num_pcus=pcus,
                num_pmus=pmus,
                sram_bytes=stage.sram_bytes(stays, chip),
                compute_seconds=stage.compute / pcus,
                sram_seconds=stage.moved / (pmus * rate),
            )
            for stage, (pcus, pmus) in zip(stages, units, strict=True)
        )
        again = (num_passes - 1) * (sum(stage.weights for stage in stages) if len(stages) > 1 else read)
        return Section(
            id=0,  # until the search has its place
            begin=begin,
            end=end,
            stages=made,
            flows=self._flows(works, end),
            num_tiles=num_tiles,
            num_passes=num_passes,
            num_kernels=1,
            flops=sum(work.flops for work in works),
            read_bytes=read + again,
            written_bytes=written,
            compute_seconds=_pipelined([(s.phase, s.compute_seconds) for s in made], num_tiles, iterations),
            sram_seconds=_pipelined([(s.phase, s.seconds) for s in made], num_tiles, iterations),
            hbm_seconds=(read + again + written) / self._hbm(),
            network_seconds=sum(work.network_seconds for work in self.works[begin:end]),
            launch_seconds=self.launch_seconds,
        )

    def _flows(self, works: Sequence[Work], end: int) -> tuple[Flow, ...]:
        """Returns what goes between stages: each buffer from the one that wrote it last to all that read it."""
        flows: dict[tuple[int | None, int | None], float] = defaultdict(float)
        makers: dict[int, int] = {}
        for place, work in enumerate(works):
            for touch in work.reads:
                flows[makers.get(touch.buffer), place] += touch.bytes
            for touch in work.writes:
                makers[touch.buffer] = place
                if self._outlives(touch.buffer, end):
                    flows[place, None] += touch.bytes
        return tuple(Flow(source, target, size) for (source, target), size in flows.items())

    def _outlives(self, buffer: int, end: int) -> bool:
        is_kept = self.last_reads.get(buffer, -1) >= end and buffer not in self.remade
        return buffer in self.outputs or is_kept

    def again(self, begin: int, end: int) -> list[Work]:
        """Returns the operations before [begin, end) that are run again, as what they make is not kept."""
        wanted: set[int] = set()
        asking = list(self.works[begin:end])
        while asking:
            for touch in asking.pop().reads:
                maker = self.remade.get(touch.buffer, begin)
                if maker < begin and maker not in wanted:
                    wanted.add(maker)
                    asking.append(self.works[maker])
        return [self.works[place] for place in sorted(wanted)]

    def _is_cheap(self, work: Work, num_bytes: float) -> bool:
        """Whether it takes less to make a result again, from what is kept, than to write and read it."""
        if self.target.chip is None:
            return False
        inputs = sum(touch.bytes for touch in work.reads)
        seconds = self._compute_seconds(work.flops, work.product_flops) + inputs / self._hbm()
        return not work.network_seconds and seconds < 2 * num_bytes / self._hbm()

    def _stages(self, works: Sequence[Work], num_tiles: int, iterations: int, chip: Chip) -> list[_Stage]:
        phases: dict[int, int] = {}  # of the maker of each buffer, and the one after it if it is accumulated
        waited = {buffer for work in works for buffer in work.waits_for}
        made: list[_Stage] = []
        for work in works:
            phase = 0
            for touch in work.reads:
                ready = phases.get(touch.buffer, 0)
                is_late = touch.buffer in work.waits_for and touch.buffer in phases
                phase = max(phase, ready + is_late)
            for touch in work.writes:
                phases[touch.buffer] = phase + work.is_accumulated
            handed = sum(touch.bytes for touch in work.writes)
            whole = sum(touch.bytes for touch in work.writes if touch.buffer in waited or work.is_accumulated)
            tiles = 2 * (handed - whole) / num_tiles
            bytes_in = sum(touch.bytes for touch in work.reads)
            chip_seconds = self._compute_seconds(work.flops, work.product_flops)
            made.append(
                _Stage(
                    work=work,
                    phase=phase,
                    compute=chip_seconds * chip.num_pcus,
                    moved=max(bytes_in, handed),
                    activations=tiles + whole * (min(2, iterations) / iterations),
                    weights=work.weights_bytes,
                )
            )
        return made


def _fit(stages: Sequence[_Stage], num_tiles: int, chip: Chip) -> tuple[bool, int] | None:
    """Returns whether weights stay in SRAM, and how many passes over them are made; None if nothing fits."""
    streamed = sum(stage.sram_bytes(False, chip) for stage in stages)
    if streamed > chip.sram_bytes:
        # An operation alone may write what it adds up in parts, each of which reads everything again.
        return (False, math.ceil(streamed / chip.sram_bytes)) if len(stages) == 1 else None
    if num_tiles == 1:
        return False, 1
    if sum(math.ceil(stage.sram_bytes(True, chip) / chip.pmu_bytes) for stage in stages) <= chip.num_pmus:
        return True, 1
    # Rows in blocks: those of a block stay on the chip while all weights stream by.
    activations = sum(stage.activations for stage in stages)
    room = chip.sram_bytes - (streamed - activations)
    tiles_at_once = max(1, int(room / max(activations / 2, 1.0)))
    return False, math.ceil(num_tiles / tiles_at_once)


def _units(stages: Sequence[_Stage], stays: bool, chip: Chip) -> list[tuple[int, int]] | None:
    """Returns the compute and memory units of each stage; None if there are more stages than units."""
    least = [max(1, math.ceil(stage.sram_bytes(stays, chip) / chip.pmu_bytes)) for stage in stages]
    if len(stages) == 1:
        least = [min(least[0], chip.num_pmus)]
    pcus = _shares([stage.compute for stage in stages], [1] * len(stages), chip.num_pcus)
    pmus = _shares([stage.moved for stage in stages], least, chip.num_pmus)
    return None if pcus is None or pmus is None else list(zip(pcus, pmus, strict=True))


def _shares(work: Sequence[float], least: Sequence[int], total: int) -> list[int] | None:
    """Divides units so that the largest work a unit is least: as many as that takes, at least `least` each."""
    if sum(least) > total:
        return None
    low, high = sum(work) / total, max((w / n for w, n in zip(work, least, strict=True)), default=0.0)
    if high == 0.0:
        return list(least)

    def needed(bottleneck: float) -> list[int]:
        return [max(n, math.ceil(w / bottleneck - 1e-9)) for w, n in zip(work, least, strict=True)]

    for _ in range(40):
        middle = (low + high) / 2
        if sum(needed(middle)) <= total:
            high = middle
        else:
            low = middle
    return needed(high)


def _pipelined(stages: Sequence[tuple[int, float]], num_tiles: int, iterations: int) -> float:
    """Returns the time of all rows: the slowest stage and its fill, of each phase; iterations overlap phases."""
    times: dict[int, list[float]] = defaultdict(list)
    for phase, seconds in stages:
        times[phase].append(seconds)
    tiles = max(1, num_tiles // iterations)  # of one iteration
    phases = [max(each) + (sum(each) - max(each)) / (tiles * iterations) for each in times.values()]
    if len(phases) == 1:
        return phases[0]
    return (sum(phases) + (iterations - 1) * max(phases)) / iterations
