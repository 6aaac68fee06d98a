"""Writing a bundle: all of it, or nothing.

Files are collected in a hidden directory beside the destination. `commit` digests them, writes the manifest, flushes
everything to the disk and renames the directory into place. Whatever goes wrong before that, the destination is as it
was; a process that is killed leaves only the hidden directory, which the next writer of the same bundle removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ...errors import BundleError
from .consistency import MANIFEST_FILE, check_manifest, check_relative
from .digests import digest_file
from .manifest import FileEntry, Manifest

__all__ = ["BundleWriter"]


class BundleWriter:
    """Writes one bundle; a context manager, whose exit without `commit` leaves nothing behind.

    with BundleWriter("agent.plait") as writer:
        writer.add_bytes("models/chat/tokenizer.json", tokenizer)
        write_weights(writer.weights_path("models/chat/weights.safetensors"), tensors, specs)
        manifest = writer.commit(manifest_without_files)
    """

    def __init__(self, destination: str | Path) -> None:
        """Looks at the destination, before any work is done for it.

        Args:
            destination: Directory of the bundle to be. A bundle that is there is replaced by `commit`.

        Raises:
            BundleError: if something other than a bundle is there, or its parent directory is not.
        """
        self.destination = Path(destination).resolve()
        _check_destination(self.destination)

    def __enter__(self) -> BundleWriter:
        """Makes the hidden directory, and removes those of writers that were killed.

        Raises:
            BundleError: if the directory of the destination cannot be written.
        """
        with _writing(self.destination):
            _clean_up_after_killed_writers(self.destination)
            self._directory = self._hidden("tmp")
            self._directory.mkdir()
            self._lock = _lock(self._directory)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)  # after a commit it is no longer there
        os.close(self._lock)

    def add_bytes(self, relative: str, data: bytes) -> None:
        """Adds a file.

        Raises:
            BundleIntegrityError: if `relative` is no plain relative path.
            BundleError: if the bundle has that file already, or it cannot be written.
        """
        path = self.weights_path(relative)
        with _writing(self.destination):
            path.write_bytes(data)

    def add_file(self, relative: str, source: str | Path) -> None:
        """Adds a copy of a file. Raises as `add_bytes` does."""
        path = self.weights_path(relative)
        with _writing(self.destination):
            shutil.copyfile(source, path)

    def weights_path(self, relative: str) -> Path:
        """Returns where to write a large file of the bundle; `commit` takes up whatever is there.

        Raises:
            BundleIntegrityError: if `relative` is no plain relative path.
            BundleError: if the bundle has that file already.
        """
        check_relative(relative)
        path = self._directory / relative
        if path.exists():
            raise BundleError(f"bundle {self.destination.name} has {relative!r} already")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def commit(self, manifest: Manifest) -> Manifest:
        """Puts the bundle in place and returns its complete manifest.

        Args:
            manifest: Everything but `files`, which is filled in from what was added.

        Raises:
            BundleIntegrityError: if the manifest contradicts itself or refers to files that were not added.
            BundleError: if by now something other than a bundle is at the destination, or the disk is full.
        """
        with _writing(self.destination):
            complete = replace(manifest, files=dict(_digest_tree(self._directory)))
            text = complete.to_json()
            check_manifest(Manifest.from_json(text))  # what a reader would refuse is not written
            manifest_path = self._directory / MANIFEST_FILE
            manifest_path.write_text(text, encoding="utf-8")
            _flush(manifest_path)
            for directory, _, _ in os.walk(self._directory):
                _flush(Path(directory))
            self._put_in_place()
        return complete

    def _put_in_place(self) -> None:
        """Renames the new bundle to the destination; an old one moves aside first and back if that fails."""
        _check_destination(self.destination)
        old = self._hidden("old") if self.destination.exists() else None
        try:
            if old is not None:
                self.destination.rename(old)
            self._directory.rename(self.destination)
        except BaseException:
            if old is not None and old.exists() and not self.destination.exists():
                old.rename(self.destination)
            raise
        _flush(self.destination.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def _hidden(self, suffix: str) -> Path:
        return self.destination.with_name(f".{self.destination.name}.{secrets.token_hex(8)}.{suffix}")


@contextlib.contextmanager
def _writing(destination: Path) -> Iterator[None]:
    """Turns what the operating system refuses into an error that says which bundle could not be written."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"cannot write {destination}: {error.strerror or error} ({error.filename})") from error


def _check_destination(destination: Path) -> None:
    if not destination.parent.is_dir():
        raise BundleError(f"cannot write {destination}: directory {destination.parent} does not exist")
    if destination.exists() and not _is_bundle(destination):
        raise BundleError(
            f"refusing to overwrite {destination}: it is not a plait bundle; remove it or choose another name"
        )


def _is_bundle(path: Path) -> bool:
    """Whether a directory claims to be a bundle, of whatever version and however damaged otherwise."""
    manifest_path = path / MANIFEST_FILE
    try:
        header = json.loads(manifest_path.read_bytes()) if manifest_path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.get("format") == Manifest.format


def _digest_tree(directory: Path) -> Iterator[tuple[str, FileEntry]]:
    """Yields path and digests of each file, sorted by path, with its bytes flushed to the disk."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                entry = digest_file(file)
                os.fsync(file.fileno())
            yield path.relative_to(directory).as_posix(), entry


def _flush(path: Path) -> None:
    """Flushes a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clean_up_after_killed_writers(destination: Path) -> None:
    """Removes hidden directories that no living writer holds, and puts back a bundle that was moved aside."""
    for old in _hidden_directories(destination, "old"):
        if not destination.exists():
            old.rename(destination)
        else:
            shutil.rmtree(old, ignore_errors=True)
    for directory in _hidden_directories(destination, "tmp"):
        with contextlib.suppress(OSError):  # held by a writer at work
            descriptor = _lock(directory)
            shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)


def _hidden_directories(destination: Path, suffix: str) -> Iterator[Path]:
    prefix = f".{destination.name}."
    for path in list(destination.parent.iterdir()):
        token = path.name.removeprefix(prefix).removesuffix(f".{suffix}")
        if path.name == f"{prefix}{token}.{suffix}" and len(token) == 16 and path.is_dir():
            yield path


def _lock(directory: Path) -> int:
    """Locks a directory until its descriptor is closed or the process ends, and returns the descriptor.

    Raises:
        BlockingIOError: if another writer holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
