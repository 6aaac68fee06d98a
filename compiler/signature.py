"""From the arguments of a Python call to the flat arrays of a traced function, and back.

A plain argument is a pytree. A Flax NNX module (or optimizer) is taken apart into its parameters and its other
variables, and put together again inside; what a call changes of it (batch statistics, counts of random numbers,
parameters that an optimizer updates) is written back into the module that it was called with, as `nnx.jit` does.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.tree_util import tree_flatten_with_path
from jaxtyping import Array, PyTree

from ..errors import ConfigurationError
from .graph import ValueKind
from .trace import AbstractArgument, Traced, trace

__all__ = ["Signature", "trace_call"]

_Path: TypeAlias = tuple[str | int, ...]  # of a variable of a module
_MAX_TREE = 160  # characters of a pytree in a message


@dataclass(frozen=True)
class Signature:
    """A traced function and what it is called with."""

    name: str
    labels: tuple[str, ...]  # of each argument
    arguments: tuple[AbstractArgument, ...]  # as they were given when the function was traced
    changes: tuple[tuple[_Path, ...], ...]  # of each module among them, the variables that a call changes
    traced: Traced  # of flat arguments; its results are (result, changes)

    def flat(self, arguments: Sequence[object]) -> list[Array]:
        """Returns the arrays of a call's arguments.

        Raises:
            ConfigurationError: if they are not like those that the function was traced with.
        """
        if len(arguments) != len(self.arguments):
            raise ConfigurationError(
                f"{self.name} is planned for {len(self.arguments)} arguments ({', '.join(self.labels)}), "
                f"{len(arguments)} are given"
            )
        parts = _parts(arguments)
        if jax.tree.structure(parts) != self.traced.in_tree:
            raise ConfigurationError(
                f"the arguments of {self.name} are another pytree than it is planned for: {self._other(arguments)}; "
                "partition it again for these"
            )
        leaves = jax.tree.leaves(parts)
        for name, leaf, aval in zip(self.traced.in_names, leaves, self.traced.jaxpr.in_avals, strict=True):
            given, planned = _shape_and_type(leaf), _shape_and_type(aval)
            if given != planned:
                raise ConfigurationError(
                    f"argument {name} of {self.name} is {_described(*given)}, it is planned for "
                    f"{_described(*planned)}; partition it again for other shapes and types"
                )
        return leaves

    def result(self, results: Sequence[Array], arguments: Sequence[object]) -> PyTree:
        """Returns the result of a call from flat results, and writes into its modules what the call changed."""
        result, changes = jax.tree.unflatten(self.traced.out_tree, results)
        modules = [argument for argument in arguments if _is_module(argument)]
        for module, paths, leaves in zip(modules, self.changes, changes, strict=True):
            if paths:
                nnx.update(module, _nested(paths, leaves))
        return result

    def like_arguments(self, shardings: Sequence[NamedSharding]) -> tuple[PyTree, ...]:
        """Returns one sharding for each array, in pytrees like the arguments."""
        parts = iter(jax.tree.unflatten(self.traced.in_tree, shardings))
        return tuple(_assembled(argument, parts) for argument in self.arguments)

    def _other(self, arguments: Sequence[object]) -> str:
        for label, argument, planned in zip(self.labels, arguments, self.arguments, strict=True):
            given, wanted = (str(jax.tree.structure(_parts([each]))) for each in (argument, planned))
            if given != wanted:
                return f"{label} is {_short(given)}, not {_short(wanted)}"
        return "their static parts differ"


def trace_call(
    function: Callable[..., object],
    arguments: Sequence[AbstractArgument],
    kinds: Sequence[ValueKind] | None = None,
) -> Signature:
    """Traces a function, or a Flax NNX module or one of its methods, as it is called.

    Args:
        function: What is called; of a module or a bound method, the module becomes the first argument.
        arguments: Pytrees of arrays or `jax.ShapeDtypeStruct`, or NNX modules.
        kinds: Of each argument, by default "input"; a module's parameters are parameters in any case.

    Raises:
        ConfigurationError: if it cannot be called, the kinds don't fit, or it makes variables of a module.
    """
    function, arguments = _with_module(function, tuple(arguments))
    chosen: Sequence[ValueKind] = ("input",) * len(arguments) if kinds is None else kinds
    name, labels = _name(function, arguments), _labels(function, arguments)
    if len(chosen) != len(arguments):
        raise ConfigurationError(f"{name} got {len(chosen)} argument_kinds for {len(arguments)} arguments; give all")
    own_kinds: list[ValueKind] = []
    own_labels: list[str] = []
    for argument, kind, label in zip(arguments, chosen, labels, strict=True):
        is_module = _is_module(argument)
        own_kinds.extend(("parameter", "state") if is_module else (kind,))
        own_labels += [label, f"{label}_state"] if is_module else [label]
    changes: list[tuple[_Path, ...]] = []

    def on_parts(*parts: object) -> tuple[object, list[list[Array]]]:
        left, held = iter(parts), iter(parts)
        called = [_assembled(argument, left) for argument in arguments]
        result = function(*called)
        changes.clear()
        changed: list[list[Array]] = []
        for argument in called:
            before = [next(held)]
            if _is_module(argument):
                found = _changed([*before, next(held)], argument, name)
                changes.append(tuple(found))
                changed.append(list(found.values()))
        return result, changed

    on_parts.__signature__ = _signature(own_labels)  # pyright: ignore[reportFunctionMemberAccess]
    traced = trace(on_parts, *_parts(arguments), name=name, argument_kinds=own_kinds)
    return Signature(name, labels, arguments, tuple(changes), traced)


def _with_module(
    function: Callable[..., object], arguments: tuple[AbstractArgument, ...]
) -> tuple[Callable[..., object], tuple[AbstractArgument, ...]]:
    if isinstance(function, nnx.Module):
        return type(function).__call__, (function, *arguments)  # pyright: ignore[reportFunctionMemberAccess]
    if inspect.ismethod(function) and isinstance(function.__self__, nnx.Module):
        return function.__func__, (function.__self__, *arguments)
    if not callable(function):
        raise ConfigurationError(f"a {type(function).__name__} is no function and no Flax NNX module to partition")
    return function, arguments


def _name(function: Callable[..., object], arguments: Sequence[object]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    owner = type(arguments[0]).__name__ if arguments and _is_module(arguments[0]) else ""
    return owner if owner and name == "__call__" else name


def _labels(function: Callable[..., object], arguments: Sequence[object]) -> tuple[str, ...]:
    """Names of the arguments: of the positional parameters, of a module its class, else args_0, args_1, ..."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    names = [*names, *(f"args_{number}" for number in range(len(names), len(arguments)))]
    return tuple("model" if name == "self" else name for name in names[: len(arguments)])


def _signature(labels: Sequence[str]) -> inspect.Signature:
    distinct = [f"{label}{'_' * labels[:i].count(label)}" for i, label in enumerate(labels)]
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in distinct])


def _is_module(argument: object) -> bool:
    return isinstance(argument, nnx.Pytree)


def _parts(arguments: Iterable[object]) -> tuple[object, ...]:
    parts: list[object] = []
    for argument in arguments:
        parts += _taken_apart(argument) if _is_module(argument) else [argument]
    return tuple(parts)


def _taken_apart(module: object) -> list[object]:
    """Returns the parameters and the other variables of a module, nested as it is."""
    _, parameters, others = nnx.split(module, nnx.Param, ...)
    return [nnx.to_pure_dict(parameters), nnx.to_pure_dict(others)]


def _assembled(argument: object, parts: Iterable[object]) -> object:
    """Returns an argument with the contents of the next of some parts."""
    left = iter(parts)
    if not _is_module(argument):
        return next(left)
    return nnx.merge(nnx.graphdef(argument), next(left), next(left))


def _changed(before: Sequence[object], module: object, name: str) -> dict[_Path, Array]:
    """Returns the variables of a module that are not what they were, by path."""
    old = {path: leaf for part in before for path, leaf in _variables(part)}
    new = dict(_variables(nnx.to_pure_dict(nnx.state(module))))
    if old.keys() != new.keys():
        paths = ", ".join(sorted(".".join(map(str, path)) for path in old.keys() ^ new.keys()))
        raise ConfigurationError(f"{name} adds or removes variables of a module ({paths}); make them before")
    return {path: leaf for path, leaf in new.items() if leaf is not old[path]}


def _variables(nested: object) -> list[tuple[_Path, Array]]:
    return [(tuple(key.key for key in path), leaf) for path, leaf in tree_flatten_with_path(nested)[0]]


def _nested(paths: Iterable[_Path], leaves: Iterable[Array]) -> dict[str | int, object]:
    root: dict[str | int, object] = {}
    for path, leaf in zip(paths, leaves, strict=True):
        place = root
        for key in path[:-1]:
            inner = place.setdefault(key, {})
            assert isinstance(inner, dict)
            place = inner
        place[path[-1]] = leaf
    return root


def _shape_and_type(leaf: object) -> tuple[tuple[int, ...], object]:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        dtype = leaf.dtype  # type: ignore[attr-defined]
        is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
        return tuple(leaf.shape), dtype if is_key else jax.dtypes.canonicalize_dtype(dtype)  # type: ignore[attr-defined]
    try:
        aval = jax.eval_shape(jnp.asarray, leaf)
    except TypeError:
        raise ConfigurationError(
            f"an argument is a {type(leaf).__name__}; arrays and numbers are what JAX takes"
        ) from None
    return aval.shape, aval.dtype


def _described(shape: tuple[int, ...], dtype: object) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TREE else f"{text[:_MAX_TREE]}..."
