"""Which operations of a traced function, and which of their operands, its outputs depend on.

JAX keeps what is never read: results that a caller drops, and what is computed for them inside a jitted call or a loop.
XLA removes it, and with it the collectives that would have brought its operands.
"""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.core import JaxprEqn, Var

from .ops.arrays import AnyJaxpr, called_jaxpr, open_jaxpr
from .ops.loops import scan_layout
from .trace import Traced

__all__ = ["live_operands", "live_operations"]

_Flags = tuple[bool, ...]


def live_operations(traced: Traced) -> tuple[bool, ...]:
    """Returns of each operation of the graph whether an output depends on it."""
    return tuple(operands is not None for operands in live_operands(traced))


def live_operands(traced: Traced) -> tuple[_Flags | None, ...]:
    """Returns of each operation whether an output depends on each of its operands; None where none depends on it."""
    bodies = _Bodies()
    needed = set(traced.graph.outputs)
    flags: list[_Flags | None] = []
    for flat in reversed(traced.equations):
        results = tuple(value in needed for value in flat.results)
        if not any(results) and not flat.equation.effects:
            flags.append(None)
            continue
        operands = bodies.operands(flat.equation, results)
        flags.append(operands)
        live = zip(flat.operands, operands, strict=True)
        needed.update(operand for operand, is_live in live if is_live and isinstance(operand, int))
    return tuple(reversed(flags))


class _Bodies:
    """Asks what equations need of their operands; equal calls share a body, which is walked once."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, _Flags], _Flags] = {}  # by identity of the jaxpr; the equations keep it alive

    def operands(self, equation: JaxprEqn, results: _Flags) -> _Flags:
        """Returns which operands the flagged results depend on."""
        name = equation.primitive.name
        if (called := called_jaxpr(equation)) is not None:
            return self.inputs(called, results)
        if name == "cond":
            branches = [self.inputs(branch, results) for branch in equation.params["branches"]]
            return (True, *map(any, zip(*branches, strict=True)))
        if name == "scan":
            return self.scan(equation, results)
        if name == "while":
            return self.while_loop(equation, results)
        return (True,) * len(equation.invars)

    def inputs(self, jaxpr: AnyJaxpr, results: _Flags) -> _Flags:
        """Returns which inputs of a body the flagged results depend on."""
        inner = open_jaxpr(jaxpr)
        key = (id(inner), results)
        if key not in self.known:
            needed = {var for var, flag in zip(inner.outvars, results, strict=True) if flag and isinstance(var, Var)}
            for equation in reversed(inner.eqns):
                flags = tuple(var in needed for var in equation.outvars)
                if any(flags) or equation.effects:
                    live = zip(equation.invars, self.operands(equation, flags), strict=True)
                    needed.update(var for var, flag in live if flag and isinstance(var, Var))
            self.known[key] = tuple(var in needed for var in inner.invars)
        return self.known[key]

    def scan(self, equation: JaxprEqn, results: _Flags) -> _Flags:
        num_consts, num_carry = scan_layout(equation)
        flags = results
        while True:
            inputs = self.inputs(equation.params["jaxpr"], flags)
            carried = _either(flags[:num_carry], inputs[num_consts : num_consts + num_carry])
            if carried == flags[:num_carry]:
                return (*inputs[:num_consts], *carried, *inputs[num_consts + num_carry :])
            flags = (*carried, *flags[num_carry:])

    def while_loop(self, equation: JaxprEqn, results: _Flags) -> _Flags:
        num_test, num_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
        test = self.inputs(equation.params["cond_jaxpr"], (True,))
        carried = _either(results, test[num_test:])
        while True:
            inputs = self.inputs(equation.params["body_jaxpr"], carried)
            wider = _either(carried, inputs[num_body:])
            if wider == carried:
                return (*test[:num_test], *inputs[:num_body], *carried)
            carried = wider


def _either(one: Sequence[bool], other: Sequence[bool]) -> _Flags:
    return tuple(a or b for a, b in zip(one, other, strict=True))
