"""Checkpoints in GGUF files, as llama.cpp's converter writes them.

Comes in: the path of a `.gguf` file. Goes out: a `Checkpoint`; quantized tensors are dequantized as they are read. The
configuration is made in `gguf_config.py`, parameters as `gguf_names.py` says, the tokenizer in `gguf_tokenizer.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gguf import GGMLQuantizationType

from ...errors import UnsupportedModelError
from ..config import DecoderConfig, StoredForm, StoredPart
from .contents import Checkpoint, assemble, validated
from .gguf_config import architecture_of, config_from_gguf
from .gguf_names import gguf_recipes
from .gguf_reader import GGUFFiles, read_gguf
from .gguf_tokenizer import Vocabulary, rebuild_tokenizer
from .recipes import Recipe

__all__ = ["open_gguf"]

_FORMS: dict[GGMLQuantizationType, StoredForm] = {
    GGMLQuantizationType.MXFP4: "mxfp4",
    GGMLQuantizationType.Q8_0: "q8_0",
    GGMLQuantizationType.Q4_0: "q4_0",
}

# The products of each part; the part with the most bytes first, for a configuration has one stored form.
_PRODUCTS: dict[StoredPart, re.Pattern[str]] = {
    "experts": re.compile(r"layers\.\d+\.mlp\.(gate|up|down)\.weight"),
    "mlp": re.compile(r"layers\.\d+\.mlp\.(shared\.)?(gate|up|down)\.weight"),
    "attention": re.compile(r"layers\.\d+\.attention\.(query|key|value|output|query_down|kv_down|kv)\.weight"),
}

# Tensors that are no parameters: frequency factors are in the configuration, layers that only draft further tokens
# are not needed, and old files have angles that follow from it.
_OTHER_TENSORS = re.compile(r"rope_freqs\.weight|blk\.\d+\.(nextn\.\w+|attn_rot_embd|rope_freqs).*")


def open_gguf(path: Path) -> Checkpoint:
    """Opens a GGUF file, and the others if it is the first of several splits.

    Raises:
        UnsupportedModelError: if its architecture, quantization or tokenizer is none that plait reads.
        CheckpointError: if it is truncated or damaged, or its tensors do not match its metadata.
    """
    metadata, files = read_gguf(path)
    architecture_of(path, metadata)
    vocabulary = validated(Vocabulary, metadata, path)
    config = config_from_gguf(path, metadata, files, num_tokens=len(vocabulary.tokens))
    checkpoint = assemble(
        path,
        config,
        rebuild_tokenizer(path, vocabulary),
        max_sequence=config.max_positions,
        files=files,
        recipe_of=gguf_recipes(config, files.names),
    )
    _check_all_are_used(path, config, checkpoint.recipes, files)
    return replace(checkpoint, config=_with_stored_form(config, checkpoint.recipes, files))


def _check_all_are_used(path: Path, config: DecoderConfig, recipes: Mapping[str, Recipe], files: GGUFFiles) -> None:
    """Refuses a tensor that nothing is made from: the model would do something with it."""
    used = {name for recipe in recipes.values() for source in recipe.sources for name in source.names}
    drafting = tuple(f"blk.{layer}." for layer in range(config.num_layers, config.num_layers + _MAX_DRAFTING))
    for name in files.names:
        if name not in used and not _OTHER_TENSORS.fullmatch(name) and not name.startswith(drafting):
            raise UnsupportedModelError(
                f"{path}: its tensor {name!r} is none that {config.architecture} has; supported: models without it"
            )


_MAX_DRAFTING = 4  # layers behind the last that draft further tokens


def _with_stored_form(config: DecoderConfig, recipes: Mapping[str, Recipe], files: GGUFFiles) -> DecoderConfig:
    """Returns the configuration with the form in which all products of some parts are quantized, if there is one."""
    forms = {part: form for part in _PRODUCTS if (form := _form(part, config, recipes, files)) is not None}
    if not forms:
        return config
    form = next(iter(forms.values()))
    return replace(config, stored_form=form, stored_parts=tuple(part for part in forms if forms[part] == form))


def _form(
    part: StoredPart, config: DecoderConfig, recipes: Mapping[str, Recipe], files: GGUFFiles
) -> StoredForm | None:
    types = {
        files.tensors[source.names[0]].tensor_type
        for name, recipe in recipes.items()
        if _PRODUCTS[part].fullmatch(name) and (part == "attention" or _part_of_mlp(name, config) == part)
        for source in recipe.sources
    }
    return _FORMS.get(types.pop()) if len(types) == 1 else None


def _part_of_mlp(name: str, config: DecoderConfig) -> StoredPart:
    return "experts" if config.has_experts(int(name.split(".")[1])) and ".shared." not in name else "mlp"
