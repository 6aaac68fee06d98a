"""Writes the reference outputs of `tests/encoder_zoo.py`'s small encoders, run by transformers on torch in f32.

Run by `make oracle`, like `make_references.py`. Writes, into `tests/golden`:

    encoders.npz         for each model its inputs' token ids, their lengths, and the vectors or logits
    encoders_about.json  the versions and the command that made them
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from encoder_zoo import LONGEST, VARIANTS, Variant, write_variant


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the reference outputs of small encoders.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "golden")
    output = parser.parse_args().output
    arrays: dict[str, np.ndarray] = {}
    for name, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as directory:
            arrays |= references(name, variant, write_variant(Path(directory), name))
    np.savez_compressed(output / "encoders.npz", allow_pickle=False, **arrays)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    about = {"command": "make oracle", "versions": versions}
    (output / "encoders_about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def references(name: str, variant: Variant, directory: Path) -> dict[str, np.ndarray]:
    """Returns the padded token ids, their lengths and what the model makes of them."""
    inputs = _inputs(variant, directory)
    mask = inputs["attention_mask"]
    if int(mask.sum(1).max()) != LONGEST:
        raise SystemExit(f"{name}: the longest input has {int(mask.sum(1).max())} tokens, not {LONGEST}")
    output = _load(variant.architecture, directory)(**inputs)
    if variant.architecture.endswith("ForSequenceClassification"):
        vectors = output.logits
    elif variant.architecture.endswith("ForMaskedLM"):
        vectors = (torch.log1p(torch.relu(output.logits)) * mask[:, :, None]).amax(1)
    elif name.endswith("cls"):
        vectors = torch.nn.functional.normalize(output.last_hidden_state[:, 0])
    else:
        pooled = (output.last_hidden_state * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        vectors = torch.nn.functional.normalize(pooled)
    print(name, tuple(vectors.shape), vectors[0, :3].tolist())
    return {
        f"{name}_ids": inputs["input_ids"].numpy().astype(np.int32),
        f"{name}_lengths": mask.sum(1).numpy().astype(np.int32),
        f"{name}_outputs": vectors.numpy(),
    }


def _inputs(variant: Variant, directory: Path) -> transformers.BatchEncoding:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"),
        pad_token="[PAD]" if variant.tokenizer == "bert" else "<pad>",
        model_input_names=["input_ids", "attention_mask"]
        + (["token_type_ids"] if variant.config.get("type_vocab_size") == 2 else []),
    )
    listed = [item if isinstance(item, tuple) else (item,) for item in variant.inputs]
    columns = [list(column) for column in zip(*listed, strict=True)]
    return tokenizer(*columns, padding="longest", return_tensors="pt")


def _load(architecture: str, directory: Path) -> torch.nn.Module:
    model, report = getattr(transformers, architecture).from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if any(report[kind] for kind in ("missing_keys", "mismatched_keys")):
        raise SystemExit(f"{directory} does not hold all weights of {architecture}: {report}")
    if unexpected := [key for key in report["unexpected_keys"] if not key.endswith("position_ids")]:
        print(f"  {architecture} has no place for {unexpected}")
    return model.eval()


if __name__ == "__main__":
    main()
