"""Damaged checkpoints, the same for the same number, and a process that opens them and says what came of each.

    python tests/malformed.py FORM BASE FIRST LAST

opens the mutants FIRST ... LAST - 1 of the model at BASE (FORM is "gguf" or "huggingface") with all their tensors, and
writes a line of JSON for each: its number, what was done to it, what came of it, and by how much memory grew. A crash
ends the process; what took too long or too much memory says so.
"""

from __future__ import annotations

import json
import math
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from gguf import GGUFReader

from plait.errors import PlaitError
from plait.models.checkpoint import open_checkpoint

__all__ = ["mutate"]

SECONDS = 10  # that opening and reading may take
ADDRESS_SPACE_BYTES = 4 << 30  # that may be mapped beyond what the libraries have

_NUMBERS = (0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1)
_VALUES = (
    *(-1, 0, 1, 3, 2**24, 2**31, 10**12, 10**30, -(2**63), 0.5, -0.0, 1e-320, 1e308),
    *(math.nan, math.inf, -math.inf, None, True, "", "x", "4", "\0", "../../etc", [], [1, 2], [None], {}, {"a": {}}),
)
_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "U8", "I8", "I64", "BOOL", "F4", "")


def mutate(form: str, base: Path, number: int, directory: Path) -> tuple[Path, str]:
    """Writes a damaged copy of a model; returns its path and what was done to it.

    Args:
        form: "gguf" or "huggingface".
        base: The file or directory.
        number: Which one.
        directory: Where the copy is written.
    """
    chance = random.Random(f"{form}/{base.name}/{number}")
    if form == "gguf":
        damage = chance.choice(_GGUF_DAMAGES)
        data = bytearray(base.read_bytes())
        damage(chance, data, base)
        path = directory / "model.gguf"
        path.write_bytes(data)
    else:
        damage = chance.choice(_DIRECTORY_DAMAGES)
        path = directory / "model"
        shutil.copytree(base, path)
        damage(chance, path)
    return path, damage.__name__.lstrip("_")


def _flip(chance: random.Random, data: bytearray, base: Path) -> None:
    """Overwrites some bytes, most often in the header."""
    del base
    end = len(data) if chance.random() < 0.2 else min(len(data), 12_000)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        data[chance.randrange(end)] = chance.randrange(256)


def _truncate(chance: random.Random, data: bytearray, base: Path) -> None:
    del base
    del data[chance.randrange(len(data)) :]


def _insert(chance: random.Random, data: bytearray, base: Path) -> None:
    """Moves all that follows."""
    del base
    position = chance.randrange(min(len(data), 12_000))
    data[position:position] = chance.randbytes(chance.choice((1, 4, 8, 100)))


def _remove(chance: random.Random, data: bytearray, base: Path) -> None:
    del base
    position = chance.randrange(min(len(data), 12_000))
    del data[position : position + chance.choice((1, 4, 8, 100))]


def _overwrite_number(chance: random.Random, data: bytearray, base: Path) -> None:
    """Puts a hostile number in the place of a count, length, type, dimension, offset or value."""
    offset, size = chance.choice(_numbers(base))
    number = chance.choice(_NUMBERS) if chance.random() < 0.7 else chance.getrandbits(64)
    data[offset : offset + size] = (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _overwrite_float(chance: random.Random, data: bytearray, base: Path) -> None:
    offset, _ = chance.choice([place for place in _numbers(base) if place[1] == 4])
    value = chance.choice((math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-45, 3e38))
    data[offset : offset + 4] = struct.pack("<f", value)


def _swap_numbers(chance: random.Random, data: bytearray, base: Path) -> None:
    """Swaps two numbers: of a tensor's dimensions, or any two of one size."""
    first, size = chance.choice(_numbers(base))
    near = [offset for offset, other in _numbers(base) if other == size and abs(offset - first) < 64]
    second = chance.choice(near)
    data[first : first + size], data[second : second + size] = data[second : second + size], data[first : first + size]


def _rename_tensor(chance: random.Random, data: bytearray, base: Path) -> None:
    """Lets a tensor go missing, most often by giving another its name."""
    del base
    layers = [b"blk.0.", b"blk.1."]
    chance.shuffle(layers)
    places = [at for at in range(min(len(data), 40_000)) if data[at : at + 6] == layers[0]]
    if places:
        at = chance.choice(places)
        data[at : at + 6] = chance.choice((layers[1], b"blk.9.", b"\xff\xfe\0\0\0\0"))


def _numbers(base: Path) -> list[tuple[int, int]]:
    """Returns offset and size of every number in the header of an undamaged file."""
    reader, found = GGUFReader(base), [(0, 4), (4, 4), (8, 8), (16, 8)]
    fields = [field for field in reader.fields.values() if not field.name.startswith("GGUF.")]
    for field in [*fields, *(tensor.field for tensor in reader.tensors)]:
        offset = field.offset
        for part in field.parts[:64]:  # of long arrays the beginning
            if part.dtype.itemsize > 1 or field.parts[-1] is part:
                found += [(offset + i * part.dtype.itemsize, part.dtype.itemsize) for i in range(min(len(part), 4))]
            offset += part.nbytes
    return found


_GGUF_DAMAGES: tuple[Callable[[random.Random, bytearray, Path], None], ...] = (
    *(_flip, _truncate, _insert, _remove, _overwrite_float, _swap_numbers, _rename_tensor),
    *(_overwrite_number,) * 4,
)


def _damage_bytes(chance: random.Random, directory: Path) -> None:
    file = _any_file(chance, directory)
    data = bytearray(file.read_bytes())
    chance.choice((_flip, _truncate, _insert, _remove))(chance, data, file)
    file.write_bytes(data)


def _damage_file(chance: random.Random, directory: Path) -> None:
    """Removes a file, or puts something else in its place."""
    file = _any_file(chance, directory)
    file.unlink()
    kind = chance.randrange(5)
    if kind == 1:
        file.mkdir()
    elif kind > 1:
        file.write_bytes((b"", b"\xff\xfe\x00", b"null")[kind - 2])


def _damage_config(chance: random.Random, directory: Path) -> None:
    """Gives fields of config.json values that they cannot have."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for _ in range(chance.choice((1, 1, 2, 4))):
        _damage_value(chance, config)
    path.write_text(json.dumps(config))


def _damage_tokenizer(chance: random.Random, directory: Path) -> None:
    path = directory / chance.choice(("tokenizer.json", "tokenizer_config.json"))
    tokenizer = json.loads(path.read_text())
    _damage_value(chance, tokenizer)
    path.write_text(json.dumps(tokenizer))


def _nest(chance: random.Random, directory: Path) -> None:
    """Nests JSON deeper than parsers recurse: a whole file, or a value in it."""
    file = _any_file(chance, directory, "*.json")
    deep = chance.choice(("[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000))
    if chance.random() < 0.5:
        deep = file.read_text().rstrip()[:-1] + ', "deep": ' + deep + "}"
    file.write_text(deep)


def _damage_header(chance: random.Random, directory: Path) -> None:
    """Changes what the header of safetensors says of a tensor; sometimes its own length."""
    path = _any_file(chance, directory, "*.safetensors")
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = chance.choice([name for name in header if name != "__metadata__"])
    entry, kind = header[name], chance.randrange(8)
    if kind == 0:
        entry["dtype"] = chance.choice(_DTYPES)
    elif kind == 1:
        entry["shape"] = entry["shape"][::-1] if chance.random() < 0.5 else [*entry["shape"], 1]
    elif kind == 2:
        entry["shape"][0] = chance.choice((-1, 0, 2**40, 2**63, 2**64, 0.5))
    elif kind == 3:
        entry["data_offsets"][chance.randrange(2)] = chance.choice((-1, 0, 1, 2**40, 2**63, len(data)))
    elif kind == 4:
        del header[name]
    elif kind == 5:
        header[f"{name}.other"] = header.pop(name)
    elif kind == 6:
        header["__metadata__"] = chance.choice(_VALUES[-8:])
    changed = json.dumps(header, allow_nan=False).encode()
    length = chance.choice((0, 1, 2**31, 2**60, 2**63, 2**64 - 1)) if kind == 7 else len(changed)
    path.write_bytes(length.to_bytes(8, "little") + changed + data[8 + size :])


def _damage_index(chance: random.Random, directory: Path) -> None:
    """Adds an index of shards that points somewhere else, or to nothing."""
    files: object = chance.choice(
        (
            *({"a": "../model.safetensors"}, {"a": "/etc/passwd"}, {"a": "missing.safetensors"}, {"a": ""}, {"a": "."}),
            *({"a": ".."}, {"a": "config.json"}, {"a": "a\0b"}, {"a": 3}, {"a": None}, {}, [], None),
            *({"a": "x" * 5000}, {"a": "model.safetensors\n"}, {str(i): f"{i}.safetensors" for i in range(5000)}),
        )
    )
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def _damage_value(chance: random.Random, node: object) -> None:
    """Replaces or removes one value, at any depth."""
    while isinstance(node, dict | list) and node:
        key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
        child = node[key]  # type: ignore[index]
        if isinstance(child, dict | list) and child and chance.random() < 0.7:
            node = child
        elif isinstance(node, dict) and chance.random() < 0.15:
            del node[key]
            return
        else:
            node[key] = chance.choice(_VALUES)  # type: ignore[index]
            return


def _any_file(chance: random.Random, directory: Path, pattern: str = "*") -> Path:
    return chance.choice(sorted(path for path in directory.glob(pattern) if path.is_file()))


_DIRECTORY_DAMAGES: tuple[Callable[[random.Random, Path], None], ...] = (
    *(_damage_bytes, _damage_bytes, _damage_file, _damage_tokenizer, _nest, _damage_index),
    *(_damage_config,) * 4,
    *(_damage_header,) * 3,
)


class TooSlow(BaseException):
    """Opening took longer than it may; not an exception that anything catches."""


def _outcome(path: Path) -> str:
    """Returns "opened", "refused", or what else happened."""
    signal.alarm(SECONDS)
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.tensor_names:
            checkpoint.read(name)
    except PlaitError as error:
        return "refused" if len(str(error).splitlines()) == 1 else f"a message of several lines: {error}"
    except TooSlow:
        return f"took longer than {SECONDS} s"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return "opened"


def _alarm(signal_number: int, frame: object) -> None:
    del signal_number, frame
    raise TooSlow


def _peak_bytes() -> int:
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def _limit_memory() -> None:
    if sys.platform != "linux":  # others don't say how much is mapped already
        return
    mapped_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + ADDRESS_SPACE_BYTES, resource.RLIM_INFINITY))


def main(form: str, base: Path, first: int, last: int) -> None:
    """Opens mutants and writes what came of each."""
    signal.signal(signal.SIGALRM, _alarm)
    undamaged = _outcome(base)
    print(json.dumps({"number": -1, "damage": "none", "outcome": undamaged, "growth_bytes": 0}), flush=True)
    before = _peak_bytes()
    _limit_memory()
    for number in range(first, last):
        with tempfile.TemporaryDirectory() as directory:
            path, damage = mutate(form, base, number, Path(directory))
            outcome = _outcome(path)
        growth = _peak_bytes() - before
        line = {"number": number, "damage": damage, "outcome": outcome[:500], "growth_bytes": growth}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
