"""Collectives read off compiled HLO: what a program really sends, to be compared with what a plan says it sends.

XLA's text is parsed computation by computation. What is in the body of a loop counts as often as the loop runs, if XLA
knows how often; what is merged into one instruction with a tuple for a result counts as its parts. An all-to-all is the
exception: XLA's CPU backend writes it as a tuple of the pieces of one array.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

from ...errors import VerificationError

__all__ = ["UNMERGED", "HloCollective", "collectives_in"]

_MERGING = ("all-reduce-combiner", "cpu-all-reduce-combiner", "all-gather-combiner", "reduce-scatter-combiner", "cse")
UNMERGED = MappingProxyType({"xla_disable_hlo_passes": ",".join(_MERGING)})
"""Compiler options under which every collective of a program stays one: none is merged with others or an equal one."""

_KINDS = {
    "all-reduce": "all_reduce",
    "all-gather": "all_gather",
    "reduce-scatter": "reduce_scatter",
    "all-to-all": "all_to_all",
    "ragged-all-to-all": "all_to_all",
    "collective-permute": "permute",
    "collective-broadcast": "broadcast",
}
_START = "-start"

_COMMENT = re.compile(r"/\*.*?\*/")
_HEADER = re.compile(r"(ENTRY )?%?([\w.$-]+) .*\{")
_INSTRUCTION = re.compile(r"(?:ROOT )?%?([\w.$-]+) = (.*)")
_OPCODE = re.compile(r"([\w-]+)\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(body|condition|to_apply|calls|called_computations|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.$-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SCOPE = re.compile(r'op_name="([^"]*)"')
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']*)'(?:=|:\(\d+\))?(\d+)?")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")
_DEVICES = re.compile(r"(?:num_partitions|replica_count)=(\d+)")


@dataclass(frozen=True)
class HloCollective:
    """One collective of a compiled program."""

    kind: str  # all_reduce | all_gather | reduce_scatter | all_to_all | permute | broadcast
    elements: int  # of one device's result
    dtype: str  # HLO's name, e.g. "f32"; XLA's CPU backend reduces bf16 in f32
    group_size: int  # devices that take part together; 2 for a permute, whose messages go from one device to one
    count: int | None  # executions in one run of the program; None in a loop of unknown length
    scope: str  # `op_name` of the equation that it is from


@dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    result: str  # its type
    attributes: str


def collectives_in(text: str) -> tuple[HloCollective, ...]:
    """Returns the collectives of a compiled program, in the order of its text.

    Args:
        text: From `jax.stages.Compiled.as_text()`.

    Raises:
        VerificationError: if it is no HLO module, or says of a collective what cannot be read.
    """
    computations, entry = _computations(text)
    num_devices = math.prod(int(count) for count in _DEVICES.findall(text.partition("\n")[0]))
    runs = _runs(computations, entry)
    return tuple(
        collective
        for name, instructions in computations.items()
        for instruction in instructions
        if name in runs
        for collective in _read(instruction, runs[name], num_devices)
    )


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions of each computation, and the name of the one that is run."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in map(str.strip, _COMMENT.sub("", text).splitlines()):
        if (header := _HEADER.fullmatch(line)) and " = " not in line.split("(", 1)[0]:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (match := _INSTRUCTION.fullmatch(line)):
            current.append(_instruction(match[1], match[2]))
    if not entry:
        raise VerificationError("the text is no compiled HLO module: it has no ENTRY computation")
    return computations, entry


def _instruction(name: str, text: str) -> _Instruction:
    end = _end_of_type(text)
    opcode = _OPCODE.match(text, end + 1)
    return _Instruction(name, opcode[1] if opcode else "", text[:end], text[end:])


def _end_of_type(text: str) -> int:
    """Returns where the type at the beginning of a text ends; a tuple's has spaces in it."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == " ":
            return position
    return len(text)


def _runs(computations: dict[str, list[_Instruction]], entry: str) -> dict[str, int | None]:
    """Returns how often each computation that is called runs; None if that is unknown."""
    runs: dict[str, int | None] = {}

    def visit(name: str, count: int | None) -> None:
        known = runs.get(name, 0)
        runs[name] = None if count is None or known is None else known + count
        for instruction in computations[name]:
            for called, times in _calls(instruction):
                visit(called, None if count is None or times is None else count * times)

    visit(entry, 1)
    return runs


def _calls(instruction: _Instruction) -> Iterator[tuple[str, int | None]]:
    trips = _TRIPS.search(instruction.attributes)
    for kind, called in _CALLED.findall(instruction.attributes):
        times: int | None = 1
        if instruction.opcode == "while":
            times = None if trips is None else int(trips[1]) + (kind == "condition")
        elif instruction.opcode == "conditional":
            times = None  # which branch runs depends on data
        for name in called.strip("{}").split(","):
            yield name.strip().removeprefix("%"), times


def _read(instruction: _Instruction, count: int | None, num_devices: int) -> Iterator[HloCollective]:
    kind = _KINDS.get(instruction.opcode.removesuffix(_START))
    if kind is None:
        return
    sizes = _sizes(instruction)
    if kind == "all_to_all":
        sizes = [(sizes[0][0], sum(size for _, size in sizes))]
    group_size = _group_size(instruction, num_devices)
    scope = _SCOPE.search(instruction.attributes)
    for dtype, elements in sizes:
        yield HloCollective(kind, elements, dtype, group_size, count, scope[1] if scope else "")


def _sizes(instruction: _Instruction) -> list[tuple[str, int]]:
    """Returns type and elements of each array that a collective gives."""
    arrays = [
        (dtype, math.prod(int(size) for size in dims.split(",") if size))
        for dtype, dims in _ARRAY.findall(instruction.result)
    ]
    if not arrays:
        raise VerificationError(f"cannot read the result of HLO instruction {instruction.name}: {instruction.result}")
    if not instruction.opcode.endswith(_START) or instruction.opcode == "all-reduce-start":
        return arrays
    if instruction.opcode == "collective-permute-start":
        return arrays[1:2]  # operand, result, and where the backend has them two words of context
    return arrays[len(arrays) // 2 :]  # operands, then results


def _group_size(instruction: _Instruction, num_devices: int) -> int:
    attributes = instruction.attributes
    if _PAIRS.search(attributes):
        return 2
    if listed := _LISTED_GROUPS.search(attributes):
        return len(listed[1].split(","))
    if counted := _COUNTED_GROUPS.search(attributes):
        return int(counted[1])
    if named := _MESH_GROUPS.search(attributes):
        sizes = {axis: int(size) for axis, size in _MESH_AXIS.findall(named[1])}
        return math.prod(int(size) if size else sizes[axis] for axis, size in _MESH_AXIS.findall(named[2]))
    return num_devices  # no groups: all of them
