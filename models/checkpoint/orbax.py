"""Checkpoints in orbax directories, written by plait: model.json, the tokenizer, and the parameters as one orbax tree.

Comes in: a `Checkpoint` of any kind, or parameters that were trained. Goes out: a directory whose `params` is what
orbax's `StandardCheckpointer` writes of an NNX state's nested dict, so that other JAX programs restore it without
plait. `restore_parameters` brings each parameter onto its devices shard by shard: no process reads more than its own.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import Array
from pydantic import BaseModel, ConfigDict, JsonValue, PositiveInt

from ...errors import CheckpointError, ConfigurationError
from ..config import config_from_json, config_to_json
from .contents import ORBAX_DESCRIPTION, Checkpoint, TokenizerContents, assemble, plain_tokenizer
from .files import read_fields, read_text
from .recipes import renamed

__all__ = ["open_orbax", "restore_parameters", "write_orbax"]

_Flat: TypeAlias = dict[str, jax.ShapeDtypeStruct]  # orbax gives metadata with shape and dtype of each array

_PARAMETERS = "params"
_TOKENIZER = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid")

    architecture: dict[str, JsonValue]  # `config_to_json`
    max_sequence: PositiveInt
    bos_token: str | None
    eos_token: str | None
    eos_token_ids: tuple[int, ...]


def write_orbax(
    directory: Path,
    checkpoint: Checkpoint,
    *,
    parameters: Mapping[str, np.ndarray | Array] | None = None,
    dtype: DTypeLike = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a model as an orbax directory. Its parameters are held in memory together while they are written.

    Args:
        directory: To be made; it is there only when it is complete.
        checkpoint: The model; its weights are written dense, whatever form they have.
        parameters: Other values of its parameters, after training, say; sharded arrays stay where they are.
        dtype: To write the checkpoint's own values in.
        progress: Told how many of how many tensors are read.

    Raises:
        ConfigurationError: if the directory exists or cannot be written, or if `parameters` aren't the model's.
    """
    if directory.exists():
        raise ConfigurationError(f"{directory} exists; remove it or choose another directory")
    if parameters is not None and (odd := set(parameters).symmetric_difference(checkpoint.tensor_names)):
        raise ConfigurationError(f"the parameters given are not the model's: {min(odd)!r} is missing or unknown")
    values = _read(checkpoint, dtype, progress or (lambda done, total: None)) if parameters is None else parameters
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent)).absolute()
    except OSError as error:
        raise ConfigurationError(f"cannot write {directory}: {error.strerror}") from None
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary / _PARAMETERS, traverse_util.unflatten_dict(dict(values), sep="."))
        _write_description(temporary, checkpoint)
        temporary.chmod(0o755)
        temporary.rename(directory)
    except OSError as error:
        raise ConfigurationError(f"cannot write {directory}: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(checkpoint: Checkpoint, dtype: DTypeLike, progress: Callable[[int, int], None]) -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = {}
    for index, name in enumerate(checkpoint.tensor_names):
        progress(index, len(checkpoint.tensor_names))
        values[name] = checkpoint.read(name).astype(jnp.dtype(dtype))
    progress(len(values), len(values))
    return values


def _write_description(directory: Path, checkpoint: Checkpoint) -> None:
    description = _Description(
        architecture=config_to_json(checkpoint.config.dense),  # type: ignore[arg-type]
        max_sequence=checkpoint.max_sequence,
        bos_token=checkpoint.bos_token,
        eos_token=checkpoint.eos_token,
        eos_token_ids=checkpoint.eos_token_ids,
    )
    (directory / ORBAX_DESCRIPTION).write_text(description.model_dump_json(indent=1), encoding="utf-8")
    (directory / _TOKENIZER).write_text(checkpoint.tokenizer_json, encoding="utf-8")
    if checkpoint.chat_template is not None:
        (directory / _TEMPLATE).write_text(checkpoint.chat_template, encoding="utf-8")


def open_orbax(directory: Path) -> Checkpoint:
    """Opens a directory that `write_orbax` wrote.

    Raises:
        CheckpointError: if files are missing, damaged, or disagree with each other.
    """
    description = read_fields(_Description, directory / ORBAX_DESCRIPTION)
    try:
        config = config_from_json(dict(description.architecture))  # type: ignore[arg-type]
    except ConfigurationError as error:
        raise CheckpointError(f"{directory / ORBAX_DESCRIPTION}: {error}") from None
    template = directory / _TEMPLATE
    tokenizer = TokenizerContents(
        json=plain_tokenizer(read_text(directory / _TOKENIZER), directory / _TOKENIZER),
        chat_template=read_text(template) if template.exists() else None,
        bos_token=description.bos_token,
        eos_token=description.eos_token,
        eos_token_ids=description.eos_token_ids,
    )
    files = _OrbaxTree(directory / _PARAMETERS)
    recipe_of = renamed(lambda name: (name,))
    return assemble(
        directory, config, tokenizer, max_sequence=description.max_sequence, files=files, recipe_of=recipe_of
    )


def restore_parameters(
    directory: Path, *, shardings: Mapping[str, Sharding] | Sharding | None = None, dtype: DTypeLike | None = None
) -> dict[str, Array]:
    """Returns the parameters of an orbax directory as JAX arrays, by dotted Flax path.

    Args:
        directory: That `write_orbax` wrote.
        shardings: Where each parameter goes, or one sharding for all; by default the first device.
        dtype: Of the arrays; by default as they were written.

    Raises:
        CheckpointError: if the directory is none or is damaged.
        ConfigurationError: if a parameter has no sharding, or cannot be divided by it.
    """
    tree = _OrbaxTree(directory / _PARAMETERS)
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    chosen = default if shardings is None else shardings
    wanted: dict[str, jax.ShapeDtypeStruct] = {}
    for name in tree.names:
        sharding = chosen.get(name) if isinstance(chosen, Mapping) else chosen
        if sharding is None:
            raise ConfigurationError(f"parameter {name!r} has no sharding; give one for each of {len(tree.names)}")
        try:
            sharding.shard_shape(tree.shape(name))
        except ValueError as error:
            raise ConfigurationError(f"parameter {name!r}: {' '.join(str(error).split())}") from None
        wanted[name] = jax.ShapeDtypeStruct(tree.shape(name), dtype or tree.dtype(name), sharding=sharding)
    return tree.restore(wanted)


class _OrbaxTree:
    """The arrays of an orbax checkpoint by their dotted paths, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                metadata = checkpointer.metadata(self._path)
            tree = getattr(metadata, "item_metadata", metadata)
            flat = cast(_Flat, traverse_util.flatten_dict(dict(getattr(tree, "tree", tree)), sep="."))
            self._arrays = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in flat.items()}
        except Exception as error:  # orbax raises what its storage layers raise
            raise _unreadable(path, error) from None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name][0]

    def dtype(self, name: str) -> str:
        return self._arrays[name][1]

    def kind(self, name: str) -> str:
        return "float" if jnp.issubdtype(jnp.dtype(self.dtype(name)), jnp.floating) else self.dtype(name)

    def read(self, name: str) -> np.ndarray:
        only_device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        wanted = jax.ShapeDtypeStruct(self.shape(name), jnp.float32, sharding=only_device)
        return np.asarray(self.restore({name: wanted})[name])

    def restore(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
        """Returns some of the arrays, each of the type and on the devices that are asked for."""
        tree = traverse_util.unflatten_dict(dict(wanted), sep=".")
        restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
        arguments = ocp.args.PyTreeRestore(item=tree, restore_args=restore_args, partial_restore=True)
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                restored = checkpointer.restore(self._path, args=arguments)
        except Exception as error:  # as above
            raise _unreadable(self._path, error) from None
        return cast(dict[str, Array], traverse_util.flatten_dict(restored, sep="."))


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(f"{path} cannot be read as an orbax checkpoint: {reason}")
