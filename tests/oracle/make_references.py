"""Writes the reference outputs that the tests compare with: the same weights run by transformers on torch, in f32.

Run by `make oracle` in an environment with the extra `oracle`; nothing else needs torch. Writes, into `tests/golden`:

    reference_smollm2.npz   logits over two prompts and 32 greedy decode steps each, restricted to 512 vocabulary ids
    reference_bert.npz      MiniLM's embeddings and SPLADE's sparse vectors
    reference_tokens.json   token ids of mixed text, by a byte-pair encoder written here from its definition
    reference_about.json    the texts, the versions and the command that made these files
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import regex
import torch
import transformers
from gguf import GGUFReader

NUM_VOCABULARY_IDS = 512
NUM_DECODE_STEPS = 32
SEED = 20_240

PROMPTS = {
    "capital": "What is the capital of France?",
    "harbour": (
        "A small harbour town has 3 ferries, 12 fishing boats and a lighthouse built in 1874. Every morning the first "
        "ferry leaves at 6:15 with the post, the bread and the children who go to school on the mainland; it is back "
        "by noon, unless the fog is thick. Last winter the fog stayed for nine days, and the town learned to bake its "
        "own bread. Tell me in a few sentences what you would write about this town in a letter to a friend."
    ),
}
SENTENCES = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The stock market fell by three percent on Tuesday.",
    "Wie spät ist es in München? 🕰️ 12:30",
)
QUERY = "what causes tides in the ocean"
PASSAGES = (
    "Tides are caused by the gravitational pull of the moon and the sun on the oceans of the earth.",
    "The recipe needs two eggs, a cup of flour and a pinch of salt.",
    "Waves at the beach are made by wind blowing over the surface of the sea.",
)
MIXED_TEXT = (
    "What is the capital of France?",
    "  two spaces,\ttab,\n\n  newlines \n and trailing   ",
    "In 1984, 3.14159 and 1,000,000 cost $42 (or 50%) — ½ of ٣ and Ⅷ²",
    "don't we'll I'VE she's they'd you're i'm",
    "naïve café Zürich Ελληνικά русский עברית हिन्दी ไทย",
    "中文字符\uff0c日本語テキスト。한국어",
    "😀 👩\u200d👩\u200d👧\u200d👦 🇫🇷 ✨🕰️",
    'def f(x: int) -> str:\n    return f"{x!r:>10}"  # naïve\n\n\nclass A_b2(C3):\n\tpass\n',
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "\u00a0non\u2009breaking\u200bzero\ufeff \x00\x07 \U000e0041",
)


def main() -> None:
    options = _options()
    torch.manual_seed(0)
    options.output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        options.output / "reference_smollm2.npz", allow_pickle=False, **smollm2_references(options.smollm2)
    )
    bert = minilm_references(options.minilm) | splade_references(options.splade)
    np.savez_compressed(options.output / "reference_bert.npz", allow_pickle=False, **bert)
    _write_json(options.output / "reference_tokens.json", token_references(options.smollm2))
    _write_json(options.output / "reference_about.json", about())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write the reference outputs of the named models.")
    for name in ("smollm2", "minilm", "splade"):
        parser.add_argument(f"--{name}", type=Path, help="the model's GGUF file or directory; pulled if not given")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "golden")
    options = parser.parse_args()
    for option, model in (("smollm2", "smollm2-135m"), ("minilm", "minilm-l6"), ("splade", "splade-tiny")):
        if getattr(options, option) is None:
            setattr(options, option, _pull(model))
    return options


def _pull(model: str) -> Path:
    from plait.models.registry import pull  # only here: with paths given, the script needs no plait

    return pull(model)


def about() -> dict[str, object]:
    """Returns the texts behind the references and how to make them again."""
    return {
        "command": "make oracle",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
        "prompts": PROMPTS,
        "sentences": SENTENCES,
        "query": QUERY,
        "passages": PASSAGES,
    }


@torch.no_grad()
def smollm2_references(gguf: Path) -> dict[str, np.ndarray]:
    """Returns, per prompt, its token ids, the greedy tokens, and the logits at every position of both."""
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    generator = np.random.default_rng(SEED)
    vocabulary_ids = np.sort(generator.choice(model.config.vocab_size, NUM_VOCABULARY_IDS, replace=False))
    arrays = {"vocabulary_ids": vocabulary_ids.astype(np.int32)}
    encoder = BytePairEncoder(gguf)
    for name, prompt in PROMPTS.items():
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        prompt_ids = encoder.encode(text)
        greedy_ids, logits = _greedy(model, prompt_ids)
        arrays[f"{name}_prompt_ids"] = np.array(prompt_ids, np.int32)
        arrays[f"{name}_greedy_ids"] = np.array(greedy_ids, np.int32)
        arrays[f"{name}_logits"] = logits[:, vocabulary_ids]
        arrays[f"{name}_max_abs_logit"] = np.abs(logits).max(axis=1)
        arrays[f"{name}_argmax"] = logits.argmax(axis=1).astype(np.int32)
        print(f"{name}: {len(prompt_ids)} prompt tokens, greedy: {tokenizer.decode(greedy_ids)!r}")
    return arrays


def _greedy(model: torch.nn.Module, prompt_ids: list[int]) -> tuple[list[int], np.ndarray]:
    """Returns 32 greedy tokens (past an end of text too) and the logits [prompt + 32, vocab] at all positions."""
    output = model(torch.tensor([prompt_ids]), use_cache=True)
    rows, greedy_ids = [output.logits[0]], []
    for _ in range(NUM_DECODE_STEPS):
        greedy_ids.append(int(rows[-1][-1].argmax()))
        output = model(torch.tensor([[greedy_ids[-1]]]), past_key_values=output.past_key_values, use_cache=True)
        rows.append(output.logits[0])
    return greedy_ids, torch.cat(rows).numpy()


def _load(model_class: type, directory: Path) -> torch.nn.Module:
    model, report = model_class.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise SystemExit(f"{directory} does not hold all weights of {model_class.__name__}: {report}")
    return model.eval()


def _inputs(directory: Path, texts: tuple[str, ...]) -> transformers.BatchEncoding:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"), pad_token="[PAD]", model_max_length=512
    )
    return tokenizer(list(texts), padding="longest", return_tensors="pt")


@torch.no_grad()
def minilm_references(directory: Path) -> dict[str, np.ndarray]:
    """Returns the token ids and the mean-pooled, normalized embeddings of the sentences."""
    inputs = _inputs(directory, SENTENCES)
    hidden = _load(transformers.BertModel, directory)(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    embeddings = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    print("minilm: cosine of the first two sentences", float(embeddings[0] @ embeddings[1]))
    return {
        "minilm_ids": inputs["input_ids"].numpy().astype(np.int32),
        "minilm_lengths": inputs["attention_mask"].sum(1).numpy().astype(np.int32),
        "minilm_embeddings": embeddings.numpy(),
    }


@torch.no_grad()
def splade_references(directory: Path) -> dict[str, np.ndarray]:
    """Returns the token ids of the query and the passages and the nonzero entries of their sparse vectors."""
    inputs = _inputs(directory, (QUERY, *PASSAGES))
    logits = _load(transformers.BertForMaskedLM, directory)(**inputs).logits
    vectors = (torch.log1p(torch.relu(logits)) * inputs["attention_mask"][:, :, None]).amax(1)
    print("splade: relevance of the passages", [float(vectors[0] @ passage) for passage in vectors[1:]])
    rows, ids = vectors.nonzero(as_tuple=True)
    return {
        "splade_ids": inputs["input_ids"].numpy().astype(np.int32),
        "splade_lengths": inputs["attention_mask"].sum(1).numpy().astype(np.int32),
        "splade_rows": rows.numpy().astype(np.int32),
        "splade_entries": ids.numpy().astype(np.int32),
        "splade_values": vectors[rows, ids].numpy(),
    }


def token_references(gguf: Path) -> list[dict[str, object]]:
    """Returns the mixed texts with their token ids."""
    encoder = BytePairEncoder(gguf)
    return [{"text": text, "ids": encoder.encode(text)} for text in MIXED_TEXT]


class BytePairEncoder:
    """SmolLM2's tokenizer from its definition, slow and obvious.

    transformers rebuilds a GGUF's tokenizer without the split into single digits that `tokenizer.ggml.pre = smollm`
    asks for, and so is no reference for it.
    """

    _DIGIT = regex.compile(r"\p{N}")
    _WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def __init__(self, gguf: Path) -> None:
        fields = GGUFReader(gguf).fields
        tokens = fields["tokenizer.ggml.tokens"].contents()
        types = fields["tokenizer.ggml.token_type"].contents()
        merges = fields["tokenizer.ggml.merges"].contents()
        self._ids = {token: token_id for token_id, token in enumerate(tokens)}
        self._ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        controls = [regex.escape(token) for token, kind in zip(tokens, types, strict=True) if kind == 3]
        self._controls = regex.compile("(" + "|".join(controls) + ")")
        self._characters = dict(_byte_characters())

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._controls.split(text):
            if self._controls.fullmatch(part):
                ids.append(self._ids[part])
            else:
                ids += [token_id for word in self._split(part) for token_id in self._word(word)]
        return ids

    def _split(self, text: str) -> Iterator[str]:
        start = 0
        for digit in self._DIGIT.finditer(text):
            yield from self._WORDS.findall(text[start : digit.start()])
            yield digit.group()
            start = digit.end()
        yield from self._WORDS.findall(text[start:])

    def _word(self, word: str) -> list[int]:
        characters = (self._characters[byte] for byte in word.encode())
        pieces = [character for character in characters if character in self._ids]  # a few bytes have no token
        while len(pieces) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in pairwise(pieces)]
            best = ranks.index(min(ranks))
            if ranks[best] == len(self._ranks):
                break
            pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
        return [self._ids[piece] for piece in pieces]


def _byte_characters() -> Iterator[tuple[int, str]]:
    """Yields GPT-2's printable character for each byte."""
    extra = 0
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF:
            yield byte, chr(byte)
        else:
            yield byte, chr(256 + extra)
            extra += 1


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
