"""How each parameter of a model is made from the tensors of its files.

Comes in: the names and shapes that a family's files have. Goes out: one `Recipe` a parameter, whose every source is
known to be there, of the shape and kind that it must have, before the first one is read. Most recipes take one tensor
as it is (`renamed`); others take rows of a fused one, or stack those of all experts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
from jaxtyping import Float

from ...errors import CheckpointError, UnsupportedModelError

__all__ = [
    "Kind",
    "Make",
    "Recipe",
    "RecipeOf",
    "Source",
    "TensorFiles",
    "check_recipe",
    "follow_fp8",
    "follow_recipe",
    "only",
    "plain",
    "renamed",
    "stacked",
]

Kind: TypeAlias = Literal["float", "fp8", "uint8"]
Make: TypeAlias = Callable[[Sequence[np.ndarray]], np.ndarray]
MakeStored: TypeAlias = Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray]]


_SUPPORTED: dict[Kind, str] = {"float": "F64, F32, F16, BF16", "fp8": "F8_E4M3", "uint8": "U8"}


class TensorFiles(Protocol):
    """Memory-mapped tensors under the names that they have in the files."""

    @property
    def names(self) -> Collection[str]:
        """Of all tensors, those that nobody asks for included."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape."""
        ...

    def kind(self, name: str) -> str:
        """Returns a tensor's `Kind`, or the file's name of its type if it is none of them."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor's values: uint8 as it is, everything else in f32, dequantized if the type says how."""
        ...


@dataclass(frozen=True)
class Source:
    """One tensor of the files."""

    names: tuple[str, ...]  # that it may have, the usual one first
    shape: tuple[int, ...]
    kind: Kind = "float"  # "float": of any width, or quantized by itself; "fp8": e4m3, its scale is another source


@dataclass(frozen=True)
class Recipe:
    """What a parameter is made from, and how.

    `make` gets one array a source, in their order; an item is read from the file when it is asked for, so a `make`
    that takes them one by one holds one at a time.
    """

    sources: tuple[Source, ...]
    make: Make
    make_fp8: MakeStored | None = None  # values and scales as the files have them, if they have both


RecipeOf: TypeAlias = Callable[[str, tuple[int, ...]], Recipe]  # of a parameter's dotted Flax path and shape


def only(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Makes a parameter of its only source, as it is."""
    return arrays[0]


def plain(shape: tuple[int, ...], *names: str) -> Recipe:
    """Returns the recipe of a parameter that is a tensor of the files, by any of some names."""
    return Recipe((Source(names, shape),), only)


def stacked(shape: tuple[int, ...], parts: Sequence[Recipe]) -> Recipe:
    """Returns the recipe of a parameter [len(parts), ...] that is made part by part, each by a recipe of its own.

    Args:
        shape: Of the parameter.
        parts: Of its slices along the first dimension, each of as many sources as the others.
    """
    width = len(parts[0].sources)

    def make(arrays: Sequence[np.ndarray]) -> np.ndarray:
        out = np.empty(shape, np.float32)
        for index, part in enumerate(parts):
            out[index] = part.make(arrays[index * width : (index + 1) * width])
        return out

    def make_fp8(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        stored = (
            part.make_fp8(arrays[index * width : (index + 1) * width])
            for index, part in enumerate(parts)
            if part.make_fp8 is not None
        )
        values, scales = zip(*stored, strict=True)
        return np.stack(values), np.stack(scales)

    is_fp8 = all(part.make_fp8 is not None for part in parts)
    return Recipe(
        tuple(source for part in parts for source in part.sources), make, make_fp8=make_fp8 if is_fp8 else None
    )


def renamed(names: Callable[[str], tuple[str, ...]]) -> RecipeOf:
    """Returns recipes for files whose tensors are plait's under other names.

    Args:
        names: From plait's name to those that the tensor may have in the files.
    """
    return lambda name, shape: plain(shape, *names(name))


def check_recipe(path: Path, name: str, recipe: Recipe, files: TensorFiles) -> None:
    """Checks that all sources of a parameter are there and are what they must be; reads none.

    Raises:
        CheckpointError: if one is missing or has another shape.
        UnsupportedModelError: if one is of another kind.
    """
    for source in recipe.sources:
        original = _found(path, name, source, files)
        if (kind := files.kind(original)) != source.kind:
            raise UnsupportedModelError(
                f"{path}: {original!r} is of type {_type_of(kind)}, which is not supported there; "
                f"supported: {_SUPPORTED[source.kind]}"
            )
        if (shape := tuple(files.shape(original))) != source.shape:
            raise CheckpointError(
                f"{path}: {original!r} is {list(shape)}, its configuration wants {list(source.shape)}"
            )


def _type_of(kind: str) -> str:
    """Returns the name that the files have for a kind."""
    return {"fp8": "F8_E4M3", "uint8": "U8"}.get(kind, kind)


def follow_recipe(
    path: Path, name: str, recipe: Recipe, shape: tuple[int, ...], files: TensorFiles
) -> Float[np.ndarray, ...]:
    """Returns a parameter's values, f32 and C-contiguous.

    Raises:
        CheckpointError: if what the recipe gives does not have the parameter's shape.
    """
    originals = tuple(_found(path, name, source, files) for source in recipe.sources)
    values = np.ascontiguousarray(recipe.make(_ReadWhenAskedFor(originals, files)), np.float32)
    if values.shape != shape:
        raise CheckpointError(f"{path}: {name!r} came out as {list(values.shape)}, the model wants {list(shape)}")
    return values


def follow_fp8(path: Path, name: str, recipe: Recipe, files: TensorFiles) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns a parameter's values and scales in fp8 as the files have them, or None if they don't."""
    if recipe.make_fp8 is None:
        return None
    originals = tuple(_found(path, name, source, files) for source in recipe.sources)
    return recipe.make_fp8(_ReadWhenAskedFor(originals, files))


def _found(path: Path, name: str, source: Source, files: TensorFiles) -> str:
    for original in source.names:
        if original in files.names:
            return original
    raise CheckpointError(f"{path} has no tensor {' or '.join(source.names)}, which {name!r} is read from")


class _ReadWhenAskedFor(Sequence[np.ndarray]):
    """Tensors, read when they are indexed."""

    def __init__(self, names: tuple[str, ...], files: TensorFiles) -> None:
        self._names = names
        self._files = files

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        names = self._names[index]
        return self._files.read(names) if isinstance(names, str) else type(self)(names, self._files)
