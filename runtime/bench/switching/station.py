"""A runtime that the agent's loop runs on, and what is measured there.

A block is some turns one after the other, of which the first does not count; before it and after it everything comes
to rest, or a fetch begun by one block would end in the time of another. The look-ahead of a block is one of three:
`declared` knows the loop, `learned` only what it has seen, `none` foretells nothing: then nothing is fetched while
anything computes, and a switch blocks the loop, as where a server sleeps and wakes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np

from ....compiler.bundle.reader import open_bundle
from ....compiler.target import Target
from ....errors import ExecutionError
from ...engine import Runtime
from ...request import SamplingParams
from ...residency import ddr_bytes, hbm_bytes
from ...simulation.timeline import Timeline
from ...tiers import TransferRecord
from ...workflow import LookAhead
from .agent import Agent, Roles, Turn
from .page_cache import cached_share, drop

__all__ = ["Ahead", "Block", "LocalStation", "Station", "StationSpec", "Switch", "opened"]

Ahead: TypeAlias = Literal["declared", "learned", "none"]
Room: TypeAlias = Literal["all", "half", "one"]

_REST_SECONDS = 0.005  # between two looks whether everything has come to rest
_MOST_SECONDS = 300.0  # until it has, and until programs are loaded
_NUMBERS_APART = 10_000  # of turns with different look-aheads; they begin with the same pair of models
_ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)


@dataclass(frozen=True)
class StationSpec:
    """What runtime to make of a bundle."""

    bundle: Path
    hbm: Room  # for all models, half of their bytes, or any one of them
    ddr: Literal["all", "one"]
    link_bytes_per_s: float | None  # from ddr to hbm; None: as fast as the machine copies


@dataclass(frozen=True)
class Block:
    """Turns that were run one after the other."""

    turns: tuple[Turn, ...]
    num_switches: int  # models that became hot meanwhile
    moved_bytes: int  # of them
    cached_share: float | None = None  # of the weights' files, before the first turn; None: not looked at


@dataclass(frozen=True)
class Switch:
    """A model that was made hot by a request, and what else was measured beside it."""

    num_bytes: int
    ready_seconds: float  # of all transfers, until the model can run
    copy_seconds: float  # of the one to hbm: copying alone
    ttft_seconds: float  # of the request that waited for it
    hot_ttft_seconds: float  # of the next one
    memcpy_seconds: float  # numpy's, of so many bytes
    cached_share: float  # of the weights' file, before


class Station(Protocol):
    """Where turns are run; in this process or another."""

    def block(self, ahead: Ahead, num_turns: int, *, cold_files: bool = False) -> Block:
        """Runs a turn that does not count, and some that do; `cold_files` drops the files' pages before each."""
        ...

    def switches(self, num_switches: int, *, cold_files: bool = False) -> list[Switch]:
        """Makes two models hot in turn."""
        ...

    def passage(self, number: int) -> tuple[str, float]:
        """Returns the passage that answers the question of a turn, and the seconds that finding it took."""
        ...

    def timeline(self, ahead: Ahead, num_turns: int) -> bytes:
        """Returns what happened during some turns, as a Perfetto trace."""
        ...

    def close(self) -> None:
        """Frees everything."""
        ...


@dataclass(eq=False)
class LocalStation:
    """A station in this process.

    Args:
        spec: Of its runtime.
    """

    spec: StationSpec
    _looks: dict[Ahead, LookAhead] = field(init=False)
    _numbers: dict[Ahead, Iterator[int]] = field(init=False)  # of the turns of each look-ahead

    def __post_init__(self) -> None:
        bundle = open_bundle(self.spec.bundle)
        models = bundle.manifest.models
        self._files = {entry.name: bundle.path / entry.weights for entry in models}
        self._roles = Roles.of(bundle.manifest)
        everything = hbm_bytes(models)
        hbm = {"all": everything, "half": everything // 2, "one": max(hbm_bytes([entry]) for entry in models)}
        ddr = {"all": bundle.manifest.budget.ddr, "one": max(ddr_bytes([entry]) for entry in models)}
        target = _with_link(bundle.manifest.target, self.spec.link_bytes_per_s)
        loaded = threading.Event()

        def progress(done: int, total: int) -> None:
            if done == total:
                loaded.set()

        self._runtime = Runtime(
            bundle, hbm=hbm[self.spec.hbm], ddr=ddr[self.spec.ddr], target=target, progress=progress
        )
        loaded.wait(_MOST_SECONDS)  # programs that are compiled behind the first turns would slow them down
        self._agent = Agent(self._runtime, self._roles)
        self._looks = {
            "declared": LookAhead([self._roles.cycle]),
            "learned": LookAhead(),
            "none": LookAhead(max_steps=0),
        }
        starts = itertools.count(0, _NUMBERS_APART)  # no prompt comes twice, or the KV cache would have it
        self._numbers = {ahead: itertools.count(start) for ahead, start in zip(self._looks, starts, strict=False)}
        self._copied = (np.ones(0, np.uint8), np.ones(0, np.uint8))

    def block(self, ahead: Ahead, num_turns: int, *, cold_files: bool = False) -> Block:
        """Runs turns; as `Station.block`."""
        self._rest()
        self._runtime.look_ahead_by(self._looks[ahead])
        asyncio.run(self._turns(ahead, 1, cold_files))
        share = float(np.mean([cached_share(self._files[name]) for name in self._roles.decoders]))
        with self._transfers() as records:
            turns = asyncio.run(self._turns(ahead, num_turns, cold_files))
        self._rest()
        arrived = [record for record in records if record.destination == "hbm"]
        return Block(tuple(turns), len(arrived), sum(record.num_bytes for record in arrived), share)

    def switches(self, num_switches: int, *, cold_files: bool = False) -> list[Switch]:
        """Makes the first two chat models hot in turn; as `Station.switches`."""
        names = [chat for chat, _ in self._roles.pairs[:2]]
        self._rest()
        self._runtime.look_ahead_by(self._looks["none"])
        for name in names:  # programs are loaded, and the last one is hot
            self._first_token(name)
        return [self._switch(names[number % 2], cold_files) for number in range(num_switches)]

    def passage(self, number: int) -> tuple[str, float]:
        """Returns a passage; as `Station.passage`."""
        began = time.perf_counter()
        return asyncio.run(self._agent.passage(number))[0], time.perf_counter() - began

    def timeline(self, ahead: Ahead, num_turns: int) -> bytes:
        """Returns a trace; as `Station.timeline`."""
        self._rest()
        self._runtime.look_ahead_by(self._looks[ahead])
        timeline = Timeline([entry.name for entry in self._runtime.bundle.manifest.models])
        self._runtime.watch(timeline.see)
        began = time.monotonic()
        try:
            asyncio.run(self._turns(ahead, num_turns, cold_files=False))
            self._rest()
        finally:
            self._runtime.watch(None)
        return timeline.to_json(began)

    def close(self) -> None:
        """Frees everything."""
        self._runtime.close()

    async def _turns(self, ahead: Ahead, num_turns: int, cold_files: bool) -> list[Turn]:
        turns: list[Turn] = []
        for _ in range(num_turns):
            if cold_files:
                self._drop_files()
            turns.append(await self._agent.turn(next(self._numbers[ahead])))
        return turns

    def _rest(self) -> None:
        """Waits until nothing is under way.

        Raises:
            ExecutionError: if that takes too long.
        """
        deadline = time.monotonic() + _MOST_SECONDS
        while not self._runtime.is_idle:
            if time.monotonic() > deadline:
                raise ExecutionError(f"a runtime has not come to rest in {_MOST_SECONDS:.0f} s; see its log")
            time.sleep(_REST_SECONDS)

    def _drop_files(self) -> None:
        for name in self._roles.decoders:
            drop(self._files[name])

    @contextmanager
    def _transfers(self) -> Iterator[list[TransferRecord]]:
        """Yields a list that holds, afterwards, the transfers that ended meanwhile."""
        seen = set(map(id, before := self._runtime.transfers()))
        found: list[TransferRecord] = []
        yield found
        found += [record for record in self._runtime.transfers() if id(record) not in seen]
        del before  # its records were kept, so that no new one has the id of an old one

    def _switch(self, model: str, cold_files: bool) -> Switch:
        if cold_files:
            drop(self._files[model])
        share = cached_share(self._files[model])
        with self._transfers() as records:
            ttft = self._first_token(model)
            self._rest()
        last = next(record for record in reversed(records) if record.destination == "hbm")
        return Switch(
            last.num_bytes,
            sum(record.seconds for record in records if record.model == model),
            last.copy_seconds,
            ttft,
            self._first_token(model),
            self._memcpy_seconds(last.num_bytes),
            share,
        )

    def _first_token(self, model: str) -> float:
        """Returns the time to the first token of a short prompt that no cache knows."""
        prompt = self._runtime.tokenize(model, f"{next(self._numbers['none']):05}")
        return self._runtime.complete(model, prompt, _ONE_TOKEN).usage.time_to_first_token_seconds

    def _memcpy_seconds(self, num_bytes: int) -> float:
        if len(self._copied[0]) != num_bytes:
            self._copied = (np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8))
        began = time.perf_counter()
        np.copyto(self._copied[1], self._copied[0])
        return time.perf_counter() - began


def opened(spec: StationSpec) -> LocalStation:
    """Returns a station in this process."""
    return LocalStation(spec)


def _with_link(target: Target, bytes_per_s: float | None) -> Target:
    """Returns a target whose link to hbm has this pace; the one from disk is as fast as the machine."""
    links = {name: dataclasses.replace(link, pace=False) for name, link in target.links.items()}
    if bytes_per_s is not None:
        links["ddr->hbm"] = dataclasses.replace(links["ddr->hbm"], bandwidth_bytes_per_s=bytes_per_s, pace=True)
    return dataclasses.replace(target, links=links)
