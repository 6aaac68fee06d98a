"""The directory of a rack's plan: `manifest.json` and nothing else, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import BundleError, ConfigurationError
from ..bundle.consistency import MANIFEST_FILE
from ..bundle.digests import sha256_hex
from ..bundle.reader import check_digest, is_plan_only, read_manifest
from ..files import write_files
from ..verify.residency import verify_rack_plan
from .plan import RackPlan

__all__ = ["is_plan", "open_plan", "write_plan"]


def write_plan(plan: RackPlan, destination: Path) -> str:
    """Writes a plan and returns the SHA-256 of its manifest; a plan that is there is replaced.

    Raises:
        BundleError: if something other than a plan is there.
        ConfigurationError: if the directory cannot be written.
    """
    if destination.exists() and not is_plan(destination) and not _is_empty(destination):
        raise BundleError(
            f"refusing to overwrite {destination}: it is no plan of a rack; remove it or choose another name"
        )
    if not destination.parent.is_dir():
        raise ConfigurationError(f"cannot write {destination}: directory {destination.parent} does not exist")
    data = plan.to_json()
    write_files(destination, {MANIFEST_FILE: data})
    return sha256_hex(data)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not os.listdir(path)


def is_plan(path: Path) -> bool:
    """Whether a directory claims to be the plan of a rack."""
    manifest = path / MANIFEST_FILE
    try:
        return manifest.is_file() and is_plan_only(manifest.read_bytes())
    except OSError:
        return False


def open_plan(path: Path, *, digest: str | None = None) -> tuple[RackPlan, str]:
    """Returns a plan, checked against its definition, and the SHA-256 of its manifest.

    Args:
        path: Directory that holds it.
        digest: SHA-256 that the manifest must have.

    Raises:
        BundleError: if it is no plan, or not the one that is wanted.
        BundleIntegrityError: if the plan contradicts itself.
    """
    data = read_manifest(path.resolve())
    found = sha256_hex(data)
    if digest is not None:
        check_digest(digest, found)
    plan = RackPlan.from_json(data)
    verify_rack_plan(plan)
    return plan, found
