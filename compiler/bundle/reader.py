"""Opening a bundle and getting at its bytes, none of which is used before its digest was checked.

Comes in: the path of a bundle that may be truncated, tampered with, newer than this plait, or no bundle at all. Goes
out: a `Bundle`. Opening looks at the manifest and at the name, kind and size of each file, which is quick; contents are
checked when they are first asked for. Digests in a manifest protect against damage: who can change a file can change
the manifest. Against that, demand the manifest's own digest (`open_bundle(..., digest=)`).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...errors import BundleError, BundleIntegrityError, ConfigurationError
from .consistency import MANIFEST_FILE, check_manifest
from .digests import digest_file, read_chunks, sha256_hex
from .manifest import FileEntry, Manifest
from .verified import FileIdentity, is_recorded, record
from .weights import MappedWeights, map_weights

__all__ = [
    "MAX_MANIFEST_BYTES",
    "PLAN_FORMAT",
    "Bundle",
    "Progress",
    "check_digest",
    "is_plan_only",
    "open_bundle",
    "read_manifest",
]

MAX_MANIFEST_BYTES = 64 * 2**20
PLAN_FORMAT = "plait-rack-plan"  # of a manifest that has neither weights nor programs

Progress = Callable[[str, int], None]  # called with a file's relative path and the bytes of it just checked


def open_bundle(path: str | Path, *, digest: str | None = None) -> Bundle:
    """Opens a bundle.

    Args:
        path: The bundle's directory.
        digest: SHA-256 that `manifest.json` must have, as 64 hexadecimal digits, obtained from somewhere safe.

    Raises:
        BundleError: if there is no bundle, or it is plan-only.
        BundleVersionError: if its format is newer than this plait reads.
        BundleIntegrityError: if it is damaged, contradicts itself, points outside itself, or has another digest.
        ConfigurationError: if `digest` is no SHA-256.
    """
    root = Path(path).resolve()
    data = read_manifest(root)
    found = sha256_hex(data)
    if digest is not None:
        check_digest(digest, found)
    if is_plan_only(data):
        raise BundleError(
            f"{root} is plan-only: it says what a rack would do, and has neither weights nor programs to run; "
            "`plait check` shows it, a bundle for cpu, cpu-tiered or gpu runs"
        )
    manifest = Manifest.from_json(data)
    check_manifest(manifest)
    bundle = Bundle(root, manifest, found)
    for relative in manifest.files:
        with bundle.open_file(relative):  # checks name, kind and size
            pass
    return bundle


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    path: Path  # absolute, without symbolic links
    manifest: Manifest
    manifest_digest: str  # SHA-256 of manifest.json: what to hand out for `open_bundle(..., digest=)`

    def read_bytes(self, relative: str) -> bytes:
        """Returns a whole file, verified.

        Raises:
            BundleIntegrityError: if it is not what the manifest lists.
        """
        with self.open_file(relative) as file:
            data = file.read()
        self._check(relative, "sha256", self._entry(relative).sha256, sha256_hex(data))
        return data

    def map_weights(self, model_name: str) -> MappedWeights:
        """Returns a model's weights as views of the mapped file, after verification.

        The caller owns the mapping: see `MappedWeights` on how it is released.

        Args:
            model_name: Name or alias of the model.

        Raises:
            ModelNotFoundError: if the bundle has no such model.
            BundleIntegrityError: if the file is not what the manifest lists, or no well-formed weight file.
        """
        relative = self.manifest.model(model_name).weights
        self.ensure_verified(relative)
        return map_weights(self.path / relative)

    def stream(self, relative: str) -> Iterator[memoryview]:
        """Yields a file in chunks of `CHUNK_BYTES`, each verified before it is yielded.

        All chunks share one buffer: each is valid until the next one is asked for.

        Raises:
            BundleIntegrityError: on the first chunk that is not what the manifest lists.
        """
        expected = self._entry(relative).chunk_sha256
        with self.open_file(relative) as file:
            num_read = 0
            for index, chunk in enumerate(read_chunks(file)):
                wanted = expected[index] if index < len(expected) else "no such chunk"
                self._check(relative, f"sha256 of chunk {index}", wanted, sha256_hex(chunk))
                yield chunk
                num_read += 1
        self._check(relative, "chunks", str(len(expected)), str(num_read))

    def ensure_verified(self, relative: str, progress: Progress | None = None) -> None:
        """Checks a file's digest, unless this very file is on record as checked before.

        Raises:
            BundleIntegrityError: if it is not what the manifest lists.
        """
        with self.open_file(relative) as file:
            before = self._identity(relative, file)
            if is_recorded(before):
                return
            self._hash(relative, file, progress)
            if self._identity(relative, file) == before:  # nobody wrote to it meanwhile
                record(before)

    def verify(self, progress: Progress | None = None) -> None:
        """Hashes every file, whatever is on record.

        Raises:
            BundleIntegrityError: on the first file that is not what the manifest lists.
        """
        for relative in self.manifest.files:
            with self.open_file(relative) as file:
                self._hash(relative, file, progress)

    @contextmanager
    def open_file(self, relative: str) -> Iterator[BinaryIO]:
        """Opens a listed file, whose contents are unverified; read it through the other methods.

        Raises:
            BundleIntegrityError: if it is not listed, missing, no regular file, outside the bundle through symbolic
                links, or not of the listed size.
        """
        entry = self._entry(relative)
        try:
            path = (self.path / relative).resolve(strict=True)
            if not path.is_relative_to(self.path):
                raise BundleIntegrityError(f"bundle {self.path.name}: {relative!r} leads out of the bundle to {path}")
            _check_regular(path.stat(), relative)  # before opening: a pipe would block
            file = open(path, "rb", buffering=0)  # noqa: SIM115
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
            reason = getattr(error, "strerror", None) or error
            raise BundleIntegrityError(f"bundle {self.path.name}: cannot open {relative!r}: {reason}") from None
        with file:
            status = os.fstat(file.fileno())
            _check_regular(status, relative)
            self._check(relative, "bytes", str(entry.size_bytes), str(status.st_size))
            yield file

    def _entry(self, relative: str) -> FileEntry:
        try:
            return self.manifest.files[relative]
        except KeyError:
            raise BundleIntegrityError(f"bundle {self.path.name} does not list the file {relative!r}") from None

    def _identity(self, relative: str, file: BinaryIO) -> FileIdentity:
        return FileIdentity.of(self.path / relative, os.fstat(file.fileno()), self._entry(relative).sha256)

    def _hash(self, relative: str, file: BinaryIO, progress: Progress | None) -> None:
        """Checks all digests of an open file."""
        report = None if progress is None else lambda num_bytes: progress(relative, num_bytes)
        expected, found = self._entry(relative), digest_file(file, report)
        self._check(relative, "bytes", str(expected.size_bytes), str(found.size_bytes))
        self._check(relative, "sha256", expected.sha256, found.sha256)
        for index, (wanted, got) in enumerate(zip(expected.chunk_sha256, found.chunk_sha256, strict=True)):
            self._check(relative, f"sha256 of chunk {index}", wanted, got)

    def _check(self, relative: str, what: str, expected: str, found: str) -> None:
        if expected != found:
            raise BundleIntegrityError(
                f"bundle {self.path.name}: {relative!r} is damaged or was changed: "
                f"{what} expected {expected}, found {found}; copy the bundle again or rebuild it"
            )


def is_plan_only(data: bytes) -> bool:
    """Whether a manifest is the plan of a rack, of whatever version and however damaged otherwise."""
    if PLAN_FORMAT.encode() not in data:
        return False
    try:
        header = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and header.get("format") == PLAN_FORMAT


def read_manifest(root: Path) -> bytes:
    """Returns the bytes of a directory's manifest.

    Raises:
        BundleError: if there is none.
        BundleIntegrityError: if it is no regular file, or too large.
    """
    path = root / MANIFEST_FILE
    try:
        status = path.lstat()
        _check_regular(status, MANIFEST_FILE)
        with open(path, "rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{root} is not a plait bundle: it has no {MANIFEST_FILE}; make one with `plait bundle agent.yaml -o PATH`"
        ) from None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleIntegrityError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes, the most a manifest can have")
    return data


def _check_regular(status: os.stat_result, relative: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BundleIntegrityError(f"{relative!r} of the bundle is not a regular file: {stat.filemode(status.st_mode)}")


def check_digest(demanded: str, found: str) -> None:
    """Checks that a manifest has the digest that is demanded.

    Raises:
        ConfigurationError: if what is demanded is no SHA-256.
        BundleIntegrityError: if the manifest has another.
    """
    wanted = demanded.strip().lower().removeprefix("sha256:")
    if len(wanted) != hashlib.sha256().digest_size * 2 or not set(wanted) <= set("0123456789abcdef"):
        raise ConfigurationError(f"digest {demanded!r} is no SHA-256: 64 hexadecimal digits are needed")
    if wanted != found:
        raise BundleIntegrityError(
            f"{MANIFEST_FILE} does not have the demanded digest: expected {wanted}, found {found}; "
            "it is another bundle, or was changed"
        )
