"""What every form of checkpoint amounts to: a configuration, a tokenizer, and tensors to be read one at a time.

Comes in: what `gguf.py` or `huggingface.py` found in the files. Goes out: a `Checkpoint` whose every tensor is known
to be there and to have the shape that the model wants, before the first one is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import pydantic
import tokenizers
from jaxtyping import Float

from ...errors import CheckpointError
from ..config import DecoderConfig, ModelConfig
from ..family import build

__all__ = ["Checkpoint", "TensorSource", "TokenizerContents", "assemble", "plain_tokenizer", "validated"]

Fields = TypeVar("Fields", bound=pydantic.BaseModel)


class TensorSource(Protocol):
    """Memory-mapped tensors under plait's names."""

    @property
    def num_tensors(self) -> int:
        """Number of tensors in the files, those that nobody asks for included."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape; raises CheckpointError if it is missing."""
        ...

    def read(self, name: str) -> Float[np.ndarray, ...]:
        """Returns a tensor's values in f32."""
        ...


@dataclass(frozen=True)
class TokenizerContents:
    """A tokenizer and what belongs to it."""

    json: str  # tokenizer.json, padding and truncation off
    chat_template: str | None  # Jinja
    bos_token: str | None
    eos_token: str | None
    eos_token_ids: tuple[int, ...]  # any of them ends an answer


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, opened: `read` gives its tensors one at a time, the rest is here."""

    config: ModelConfig
    tokenizer_json: str  # padding and truncation off
    chat_template: str | None  # Jinja
    bos_token: str | None
    eos_token: str | None
    eos_token_ids: tuple[int, ...]  # any of them ends an answer
    max_sequence: int  # tokens of the longest sequence that the model is meant for
    tensor_names: tuple[str, ...]  # dotted Flax paths, the parameters of `models.family.build`
    source: TensorSource = field(repr=False)

    def read(self, name: str) -> Float[np.ndarray, ...]:
        """Returns a tensor in f32, C-contiguous, in the shape of the model's parameter of that name.

        Only this tensor is brought into memory; the file stays mapped as long as the checkpoint lives.

        Raises:
            CheckpointError: if the checkpoint has no tensor of that name or its bytes cannot be read.
        """
        if name not in self.tensor_names:
            raise CheckpointError(
                f"the checkpoint has no tensor {name!r}; it has {', '.join(self.tensor_names[:3])}, …"
            )
        return np.ascontiguousarray(self.source.read(name), dtype=np.float32)


def assemble(
    path: Path, config: ModelConfig, tokenizer: TokenizerContents, *, max_sequence: int, source: TensorSource
) -> Checkpoint:
    """Returns the checkpoint at `path`, its tensors checked against the model of its configuration.

    Raises:
        CheckpointError: if the configuration contradicts itself, if a tensor is missing or has another shape than it
            says, or if the tokenizer has ids beyond the vocabulary.
    """
    _check_sizes(path, config, source.num_tensors)
    _check_vocabulary(path, config, tokenizer)
    parameters = build(config, np.float32).parameters
    for name, parameter in parameters.items():
        if (shape := source.shape(name)) != parameter.shape:
            raise CheckpointError(f"{path}: {name!r} is {list(shape)}, its configuration wants {list(parameter.shape)}")
    return Checkpoint(
        config=config,
        tokenizer_json=tokenizer.json,
        chat_template=tokenizer.chat_template,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        eos_token_ids=tokenizer.eos_token_ids,
        max_sequence=max_sequence,
        tensor_names=tuple(parameters),
        source=source,
    )


def _check_sizes(path: Path, config: ModelConfig, num_tensors: int) -> None:
    """Refuses sizes that no shape of a tensor would give away."""
    if isinstance(config, DecoderConfig):
        is_divided = config.num_heads % config.num_kv_heads == 0 and config.head_size % 2 == 0
    else:
        is_divided = config.hidden_size % config.num_heads == 0
    if not is_divided:
        raise CheckpointError(f"{path}: its heads do not divide evenly: {config}")
    if config.num_layers > num_tensors:  # before a model of damaged size is built
        raise CheckpointError(f"{path}: its configuration has {config.num_layers} layers, it has {num_tensors} tensors")


def _check_vocabulary(path: Path, config: ModelConfig, tokenizer: TokenizerContents) -> None:
    # JAX clamps an index past the end of a table instead of refusing it: a wrong tokenizer would go unnoticed.
    highest = max(tokenizers.Tokenizer.from_str(tokenizer.json).get_vocab().values(), default=-1)
    if (highest := max(highest, *tokenizer.eos_token_ids, -1)) >= config.vocab_size:
        raise CheckpointError(
            f"{path}: its tokenizer has ids up to {highest}, its vocabulary only {config.vocab_size} entries"
        )


def plain_tokenizer(text: str, what: Path) -> str:
    """Returns a tokenizer.json with padding and truncation switched off.

    Raises:
        CheckpointError: if the text is no tokenizer.json.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises the bare class
        raise CheckpointError(f"{what} is no tokenizer.json that can be read: {_one_line(error)}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer.to_str()


def validated(fields: type[Fields], data: Mapping[str, object] | bytes, what: Path) -> Fields:
    """Returns metadata as typed fields, from a mapping or from JSON.

    Raises:
        CheckpointError: naming the file and the first field that is missing or wrong.
    """
    try:
        return fields.model_validate_json(data) if isinstance(data, bytes) else fields.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its contents"
        raise CheckpointError(f"{what}: {where}: {first['msg']}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
