"""What every response has: an id, a time, and what computed it."""

from __future__ import annotations

import functools
import hashlib
import time
import uuid
from importlib.metadata import version

__all__ = ["new_id", "now", "system_fingerprint"]


def new_id(prefix: str) -> str:
    """Returns an id that no other response has."""
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    """Returns seconds since the epoch."""
    return int(time.time())


@functools.cache
def system_fingerprint(bundle: str) -> str:
    """Returns a name for what computes the answers: this version of plait and the bundle."""
    return "fp_" + hashlib.sha256(f"{version('plait')}/{bundle}".encode()).hexdigest()[:12]
