"""Targets as TOML text: what `load_target` reads.

The tables of a target are two levels deep and hold numbers, booleans and strings, so a few lines write them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from ..errors import TargetError
from .target import Target

__all__ = ["target_to_toml", "write_target"]


def target_to_toml(target: Target) -> str:
    """Returns the TOML text of which `load_target` makes an equal target."""
    return "\n".join(_lines(asdict(target), ())) + "\n"


def write_target(target: Target, path: str | Path) -> None:
    """Writes a target file; one that is there already is replaced when the new one is complete.

    Raises:
        TargetError: if it cannot be written.
    """
    path = Path(path)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as directory:
            temporary = Path(directory) / path.name
            temporary.write_text(target_to_toml(target), encoding="utf-8")
            temporary.replace(path)
    except OSError as error:
        raise TargetError(f"cannot write target file {path}: {error.strerror}; choose another path") from None


def _lines(table: Mapping[str, object], path: tuple[str, ...]) -> Iterator[str]:
    """Yields the values of a table, then its tables, as TOML wants them."""
    for name, value in table.items():
        if not isinstance(value, Mapping) and value is not None:
            yield f"{_text(name)} = {_literal(value)}"
    for name, value in table.items():
        if isinstance(value, Mapping):
            inner = (*path, _text(name))
            if not value or not all(isinstance(each, Mapping) for each in value.values()):
                yield f"\n[{'.'.join(inner)}]"
            yield from _lines(value, inner)


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, int | float) else _string(str(value))


def _text(key: str) -> str:
    """Returns a key, quoted unless it is a word."""
    return key if key.isidentifier() and key.isascii() else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are TOML's as well, but for DEL, which JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
