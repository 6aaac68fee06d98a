"""Rules of equations that have a body: named ops, calls, loops and branches.

The factors are found by propagation: every dim of every value in the body is a stretch of atoms, and the rule of each
equation unites the atoms that it divides alike. What any equation keeps whole stays whole. A sum over a divided atom
may leave the body as a partial result, if all equations that it passes on its way are linear in it; what is added to it
on the way is added by one device. Otherwise the atom is blocked, for inside a body nothing is communicated. One device
then computes its part by evaluating the body on its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal, Var
from jaxtyping import Array

from ...mesh import Mesh, Reduction
from ..arrays import AnyJaxpr, Atom, called_jaxpr, closed_over, is_key, open_jaxpr, shape_of
from ..loops import scan_layout
from .atoms import Atoms
from .division import Division
from .rule import Access, Rule

__all__ = ["Composite", "Derive", "EvaluateEquation", "analyse", "is_composite"]

Derive: TypeAlias = Callable[[JaxprEqn], Rule]
EvaluateEquation: TypeAlias = Callable[[JaxprEqn, Sequence[Array], Division], Sequence[Array]]
_Stretches: TypeAlias = list[tuple[int, ...]]  # of each dim of a value its atoms
_Partial: TypeAlias = dict[int, Reduction]  # by leaf
_LOOPS = ("scan", "while", "cond")


def is_composite(equation: JaxprEqn) -> bool:
    """Whether an equation has a body that can be looked into."""
    return equation.primitive.name in _LOOPS or called_jaxpr(equation) is not None


@dataclass(frozen=True)
class _Step:
    equation: JaxprEqn
    rule: Rule
    factors: tuple[tuple[int, ...], ...]  # of each factor of the rule its atoms
    masks: dict[int, set[int]]  # operands that count on the first part of these leaves only: a bias on a partial sum


@dataclass(frozen=True)
class _Body:
    """A jaxpr that was looked through."""

    jaxpr: AnyJaxpr
    steps: tuple[_Step, ...]
    stretches: dict[Var, _Stretches]
    results: tuple[_Stretches, ...]


@dataclass(frozen=True)
class Composite:
    """The rule of an equation with a body, and what is needed to evaluate it."""

    rule: Rule
    _atoms: Atoms
    _bodies: tuple[_Body, ...]
    _leaves: tuple[int, ...]  # of each factor

    def is_itself(self, division: Division) -> bool:
        """Whether one device's part is the op itself applied to its parts: nothing inside counts on one device only."""
        axes = dict(zip(self._leaves, division.axes, strict=True))
        masks = (leaves for body in self._bodies for step in body.steps for leaves in step.masks.values())
        return not any(axes.get(leaf) for leaves in masks for leaf in leaves)

    def evaluate(
        self, equation: JaxprEqn, operands: Sequence[Array], division: Division, evaluate: EvaluateEquation
    ) -> list[Array]:
        """Computes one device's part; only inside `shard_map`."""
        axes = dict(zip(self._leaves, division.axes, strict=True))
        run = [_Run(body, self._atoms, division.mesh, axes, evaluate) for body in self._bodies]
        return list(_EVALUATE.get(equation.primitive.name, _call)(equation, operands, run))


def analyse(equation: JaxprEqn, derive: Derive) -> Composite:
    """Looks through the bodies of an equation.

    Args:
        equation: One for which `is_composite`.
        derive: Gives the rules of the equations inside.
    """
    look = _Look(derive)
    operands = [look.fresh(atom) for atom in equation.invars]
    results = _LOOK.get(equation.primitive.name, _look_call)(look, equation, operands)
    partial = look.finish(operands, results)
    return _composite(equation, look, operands, results, partial)


@dataclass
class _Look:
    derive: Derive
    atoms: Atoms = field(default_factory=Atoms)
    bodies: list[_Body] = field(default_factory=list)
    outer: list[bool] = field(default_factory=list)  # of each body, whether partial results may leave it

    def fresh(self, atom: Atom, *, blocked: bool = False) -> _Stretches:
        return [self.atoms.new(size, blocked=blocked or is_key(atom)) for size in shape_of(atom)]

    def unite(self, one: _Stretches, other: _Stretches) -> None:
        for left, right in zip(one, other, strict=True):
            self.atoms.unite(left, right)

    def body(self, jaxpr: AnyJaxpr, operands: Sequence[_Stretches], *, leaves_partial: bool) -> list[_Stretches]:
        """Looks through a jaxpr that is called with operands of these stretches; returns those of its results."""
        inner = open_jaxpr(jaxpr)
        stretches: dict[Var, _Stretches] = dict(zip(inner.invars, operands, strict=True))
        stretches.update((var, self.fresh(var)) for var in inner.constvars)
        steps: list[_Step] = []
        for equation in inner.eqns:
            steps.append(self._step(equation, stretches))
        results = [self.fresh(atom) if isinstance(atom, Literal) else stretches[atom] for atom in inner.outvars]
        self.bodies.append(_Body(jaxpr, tuple(steps), stretches, tuple(results)))
        self.outer.append(leaves_partial)
        return results

    def _step(self, equation: JaxprEqn, stretches: dict[Var, _Stretches]) -> _Step:
        rule = self.derive(equation)
        factors = tuple(self.atoms.new(size, blocked=f in rule.blocked) for f, size in enumerate(rule.sizes))
        for atom, access in zip(equation.invars, rule.operands, strict=True):
            if not isinstance(atom, Literal):
                self._match(stretches[atom], access, factors)
        for var, access in zip(equation.outvars, rule.results, strict=True):
            stretches[var] = self.fresh(var)
            self._match(stretches[var], access, factors)
        return _Step(equation, rule, factors, {})

    def _match(self, stretches: _Stretches, access: Access, factors: Sequence[tuple[int, ...]]) -> None:
        for stretch, dim in zip(stretches, access.dims, strict=True):
            atoms = [atom for factor in dim for atom in factors[factor]]
            if stretch and self.atoms.size(stretch) == self.atoms.size(atoms):
                self.atoms.unite(stretch, atoms)
            else:
                self.atoms.block(stretch)

    def finish(self, operands: Sequence[_Stretches], results: Sequence[_Stretches]) -> list[_Partial]:
        """Blocks what cannot be divided; returns in what the results of the last body are partial."""
        for stretches in (*operands, *results):
            self._block_minor(stretches)
        for body in self.bodies:
            for step in body.steps:
                self._block_minor(step.factors)
        partial: list[_Partial] = []
        for body, leaves_partial in zip(self.bodies, self.outer, strict=True):
            partial = self._partial_results(body)
            if not leaves_partial:
                self.atoms.block(leaf for each in partial for leaf in each)
        return partial

    def _block_minor(self, stretches: Sequence[tuple[int, ...]]) -> None:
        """Blocks all but the major leaf of each stretch, and a leaf that is in two of them."""
        seen: set[int] = set()
        for stretch in stretches:
            leaves = self.atoms.leaves(stretch)
            self.atoms.block(leaves[1:])
            self.atoms.block(leaf for leaf in leaves if leaf in seen)
            seen.update(leaves)

    def _partial_results(self, body: _Body) -> list[_Partial]:
        inner = open_jaxpr(body.jaxpr)
        partial: dict[Var, _Partial] = {}
        zeros: set[Var] = set()
        for step in body.steps:
            made = self._partial_of_step(step, partial, zeros)
            partial.update(zip(step.equation.outvars, made, strict=True))
            variables = {i: var for i, var in enumerate(step.equation.invars) if not isinstance(var, Literal)}
            if any(all(variables.get(i) in zeros for i in positions) for positions in step.rule.linear):
                zeros.update(step.equation.outvars)
        return [{} if isinstance(atom, Literal) else partial.get(atom, {}) for atom in inner.outvars]

    def _partial_of_step(self, step: _Step, partial: Mapping[Var, _Partial], zeros: set[Var]) -> list[_Partial]:
        majors = [self.atoms.leaves(factor)[:1] for factor in step.factors]
        divided = {leaf for major in majors for leaf in major}
        held = {i: partial.get(var, {}) for i, var in enumerate(step.equation.invars) if not isinstance(var, Literal)}
        blank = {i for i, var in enumerate(step.equation.invars) if not isinstance(var, Literal) and var in zeros}
        wanted = {(i, leaf) for i, acc in enumerate(step.rule.operands) for f, _ in acc.partial for leaf in majors[f]}
        for i, leaf in wanted:
            if i not in blank and held.get(i, {}).get(leaf) != "sum":
                self.atoms.block([leaf])
        passed: _Partial = {}
        for leaf in {leaf for each in held.values() for leaf in each}:
            positions = {i for i, each in held.items() if leaf in each}
            if all((i, leaf) in wanted for i in positions):
                continue
            is_sum = all(held[i][leaf] == "sum" for i in positions)
            linear = next((each for each in step.rule.linear if positions <= each), None)
            if is_sum and linear is not None and leaf not in divided:
                passed[leaf] = "sum"
                for i in linear - positions - blank:
                    step.masks.setdefault(i, set()).add(leaf)
            else:
                self.atoms.block([leaf])
        return [
            {**passed, **{leaf: how for factor, how in access.partial for leaf in majors[factor]}}
            for access in step.rule.results
        ]


def _composite(
    equation: JaxprEqn,
    look: _Look,
    operands: Sequence[_Stretches],
    results: Sequence[_Stretches],
    partial: Sequence[_Partial],
) -> Composite:
    atoms = look.atoms
    numbers: dict[int, int] = {}
    for stretches in (*operands, *results):
        for stretch in stretches:
            for leaf in atoms.leaves(stretch):
                numbers.setdefault(leaf, len(numbers))

    def dims(stretches: _Stretches) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(numbers[leaf] for leaf in atoms.leaves(stretch)) for stretch in stretches)

    def sums(each: _Partial) -> tuple[tuple[int, Reduction], ...]:
        return tuple((numbers[leaf], how) for leaf, how in each.items() if leaf in numbers)

    rule = Rule(
        sizes=tuple(atoms.sizes[leaf] for leaf in numbers),
        operands=tuple(Access(dims(stretches)) for stretches in operands),
        results=tuple(Access(dims(stretches), sums(each)) for stretches, each in zip(results, partial, strict=True)),
        blocked=frozenset(number for leaf, number in numbers.items() if atoms.is_blocked(leaf)),
    )
    return Composite(rule, atoms, tuple(look.bodies), tuple(numbers))


def _look_call(look: _Look, equation: JaxprEqn, operands: list[_Stretches]) -> list[_Stretches]:
    jaxpr = called_jaxpr(equation)
    assert jaxpr is not None
    return look.body(jaxpr, operands, leaves_partial=True)


def _look_scan(look: _Look, equation: JaxprEqn, operands: list[_Stretches]) -> list[_Stretches]:
    num_consts, num_carry = scan_layout(equation)
    scanned = operands[num_consts + num_carry :]
    for stretches in scanned:
        look.atoms.block(stretches[0])
    inner = [*operands[: num_consts + num_carry], *(stretches[1:] for stretches in scanned)]
    results = look.body(equation.params["jaxpr"], inner, leaves_partial=False)
    for carried, result in zip(operands[num_consts:], results[:num_carry], strict=False):
        look.unite(carried, result)
    length = equation.params["length"]
    stacked = [[look.atoms.new(length, blocked=True), *stretches] for stretches in results[num_carry:]]
    return [*operands[num_consts : num_consts + num_carry], *stacked]


def _look_while(look: _Look, equation: JaxprEqn, operands: list[_Stretches]) -> list[_Stretches]:
    num_cond, num_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    carried = operands[num_cond + num_body :]
    look.body(equation.params["cond_jaxpr"], [*operands[:num_cond], *carried], leaves_partial=False)
    results = look.body(
        equation.params["body_jaxpr"], [*operands[num_cond : num_cond + num_body], *carried], leaves_partial=False
    )
    for one, other in zip(carried, results, strict=True):
        look.unite(one, other)
    return carried


def _look_cond(look: _Look, equation: JaxprEqn, operands: list[_Stretches]) -> list[_Stretches]:
    branches = [look.body(branch, operands[1:], leaves_partial=False) for branch in equation.params["branches"]]
    results = [look.fresh(var) for var in equation.outvars]
    for branch in branches:
        for one, other in zip(results, branch, strict=True):
            look.unite(one, other)
    return results


_LOOK = {"scan": _look_scan, "while": _look_while, "cond": _look_cond}


@dataclass(frozen=True)
class _Run:
    """A body as one device evaluates it."""

    body: _Body
    atoms: Atoms
    mesh: Mesh
    axes: Mapping[int, tuple[str, ...]]  # by leaf
    evaluate: EvaluateEquation

    def __call__(self, *operands: Array) -> list[Array]:
        inner = open_jaxpr(self.body.jaxpr)
        values: dict[Var, Array] = dict(zip(inner.invars, operands, strict=True))
        for var, const in zip(inner.constvars, closed_over(self.body.jaxpr), strict=True):
            values[var] = self._part(jnp.asarray(const), self.body.stretches[var])

        def read(atom: Atom) -> Array:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for step in self.body.steps:
            axes = tuple(self._axes(factor) for factor in step.factors)
            division = Division(step.rule, self.mesh, axes)
            held = [self._masked(read(atom), step.masks.get(i)) for i, atom in enumerate(step.equation.invars)]
            made = self.evaluate(step.equation, held, division)
            values.update(zip(step.equation.outvars, made, strict=True))
        return [
            self._part(jnp.asarray(atom.val), stretches) if isinstance(atom, Literal) else values[atom]
            for atom, stretches in zip(inner.outvars, self.body.results, strict=True)
        ]

    def _masked(self, array: Array, leaves: set[int] | None) -> Array:
        """Returns zeros on all devices but the first along each of some leaves."""
        for leaf in sorted(leaves or ()):
            if axes := self.axes.get(leaf):
                array = jnp.where(jax.lax.axis_index(axes) == 0, array, jnp.zeros_like(array))
        return array

    def _axes(self, stretch: tuple[int, ...]) -> tuple[str, ...]:
        leaves = self.atoms.leaves(stretch)
        return self.axes.get(leaves[0], ()) if leaves else ()

    def _part(self, array: Array, stretches: _Stretches) -> Array:
        """Takes this device's part of an array that every device has."""
        for dim, stretch in enumerate(stretches):
            if axes := self._axes(stretch):
                size = array.shape[dim] // self.mesh.num_shards(axes)
                array = jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index(axes) * size, size, dim)
        return array


def _call(equation: JaxprEqn, operands: Sequence[Array], run: list[_Run]) -> Sequence[Array]:
    del equation
    return run[0](*operands)


def _scan(equation: JaxprEqn, operands: Sequence[Array], run: list[_Run]) -> Sequence[Array]:
    num_consts, num_carry = scan_layout(equation)
    params = equation.params

    def body(carry: tuple[Array, ...], scanned: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        results = run[0](*operands[:num_consts], *carry, *scanned)
        return tuple(results[:num_carry]), tuple(results[num_carry:])

    carry, stacked = jax.lax.scan(
        body,
        tuple(operands[num_consts : num_consts + num_carry]),
        tuple(operands[num_consts + num_carry :]),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *stacked]


def _while(equation: JaxprEqn, operands: Sequence[Array], run: list[_Run]) -> Sequence[Array]:
    num_cond, num_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    of_body = operands[num_cond : num_cond + num_body]
    return jax.lax.while_loop(
        lambda carry: run[0](*operands[:num_cond], *carry)[0],
        lambda carry: tuple(run[1](*of_body, *carry)),
        tuple(operands[num_cond + num_body :]),
    )


def _cond(equation: JaxprEqn, operands: Sequence[Array], run: list[_Run]) -> Sequence[Array]:
    del equation
    return jax.lax.switch(operands[0], [lambda *inner, each=each: tuple(each(*inner)) for each in run], *operands[1:])


_EVALUATE = {"scan": _scan, "while": _while, "cond": _cond}
