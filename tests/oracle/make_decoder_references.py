"""Writes the reference outputs of the tiny decoders: transformers on torch in f32, and llama.cpp's GGUF files.

Run by hand in the environment that `make oracle` sets up; nothing else needs torch. Writes, into
`tests/golden/decoders`, for each case of `tests/decoder_zoo.py`:

    CASE.npz          prompts, the logits after them and at eight steps through the cache: what `references` returns
    CASE.TYPE.gguf    the same weights as llama.cpp's converter writes them; with --llama-cpp only
    about.json        versions, commands, and per case: the smallest margin of a router, the largest logit, how far
                      transformers' cache is from its own single pass, and its older form from the saved one

The references are of the saved form. transformers reads the published form too (older keys, bfloat16, MXFP4, shards)
and must get the same logits from it, but for FP8: version 5.23 takes rows / scale rows for the size of a block, which
is wrong where the last block is not whole. Configuration and names of tensors must equal what transformers saves. The
converter reads the published form; it is that of a llama.cpp checkout (as in the source distribution of
llama-cpp-python 0.3.36), unchanged but for the tokenizer: it knows no hash of a tiny one's, and so is told that all
are byte-level with the pre-tokenizer "gpt-2". It imports sentencepiece, which `make oracle` doesn't install.

    .venv-oracle/bin/python tests/oracle/make_decoder_references.py [--llama-cpp CHECKOUT] [CASE ...]
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1]))
from decoder_case import NUM_DECODE_TOKENS, PROMPT_LENGTHS, DecoderCase
from decoder_files import decoder_tokens, write_decoder
from decoder_zoo import CASES

SMALLEST_MARGIN = 1e-3  # between the last expert or group that a token goes to and the next
LARGEST_DISAGREEMENT = 2e-5  # of transformers with itself, by max|difference| / max|reference|
STRIDE = 8  # every eighth position of a long prompt is stored, counted back from the last


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the reference outputs of the tiny decoders.")
    parser.add_argument("cases", nargs="*", help="names of cases; all by default")
    parser.add_argument("--llama-cpp", type=Path, help="a checkout of llama.cpp: writes the GGUF files too")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "golden" / "decoders")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    about_path = options.output / "about.json"
    about = json.loads(about_path.read_text()) if about_path.exists() else {"cases": {}}
    for name in options.cases or CASES:
        with tempfile.TemporaryDirectory() as directory:
            arrays, notes = reference(CASES[name], Path(directory))
            if options.llama_cpp:
                _convert(CASES[name], Path(directory), options, arrays)
        np.savez_compressed(options.output / f"{name}.npz", allow_pickle=False, **arrays)
        about["cases"][name] = notes
        print(name, notes, flush=True)
    about |= {"command": "python tests/oracle/make_decoder_references.py --llama-cpp CHECKOUT", "versions": _versions()}
    about_path.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def reference(case: DecoderCase, directory: Path) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Returns a case's references and what is to be known of them, after checking both forms of its directory.

    Args:
        case: A tiny decoder.
        directory: Where its two forms are written, as "saved" and "published".

    Returns:
        Arrays by name, for each length L of a prompt: `tokens_L`, of the prompt and the steps; `positions_L`, of the
        prompt's rows; `prefill_L` [positions, vocab]; `decode_L` [steps, vocab].

    Raises:
        SystemExit: if transformers disagrees with the case, or with itself, or a router is too close to a tie.
    """
    model = load(write_decoder(case, directory / "saved", "saved"))
    _check_saved(case, model, directory / "again")
    with _margins(model) as margins:
        arrays, disagreement = references(case, model)
    published = write_decoder(case, directory / "published", "published")
    again = arrays if case.quantization == "fp8" else references(case, load(published))[0]
    notes = {
        "largest_logit": max(float(np.abs(arrays[f"prefill_{length}"]).max()) for length in PROMPT_LENGTHS),
        "cache_disagreement": disagreement,
        "published_disagreement": max(_distance(again[name], arrays[name]) for name in arrays),
    }
    if margins:
        notes["router_margin"] = min(margins)
    if max(notes["cache_disagreement"], notes["published_disagreement"]) > LARGEST_DISAGREEMENT:
        raise SystemExit(f"{case.name}: transformers disagrees with itself: {notes}")
    if min(margins, default=1.0) < SMALLEST_MARGIN:
        raise SystemExit(f"{case.name}: a router is within {min(margins):.1e} of a tie; take another draw")
    return arrays, notes


def load(directory: Path, **source: str) -> transformers.PreTrainedModel:
    """Returns a directory's model in f32, quantized weights dequantized.

    Raises:
        SystemExit: if a weight is missing or has another shape.
    """
    method = json.loads((directory / "config.json").read_text()).get("quantization_config", {}).get("quant_method")
    quantization = {
        "fp8": transformers.FineGrainedFP8Config(weight_block_size=(128, 128), dequantize=True),
        "mxfp4": transformers.Mxfp4Config(dequantize=True),
    }
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
        **({"quantization_config": quantization[method]} if method else {}),
        **source,
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise SystemExit(f"{directory} does not hold all weights of {type(model).__name__}: {report}")
    return model.eval()


def _check_saved(case: DecoderCase, model: transformers.PreTrainedModel, directory: Path) -> None:
    """Ends the program if transformers saves another configuration or other tensors than the case has."""
    model.save_pretrained(directory)
    saved = json.loads((directory / "config.json").read_text()) | {"transformers_version": ""}
    expected = case.config | {"transformers_version": ""}
    if saved != expected:
        keys = [key for key in sorted({*saved, *expected}) if saved.get(key, "-") != expected.get(key, "-")]
        raise SystemExit(
            f"{case.name}: transformers saves { {key: saved.get(key, '-') for key in keys} } "
            f"and the case has { {key: expected.get(key, '-') for key in keys} }"
        )
    with safe_open(directory / "model.safetensors", "pt") as ours:
        names = set(ours.keys())
    with safe_open(directory.with_name("saved") / "model.safetensors", "pt") as theirs:
        if differing := names ^ set(theirs.keys()):
            raise SystemExit(f"{case.name}: tensors not in both directories: {sorted(differing)}")


@torch.no_grad()
def references(case: DecoderCase, model: transformers.PreTrainedModel) -> tuple[dict[str, np.ndarray], float]:
    """Returns the arrays of `reference`, and how far the cache's logits are from those of a single pass."""
    arrays: dict[str, np.ndarray] = {}
    disagreements = []
    for length in PROMPT_LENGTHS:
        tokens = torch.tensor(decoder_tokens(case, length), dtype=torch.long)[None]
        output = model(tokens[:, :length], use_cache=True)
        prefill, rows = output.logits[0], []
        for step in range(length, length + NUM_DECODE_TOKENS):
            output = model(tokens[:, step : step + 1], past_key_values=output.past_key_values, use_cache=True)
            rows.append(output.logits[0, 0])
        whole = model(tokens, use_cache=False).logits[0]
        disagreements.append(_distance(torch.cat([prefill, torch.stack(rows)]).numpy(), whole.numpy()))
        positions = np.arange(length)[:: -1 if length < 16 else -STRIDE][::-1]
        arrays |= {
            f"tokens_{length}": tokens[0].numpy().astype(np.int32),
            f"positions_{length}": positions.astype(np.int32),
            f"prefill_{length}": prefill.numpy()[positions],
            f"decode_{length}": torch.stack(rows).numpy(),
        }
    return arrays, max(disagreements)


def _distance(values: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(values - reference).max() / np.abs(reference).max())


@contextmanager
def _margins(model: transformers.PreTrainedModel) -> Iterator[list[float]]:
    """Collects each router's smallest distance between what a token goes to and the best that it does not.

    Softmax routers are measured in logits, for their order is that of the logits; DeepSeek-V3's in what it sorts by:
    sigmoids plus biases, and for groups the sums of their two best.
    """
    margins: list[float] = []

    def measure(router: torch.nn.Module, _inputs: object, outputs: tuple[torch.Tensor, ...]) -> None:
        scores = outputs[0].detach().reshape(-1, router.num_experts)
        has_bias = hasattr(router, "e_score_correction_bias")
        if has_bias:
            scores = scores.sigmoid() + router.e_score_correction_bias
        if getattr(router, "topk_group", None) and router.topk_group < router.num_group:
            groups = scores.reshape(len(scores), router.num_group, -1)
            best = groups.topk(2 if has_bias else 1).values.sum(-1)
            margins.append(_gap(best, router.topk_group))
            last = best.topk(router.topk_group).values[:, -1:]
            scores = groups.masked_fill((best < last)[:, :, None], -torch.inf).flatten(1)
        margins.append(_gap(scores, router.top_k))

    hooks = [
        module.register_forward_hook(measure)
        for module in model.modules()
        if type(module).__name__.lower().endswith("topkrouter")
    ]
    yield margins
    for hook in hooks:
        hook.remove()


def _gap(scores: torch.Tensor, chosen: int) -> float:
    best = scores.topk(chosen + 1).values
    return float((best[:, -2] - best[:, -1]).min())


def convert(case: DecoderCase, directory: Path, llama_cpp: Path, gguf_type: str, output: Path) -> None:
    """Writes a case's GGUF file with llama.cpp's converter.

    Args:
        case: A tiny decoder.
        directory: Its directory with weights that the converter reads.
        llama_cpp: A checkout of llama.cpp.
        gguf_type: "f32", "f16" or "q8_0"; MXFP4 stays MXFP4.
        output: The file to write.
    """
    code = (
        "import runpy, sys\n"
        "checkout, family = sys.argv[1:3]\n"
        "sys.path[:0] = [checkout, checkout + '/gguf-py']\n"
        "from conversion import base, get_model_class\n"
        "from transformers import AutoTokenizer, PreTrainedTokenizerFast\n"
        "base.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'gpt-2'\n"
        "model = get_model_class(family)\n"
        "AutoTokenizer.from_pretrained = PreTrainedTokenizerFast.from_pretrained\n"
        "model.set_vocab = base.TextModel._set_vocab_gpt2\n"
        "sys.argv[1:] = sys.argv[3:]\n"
        "runpy.run_path(checkout + '/convert_hf_to_gguf.py', run_name='__main__')\n"
    )
    architecture = case.config["architectures"]
    assert isinstance(architecture, list)
    command = [sys.executable, "-c", code, str(llama_cpp), str(architecture[0]), str(directory)]
    command += ["--outtype", gguf_type, "--outfile", str(output), "--model-name", case.name]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{case.name}: the converter failed: {process.stderr[-3000:]}")


def _convert(case: DecoderCase, directory: Path, options: argparse.Namespace, arrays: dict[str, np.ndarray]) -> None:
    """Writes a case's GGUF files, and adds the references of those whose weights are not the directory's."""
    for gguf_type in case.gguf_types:
        output = options.output / f"{case.name}.{gguf_type}.gguf"
        convert(case, directory / "published", options.llama_cpp.resolve(), gguf_type, output)
        if gguf_type == "q8_0":
            quantized, _ = references(case, load(directory / "published", gguf_file=str(output.resolve())))
            arrays |= {
                f"q8_0_{name}": rows for name, rows in quantized.items() if name.startswith(("prefill", "decode"))
            }


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


if __name__ == "__main__":
    main()
