"""The KV blocks that have a copy in ddr: of all models, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["SavedBlocks"]


@dataclass(frozen=True)
class _Slot:
    id: int
    num_bytes: int


class SavedBlocks:
    """Which block of which content is in which slot. Slots are numbered from 0 and never used again."""

    def __init__(self) -> None:
        self._slots: OrderedDict[tuple[str, bytes], _Slot] = OrderedDict()  # by model and digest; the first goes first
        self._num_made = 0
        self.used_bytes = 0

    def find(self, model: str, digest: bytes) -> int | None:
        """Returns the slot that holds a block, if there is one."""
        slot = self._slots.get((model, digest))
        return None if slot is None else slot.id

    def keep(self, model: str, digest: bytes, num_bytes: int) -> int | None:
        """Makes a block the one used last; if it has no slot it gets one, which is returned."""
        key = (model, digest)
        if key in self._slots:
            self._slots.move_to_end(key)
            return None
        slot = self._slots[key] = _Slot(self._num_made, num_bytes)
        self._num_made += 1
        self.used_bytes += num_bytes
        return slot.id

    def trim(self, most_bytes: int) -> tuple[int, ...]:
        """Drops what was not used for longest until so many bytes are left; returns the slots."""
        dropped: list[int] = []
        while self.used_bytes > most_bytes:
            _, slot = self._slots.popitem(last=False)
            self.used_bytes -= slot.num_bytes
            dropped.append(slot.id)
        return tuple(dropped)

    def drop(self, model: str) -> tuple[int, ...]:
        """Drops all that is saved of a model; returns the slots."""
        slots = tuple(slot.id for (name, _), slot in self._slots.items() if name == model)
        self.discard(slots)
        return slots

    def discard(self, slots: Iterable[int]) -> None:
        """Drops these slots."""
        lost = set(slots)
        for key in [key for key, slot in self._slots.items() if slot.id in lost]:
            self.used_bytes -= self._slots.pop(key).num_bytes
