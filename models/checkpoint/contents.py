"""What every form of checkpoint amounts to: a configuration, a tokenizer, and tensors to be read one at a time.

Comes in: what `gguf.py` or `huggingface.py` found in the files. Goes out: a `Checkpoint` whose every tensor is known
to be there and to have the shape that the model wants, before the first one is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydantic
import tokenizers
from jaxtyping import Float

from ...errors import CheckpointError, UnsupportedModelError
from ..config import EncoderConfig, Experts, ModelConfig, StoredForm
from ..family import build
from ..quantization import quantize
from .recipes import Recipe, RecipeOf, TensorFiles, check_recipe, follow_fp8, follow_recipe

__all__ = [
    "ORBAX_DESCRIPTION",
    "Checkpoint",
    "TokenizerContents",
    "assemble",
    "check_sizes",
    "plain_tokenizer",
    "refuse",
    "validated",
]

ORBAX_DESCRIPTION = "model.json"  # a directory with this file is one that `orbax.py` wrote

Fields = TypeVar("Fields", bound=pydantic.BaseModel)


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
    path: Path
    files: TensorFiles = field(repr=False)
    recipes: Mapping[str, Recipe] = field(repr=False)  # of each parameter
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)  # of each parameter

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Dotted Flax paths of the parameters of `models.family.build(config.dense, …)`, in its order."""
        return tuple(self.recipes)

    def read(self, name: str) -> Float[np.ndarray, ...]:
        """Returns a tensor in f32, C-contiguous, in the shape of the parameter of that name of the dense model.

        Only this tensor is brought into memory; the file stays mapped as long as the checkpoint lives. Weights of a
        stored form are dequantized.

        Raises:
            CheckpointError: if the checkpoint has no tensor of that name or its bytes cannot be read.
        """
        if name not in self.recipes:
            raise CheckpointError(
                f"the checkpoint has no tensor {name!r}; it has {', '.join(self.tensor_names[:3])}, …"
            )
        return follow_recipe(self.path, name, self.recipes[name], self.shapes[name], self.files)

    def read_stored(self, name: str, form: StoredForm) -> tuple[np.ndarray, np.ndarray]:
        """Returns the values and scales of a weight in a stored form, in the shapes of `stored_arrays`.

        They mean exactly what `read` returns if the files have the weight in this form, else what is nearest to it.
        FP8 is taken from the files as it is: its scales cannot be told from the values.

        Raises:
            CheckpointError: as `read`.
        """
        if form == "fp8" and name in self.recipes:
            stored = follow_fp8(self.path, name, self.recipes[name], self.files)
            if stored is not None:
                return stored
        return quantize(self.read(name), form)


def assemble(
    path: Path,
    config: ModelConfig,
    tokenizer: TokenizerContents,
    *,
    max_sequence: int,
    files: TensorFiles,
    recipe_of: RecipeOf,
) -> Checkpoint:
    """Returns the checkpoint at `path`, its tensors checked against the model of its configuration.

    Args:
        path: The file or directory, as messages name it.
        config: Of the model; the form in which its weights are stored is kept, but read away.
        tokenizer: Of the model.
        max_sequence: Tokens of the longest sequence that the model is meant for.
        files: The tensors.
        recipe_of: How each parameter of the dense model is made from them.

    Raises:
        CheckpointError: if the configuration contradicts itself, if a tensor is missing or has another shape than it
            says, or if the tokenizer has ids beyond the vocabulary.
    """
    check_sizes(path, config)
    _check_layers(path, config, len(files.names))
    _check_vocabulary(path, config, tokenizer)
    shapes = {name: tuple(leaf.shape) for name, leaf in build(config.dense, np.float32).parameters.items()}
    recipes = {name: recipe_of(name, shape) for name, shape in shapes.items()}
    for name, recipe in recipes.items():
        check_recipe(path, name, recipe, files)
    return Checkpoint(
        config=config,
        tokenizer_json=tokenizer.json,
        chat_template=tokenizer.chat_template,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        eos_token_ids=tokenizer.eos_token_ids,
        max_sequence=max_sequence,
        path=path,
        files=files,
        recipes=recipes,
        shapes=shapes,
    )


def check_sizes(path: Path, config: ModelConfig) -> None:
    """Checks that the sizes of a model go together: what no shape of a tensor would give away.

    Raises:
        CheckpointError: naming those that don't.
    """
    if isinstance(config, EncoderConfig):
        if config.hidden_size % config.num_heads:
            raise CheckpointError(f"{path}: its heads do not divide evenly: {config}")
        return
    turning = config.head_size if config.latent is None else config.latent.rope_size
    if config.num_heads % config.num_kv_heads or (config.rope is not None and turning % 2):
        raise CheckpointError(
            f"{path}: its heads do not divide evenly: {config.num_heads} heads over {config.num_kv_heads} of keys and "
            f"values, {turning} values of each turn in pairs"
        )
    if config.experts is not None:
        _check_experts(path, config.experts)


def _check_experts(path: Path, experts: Experts) -> None:
    per_group, rest = divmod(experts.num_experts, experts.num_groups)
    if rest or not 0 < experts.groups_per_token <= experts.num_groups or (experts.num_groups > 1 and per_group < 2):
        raise CheckpointError(
            f"{path}: {experts.num_experts} experts in {experts.num_groups} groups, {experts.groups_per_token} of them "
            "a token, do not divide evenly"
        )
    if not 0 < experts.experts_per_token <= (limit := per_group * experts.groups_per_token):
        raise CheckpointError(f"{path}: {experts.experts_per_token} experts a token are not among {limit}")


def _check_layers(path: Path, config: ModelConfig, num_tensors: int) -> None:
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


def refuse(path: Path, unsupported: Mapping[str, bool], supported: str) -> None:
    """Refuses a model that has any of the unsupported things.

    Args:
        path: The model's file or directory.
        unsupported: Whether it has each of them.
        supported: What would be taken instead.

    Raises:
        UnsupportedModelError: naming what it has.
    """
    if found := [what for what, is_there in unsupported.items() if is_there]:
        raise UnsupportedModelError(f"{path}: {' and '.join(found)} not supported; supported: {supported}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
