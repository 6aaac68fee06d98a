"""Models on the Hugging Face Hub: what plait reads of one, in the Hub's own cache, which other tools share.

Comes in: `hf:ORG/NAME[@REVISION][:FILE.gguf]`. Goes out: a path for `models.checkpoint.open_checkpoint`. Small files
come first, with the list of all; then the weights, one file after another, so that Ctrl-C ends a download at once.
Pickles (*.bin, *.pt) are never fetched. What is in the cache already needs no network.

HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to every tool of the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import ConfigurationError, PullError
from .wheel import Progress

if TYPE_CHECKING:
    from huggingface_hub.utils import tqdm

__all__ = ["CachedModel", "HubModel", "cached_models", "is_hub_source", "pull", "pull_config"]

_PREFIX = "hf:"
_SOURCE = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^:@]+))?(?::(.+\.gguf))?", re.ASCII)
_DEFAULT_REVISION = "main"
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "chat_template.*",
    "model.safetensors.index.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",  # modules of sentence-transformers
)
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "[0-9]_*/model.safetensors")
_MAX_LISTED = 12  # files named in a message


@dataclass(frozen=True)
class HubModel:
    """What a source names: all of a repository that plait reads, or one GGUF file of it."""

    repository: str  # ORG/NAME
    revision: str  # a branch, tag or commit
    file: str | None  # path of the GGUF file in the repository

    @classmethod
    def parse(cls, source: str) -> HubModel:
        """Returns what `hf:ORG/NAME[@REVISION][:FILE.gguf]` names; raises ConfigurationError if it is none."""
        match = _SOURCE.fullmatch(source)
        if match is None:
            raise ConfigurationError(
                f"{source!r} names no model on the Hub; write hf:ORG/NAME, "
                "hf:ORG/NAME@REVISION or hf:ORG/NAME:FILE.gguf"
            )
        repository, revision, file = match.groups()
        return cls(repository, revision or _DEFAULT_REVISION, file)

    def __str__(self) -> str:
        revision = "" if self.revision == _DEFAULT_REVISION else f"@{self.revision}"
        return f"{_PREFIX}{self.repository}{revision}" + (f":{self.file}" if self.file else "")


@dataclass(frozen=True)
class CachedModel:
    """A model in the Hub's cache that can be opened without the network."""

    source: str  # what to write in a bundle file
    path: Path  # what to open
    size_bytes: int


@dataclass(frozen=True)
class _Snapshot:
    """One commit of a repository in the cache: some files are there, all are listed."""

    directory: Path  # named after the commit
    file_bytes: dict[str, int]  # by path in the repository

    def names(self, *patterns: str) -> list[str]:
        return sorted(name for name in self.file_bytes if any(fnmatchcase(name, pattern) for pattern in patterns))


def is_hub_source(source: str) -> bool:
    """Returns whether a source is meant for the Hub: whether it starts with `hf:`."""
    return source.startswith(_PREFIX)


def pull(source: str, *, progress: Progress | None = None) -> Path:
    """Returns the path of a model of the Hub, after downloading what is missing of it.

    Within a pull a file goes on where the connection was cut; the next pull keeps the files that are complete. A branch
    that is in the cache stays at the commit that was pulled: name a commit to get another.

    Args:
        source: `hf:ORG/NAME[@REVISION]` for a directory of safetensors, or with `:FILE.gguf` for that file.
        progress: Told how far the download of the weights is.

    Raises:
        ConfigurationError: if the source is written wrong.
        PullError: if the Hub cannot be reached or refuses, or the repository has nothing that plait reads.
    """
    model = HubModel.parse(source)
    with _errors_of(model):
        snapshot = _open_snapshot(model)
        _download(model, snapshot, _weights(model, snapshot), progress)
    return snapshot.directory / (model.file or "")


def pull_config(source: str) -> Path:
    """Returns a directory with a model's configuration and tokenizer, without its weights.

    Raises:
        ConfigurationError: if the source is written wrong, or names a GGUF file, which can only be pulled whole.
        PullError: if the Hub cannot be reached or refuses, or the repository has no config.json.
    """
    model = HubModel.parse(source)
    if model.file is not None:
        raise ConfigurationError(
            f"{source} keeps its configuration with its weights; pull it with `plait pull {source}`"
        )
    with _errors_of(model):
        snapshot = _open_snapshot(model)
        _require_config(model, snapshot)
    return snapshot.directory


def cached_models() -> tuple[CachedModel, ...]:
    """Returns the models in the Hub's cache that have all the weights of one form, whichever tool pulled them."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return ()
    found = [
        model
        for repository in repositories
        if repository.repo_type == "model"
        for commit in repository.revisions
        for model in _models_in(repository.repo_id, _name_of(commit.refs, commit.commit_hash), commit.snapshot_path)
    ]
    return tuple(sorted(found, key=lambda model: model.source))


def _name_of(refs: frozenset[str], commit: str) -> str:
    return _DEFAULT_REVISION if _DEFAULT_REVISION in refs else min(refs, default=commit)


def _models_in(repository: str, revision: str, directory: Path) -> Iterator[CachedModel]:
    sizes = _files_in(directory)
    snapshot = _Snapshot(directory, sizes)
    has_weights = "model.safetensors" in sizes or _has_all_shards(snapshot.names("model-*.safetensors"))
    if "config.json" in sizes and has_weights:
        num_bytes = sum(sizes[name] for name in snapshot.names(*_SMALL_FILES, *_WEIGHTS))
        yield CachedModel(str(HubModel(repository, revision, None)), directory, num_bytes)
    for name in snapshot.names("*.gguf"):
        yield CachedModel(str(HubModel(repository, revision, name)), directory / name, sizes[name])


def _has_all_shards(names: list[str]) -> bool:
    counts = [int(match[1]) for name in names if (match := re.search(r"-of-(\d+)\.safetensors$", name))]
    return len(counts) > 0 and len(names) >= counts[0]


def _files_in(directory: Path) -> dict[str, int]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}


def _open_snapshot(model: HubModel) -> _Snapshot:
    """Returns the commit in the cache with its small files, from the network only if one of them or the list isn't."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    patterns: list[str] = list(_SMALL_FILES)
    try:
        path = snapshot_download(
            model.repository, revision=model.revision, allow_patterns=patterns, local_files_only=True
        )
        return _Snapshot(Path(path), _listed(model))
    except (LocalEntryNotFoundError, CachedRepoTreeNotFoundError):
        path = snapshot_download(
            model.repository, revision=model.revision, allow_patterns=patterns, tqdm_class=_bar_class(None, 0, 0)
        )
    try:
        return _Snapshot(Path(path), _listed(model))
    except CachedRepoTreeNotFoundError:  # offline, in a cache that an older tool filled: what is there is all we know
        return _Snapshot(Path(path), _files_in(Path(path)))


def _listed(model: HubModel) -> dict[str, int]:
    from huggingface_hub import get_cached_repo_tree

    return {file.path: file.size for file in get_cached_repo_tree(model.repository, revision=model.revision)}


def _weights(model: HubModel, snapshot: _Snapshot) -> list[str]:
    """Returns the names of the weight files to have; raises PullError if there are none that plait reads."""
    ggufs = snapshot.names("*.gguf")
    if model.file is not None:
        if model.file not in snapshot.file_bytes:
            raise PullError(f"{model}: the repository has no such file; its GGUF files: {_listing(ggufs)}")
        return [model.file]
    if weights := snapshot.names(*_WEIGHTS):
        _require_config(model, snapshot)
        return weights
    others = _listing(snapshot.names("*.safetensors", "*.bin", "*.pt", "*.pth", "*.onnx"))
    choice = _listing([f"{model}:{name}" for name in ggufs])
    raise PullError(
        f"{model} has no model.safetensors or shards of it, and plait opens no pickles (weights there: {others}); "
        + (f"name one of its GGUF files: {choice}" if ggufs else "it has no GGUF file either")
    )


def _require_config(model: HubModel, snapshot: _Snapshot) -> None:
    if "config.json" not in snapshot.file_bytes:
        raise PullError(f"{model} has no config.json, which says what the model is; supported: repositories with one")


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more if names else "none"


def _download(model: HubModel, snapshot: _Snapshot, names: list[str], progress: Progress | None) -> None:
    from huggingface_hub import hf_hub_download

    missing = [name for name in names if not (snapshot.directory / name).exists()]
    total_bytes, done_bytes = sum(snapshot.file_bytes[name] for name in missing), 0
    for name in missing:
        hf_hub_download(
            model.repository,
            name,
            revision=snapshot.directory.name,  # the commit: all files are of one version
            tqdm_class=_bar_class(progress, done_bytes, total_bytes),
        )
        done_bytes += snapshot.file_bytes[name]


def _bar_class(progress: Progress | None, before_bytes: int, total_bytes: int) -> type[tqdm]:
    """Returns a bar that shows nothing and tells `progress` how many bytes of all files are there."""
    from huggingface_hub.utils import tqdm

    class SilentBar(tqdm):
        def __init__(self, *args: object, **options: object) -> None:
            # Besides the bar of bytes on disk there may be one of bytes from the network.
            self.is_on_disk = not str(options.get("name")).endswith(".transfer")
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if progress is not None and self.is_on_disk:
                progress(min(before_bytes + int(self.n), total_bytes), total_bytes)

    return SilentBar


@contextmanager
def _errors_of(model: HubModel) -> Iterator[None]:
    """Makes whatever the Hub's library raises in the block one line, and keeps its log to errors."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except PullError:
        raise
    except Exception as error:  # it lets errors of its HTTP library through, and which library that is has changed
        raise PullError(f"cannot pull {model}: {_reason(model, error)}") from error
    finally:
        logging.set_verbosity(verbosity)


def _reason(model: HubModel, error: Exception) -> str:
    from huggingface_hub import constants, errors

    host = urlsplit(constants.ENDPOINT).hostname
    if isinstance(error, errors.GatedRepoError):
        return f"access is restricted; ask for it at https://{host}/{model.repository}, then set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{host} has no such model, or it is private; check the name, and set HF_TOKEN if it is private"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the model has no revision {model.revision!r}; name a branch, tag or commit that it has, or none"
    if isinstance(error, errors.LocalEntryNotFoundError):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{host} cannot be reached"
        return f"it is not in the cache ({constants.HF_HUB_CACHE}), and {why}; pull it while online, or copy the cache"
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"{host} answers {error.response.status_code}; set HF_TOKEN to a token that may read it"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text}; check the network and the room on disk, and pull again"
