"""Stretches of dims that are found to be one and the same: union-find over parts of dims that can still be split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["Atoms"]


class Atoms:
    """Parts of dims. Two that must be divided alike are united; one that another view splits in two is split."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._united: dict[int, int] = {}
        self._parts: dict[int, tuple[int, int]] = {}
        self._blocked: set[int] = set()

    def new(self, size: int, *, blocked: bool = False) -> tuple[int, ...]:
        """Adds an atom; a dim of size 1 has none."""
        if size == 1:
            return ()
        self.sizes.append(size)
        if blocked or size == 0:
            self._blocked.add(len(self.sizes) - 1)
        return (len(self.sizes) - 1,)

    def leaves(self, atoms: Iterable[int]) -> tuple[int, ...]:
        """Returns what some atoms consist of now, major to minor."""
        found: list[int] = []
        for atom in atoms:
            root = self._root(atom)
            found += self.leaves(self._parts[root]) if root in self._parts else (root,)
        return tuple(found)

    def block(self, atoms: Iterable[int]) -> None:
        """Keeps atoms whole."""
        self._blocked.update(self.leaves(atoms))

    def is_blocked(self, leaf: int) -> bool:
        """Whether a leaf must stay whole."""
        return leaf in self._blocked

    def unite(self, one: Sequence[int], other: Sequence[int]) -> None:
        """Makes two sequences of atoms of the same total size one and the same."""
        left, right = list(self.leaves(one)), list(self.leaves(other))
        while left and right:
            small, large = sorted((left[0], right[0]), key=lambda leaf: self.sizes[leaf])
            if self.sizes[large] > self.sizes[small]:
                if self.sizes[small] == 0 or self.sizes[large] % self.sizes[small]:
                    self._blocked.update(left, right)
                    return
                self._split(large, self.sizes[small])
            self._unite(self.leaves([large])[0], self._root(small))
            left, right = (list(self.leaves(rest))[1:] for rest in (left, right))
        assert not left, "sequences of different sizes"
        assert not right, "sequences of different sizes"

    def _root(self, atom: int) -> int:
        while atom in self._united:
            atom = self._united[atom]
        return atom

    def _split(self, leaf: int, major_size: int) -> None:
        is_blocked = leaf in self._blocked
        (major,) = self.new(major_size, blocked=is_blocked)
        (minor,) = self.new(self.sizes[leaf] // major_size, blocked=is_blocked)
        self._parts[leaf] = (major, minor)

    def _unite(self, one: int, other: int) -> None:
        if one != other:
            self._united[one] = other
            if one in self._blocked:
                self._blocked.add(other)

    def size(self, atoms: Iterable[int]) -> int:
        """Returns the number of elements along some atoms."""
        return math.prod(self.sizes[leaf] for leaf in self.leaves(atoms))
