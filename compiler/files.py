"""Files of a plan, written so that none is ever half there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigurationError

__all__ = ["write_files"]


def write_files(directory: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Writes files into a directory, which is made if it is not there; returns their paths.

    Raises:
        ConfigurationError: if the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            temporary = directory / f".{name}.part"
            temporary.write_bytes(data)
            temporary.replace(directory / name)
    except OSError as error:
        raise ConfigurationError(f"cannot write {directory}: {error.strerror}") from None
    return [directory / name for name in files]
