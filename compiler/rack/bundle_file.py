"""Any file that describes a bundle: our own YAML, or SambaStack's."""

from __future__ import annotations

from pathlib import Path

from ..bundle.spec import BundleSpec, read_documents, to_spec
from .sambastack import is_sambastack, read_sambastack

__all__ = ["read_bundle_file"]


def read_bundle_file(path: Path, *, target: str | None = None) -> BundleSpec:
    """Reads a bundle file.

    Args:
        path: Of the file.
        target: Instead of the file's own: a name, or a path.

    Raises:
        ConfigurationError: naming the field that is wrong.
    """
    documents = read_documents(path)
    if target is not None and target.endswith(".toml"):
        target = str(Path(target).resolve())  # of the working directory, where the file's own is of its directory
    if is_sambastack(documents):
        return read_sambastack(documents, path, target)
    spec = to_spec(documents[0] if len(documents) == 1 else documents, path)
    return spec if target is None else spec.model_copy(update={"target": target})
