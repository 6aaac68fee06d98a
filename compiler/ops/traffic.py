"""Bytes that one equation reads and writes, nothing fused.

Conventions:
- Every operand is read once and every result written once; literals cost nothing.
- A view (`is_view`: reshape, bitcast, a broadcast or transpose that moves no element, ...) moves no bytes.
- A slice or gather reads what it returns, not all of its operand; indices are read in full.
- A product by groups (`ragged_dot`) reads the weights of at most as many groups as there are rows.
- `dynamic_update_slice` and scatter write into their operand (`updates_operand`): they touch the update alone. A
  scatter that combines reads what it overwrites.
"""

from __future__ import annotations

from jax.extend.core import JaxprEqn, Literal

from .arrays import Atom, dtype_of, num_elements, shape_of

__all__ = ["array_bytes", "equation_traffic", "is_view", "updates_operand"]

_VIEWS = {
    *("reshape", "squeeze", "expand_dims", "bitcast_convert_type", "copy_p", "name", "stop_gradient"),
    *("optimization_barrier", "sharding_constraint", "layout_constraint", "mesh_cast", "pbroadcast", "pcast", "pvary"),
}

_PARTIAL_READS = ("dynamic_slice", "gather", "slice")


def array_bytes(atom: Atom) -> int:
    """Size of an operand or result in bytes; 0 for a literal scalar."""
    if isinstance(atom, Literal) and shape_of(atom) == ():
        return 0
    return num_elements(atom) * dtype_of(atom).itemsize


def is_view(equation: JaxprEqn) -> bool:
    """Whether the result is the first operand's buffer under another shape or type."""
    if len(equation.outvars) != 1 or not equation.invars or isinstance(equation.invars[0], Literal):
        return False
    name = equation.primitive.name
    operand, result = equation.invars[0], equation.outvars[0]
    if name == "convert_element_type":  # of a weak type to a strong one, say
        return dtype_of(operand) == dtype_of(result)
    if name == "broadcast_in_dim":  # broadcast dimensions are in ascending order, so elements keep theirs
        return num_elements(operand) == num_elements(result)
    if name == "transpose":
        sizes = shape_of(operand)
        moved = [axis for axis in equation.params["permutation"] if sizes[axis] != 1]
        return moved == sorted(moved)
    return name in _VIEWS


def updates_operand(equation: JaxprEqn) -> bool:
    """Whether the result may be written into the first operand's buffer, which keeps all it is not told to change."""
    name = equation.primitive.name
    return (name == "dynamic_update_slice" or name.startswith("scatter")) and not isinstance(
        equation.invars[0], Literal
    )


def equation_traffic(equation: JaxprEqn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the bytes read of each operand and the bytes written of each result."""
    name = equation.primitive.name
    reads = tuple(map(array_bytes, equation.invars))
    writes = tuple(map(array_bytes, equation.outvars))
    if is_view(equation):
        return (0,) * len(reads), (0,)
    if name in _PARTIAL_READS:
        return (min(reads[0], writes[0]), *reads[1:]), writes
    if name == "ragged_dot_general":
        return (reads[0], _touched_group_bytes(equation, reads[1]), *reads[2:]), writes
    if updates_operand(equation):
        update = _update_bytes(equation)
        touched = 0 if name in ("dynamic_update_slice", "scatter") else update
        return (min(touched, reads[0]), *reads[1:]), (min(update, writes[0]),)
    return reads, writes


def _touched_group_bytes(equation: JaxprEqn, weight_bytes: int) -> int:
    """Bytes of the groups that rows can belong to, where the weights are stacked by group."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    if not numbers.rhs_group_dimensions:
        return weight_bytes
    num_groups = shape_of(equation.invars[1])[numbers.rhs_group_dimensions[0]]
    num_rows = shape_of(equation.invars[0])[numbers.lhs_ragged_dimensions[0]]
    return weight_bytes * min(num_groups, num_rows) // max(num_groups, 1)


def _update_bytes(equation: JaxprEqn) -> int:
    """Bytes of the elements that a `dynamic_update_slice` or scatter changes."""
    update = equation.invars[1 if equation.primitive.name == "dynamic_update_slice" else 2]
    return num_elements(update) * dtype_of(update).itemsize
