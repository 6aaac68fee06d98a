"""A record of files whose digest was checked once, so that a bundle is not hashed anew each time it is opened.

A file counts as the same while path, device, inode, size, both times and the digest it was checked against are the
same. The record is in the user's cache, one small file per verified file; a damaged or missing one costs a hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pydantic

from ...models.cache import cache_directory

__all__ = ["FileIdentity", "is_recorded", "record"]


@dataclass(frozen=True)
class FileIdentity:
    """What must not have changed for a file to be the one that was verified."""

    path: str  # absolute, without symbolic links
    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int  # unlike mtime, cannot be set back by a program
    sha256: str

    @staticmethod
    def of(path: Path, status: os.stat_result, sha256: str) -> FileIdentity:
        """Returns the identity of a file with the digest that it has or should have."""
        return FileIdentity(
            os.fsencode(path).decode(errors="backslashreplace"),  # names need not be text, JSON does
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            sha256,
        )


_ADAPTER = pydantic.TypeAdapter(FileIdentity)


def is_recorded(identity: FileIdentity) -> bool:
    """Returns whether this very file was verified before."""
    try:
        return _ADAPTER.validate_json(_record_path(identity).read_bytes(), strict=True) == identity
    except (OSError, pydantic.ValidationError):
        return False


def record(identity: FileIdentity) -> None:
    """Notes that a file was verified. Does nothing where the cache cannot be written: it will be hashed again."""
    path = _record_path(identity)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            try:
                file.write(_ADAPTER.dump_json(identity))
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise


def _record_path(identity: FileIdentity) -> Path:
    name = hashlib.sha256(identity.path.encode()).hexdigest()
    return cache_directory() / "verified" / f"{name}.json"
