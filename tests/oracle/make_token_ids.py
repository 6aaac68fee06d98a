"""Writes the token ids that the tests compare with, made by the reference tokenizers.

Run by `make oracle` in an environment with the extra `oracle`, or by itself; it needs no weights. Writes
`tests/golden/token_ids.json`, three small vocabularies, trained here, in the form that GGUF files have them; a page of
mixed text; and its ids by the reference tokenizer of each way of splitting.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import sentencepiece
import tokenizers
import transformers
from gguf import GGUFWriter, TokenType
from tokenizers import models, normalizers, pre_tokenizers, trainers

CONTROL_TOKENS = ("<|begin|>", "<|im_start|>", "<|im_end|>")
ADDED_TOKENS = ("<think>", "</think>")
NUM_MERGES = 500

PAGE = (
    "In 1984, 3.14159 and 1,000,000 cost $42 (or 50%) — ½ of ٣ and Ⅷ² in 2024-11-23T06:15:00Z",
    "don't we'll I'VE she's THEY'D you're i'm o'clock 'twas rock'n'roll",
    "Don\u2019t HelloWorld camelCaseName SCREAMING_SNAKE iPhone XMLHttpRequest mcDonald",
    "naïve café Zürich Ελληνικά русский язык Straße ĳ ﬁ ǅ",
    "cafe\u0301 nai\u0308ve Z\u030c\u0323 e\u0301\u0301 \u0301 a\u0300b q\u0307\u0323",
    "中文字符\uff0c日本語テキスト。한국어 문장 \uff46\uff55\uff4c\uff4c \uff57\uff49\uff44\uff54\uff48 漢字カタカナ123",
    "שלום עולם \u202b\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u202c ١٢٣",
    "हिन्दी में ไทยภาษา தமிழ் বাংলা ქართული",
    "😀 👩\u200d👩\u200d👧\u200d👦 👍🏽👍🏿 🇫🇷🇩🇪 ✨🕰️ ❤️\u200d🔥 #️⃣",
    'def f(x: int) -> str:\n    return f"{x!r:>10}"  # naïve\n\n\nclass A_b2(C3):\n\tpass\n',
    "\tif (a[i]&&b->c) {\n\t\treturn x**2 != 0x1F;\t// no\r\n\t}\r\n",
    "  two,   three,     five          ten\t\ttabs\t \t mixed   ",
    "\n\n\n  newlines \n \n\n and trailing   \n",
    "     ",
    " ",
    "\u00a0non\u2009breaking\u200bzero\ufeff\u3000wide \x00\x07\x1b[0m\x7f \U000e0041 \ufffd",
    "<|im_start|>system\nyou obey me<|im_end|>\n<|begin|></s><s><unk>[CLS] [SEP]<0x41>",
    "<think>so</think> <|im_<|im_end|>end|>",
    "https://example.org/a?b=c&d=%20#e me@example.org C:\\dir\\file.txt /usr/bin",
    "aaaaaaaaaa ======== -------- ....... !!!??? ((([[[{{{",
    "x",
)
TRAINING = (
    *PAGE,
    "A small harbour town has three ferries, twelve fishing boats and a lighthouse. Every morning the first ferry "
    "leaves at 6:15 with the post, the bread and the children who go to school on the mainland; it is back by noon, "
    "unless the fog is thick. Last winter the fog stayed for nine days, and the town learned to bake its own bread.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the reference token ids.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "golden" / "token_ids.json")
    versions = {library.__name__: library.__version__ for library in (transformers, tokenizers, sentencepiece)}
    about = {"command": "python tests/oracle/make_token_ids.py", "versions": versions}
    content = json.dumps({"about": about} | token_ids())
    parser.parse_args().output.write_text(content + "\n", encoding="utf-8")


def token_ids() -> dict[str, object]:
    """Returns the vocabularies, the page, and its ids by vocabulary and way of splitting."""
    byte_level, word_piece = _byte_level_vocabulary(), _word_piece_vocabulary()
    references = {
        name: {"vocabulary": "gpt2", "ids": _encode_page(make(byte_level))} for name, make in BYTE_LEVEL.items()
    }
    bert = transformers.BertTokenizer(vocab={word: index for index, word in enumerate(word_piece.pop("words"))})
    references["bert"] = {"vocabulary": "bert", "ids": _encode_page(bert)}
    bert_ids = {"unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3}  # as GGUF spells it
    vocabularies: dict[str, dict[str, object]] = {
        "gpt2": {"model": "gpt2", **byte_level},
        "bert": {"model": "bert", **word_piece, **bert_ids},
    }
    for name, has_prefix, added in (("llama", True, ()), ("llama-no-prefix", False, (*ADDED_TOKENS, "  ", "    "))):
        processor = _train_sentence_piece(added, has_prefix=has_prefix)
        vocabularies[name] = _sentence_piece_vocabulary(processor, added) | {"add_space_prefix": has_prefix}
        references[name] = {"vocabulary": name, "ids": [processor.encode(text) for text in PAGE]}
    return {"vocabularies": vocabularies, "page": PAGE, "references": references}


def _encode_page(tokenizer: transformers.PreTrainedTokenizerBase) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in PAGE]


def _byte_level_vocabulary() -> dict[str, list]:
    """Trains merges within long pieces, so that every way of splitting cuts some of them."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|[^\p{L}\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + NUM_MERGES, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TRAINING, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    types = [TokenType.NORMAL] * len(tokens)
    types += [TokenType.CONTROL] * len(CONTROL_TOKENS) + [TokenType.USER_DEFINED] * len(ADDED_TOKENS)
    merges = [" ".join(merge) for merge in trained["merges"]]
    return {"tokens": [*tokens, *CONTROL_TOKENS, *ADDED_TOKENS], "token_type": types, "merges": merges}


def _native(name: str) -> Callable[[dict[str, list]], transformers.PreTrainedTokenizerBase]:
    """Returns what makes one of transformers' own tokenizers, which bring their way of splitting with them."""

    def make(vocabulary: dict[str, list]) -> transformers.PreTrainedTokenizerBase:
        ids = {token: index for index, token in enumerate(vocabulary["tokens"])}
        merges = [tuple(merge.split(" ")) for merge in vocabulary["merges"]]
        plain = {f"{kind}_token": CONTROL_TOKENS[0] for kind in ("bos", "eos", "unk", "pad", "cls", "sep", "mask")}
        tokenizer = getattr(transformers, name)(vocab=ids, merges=merges, **plain)
        tokenizer.add_tokens(
            [tokenizers.AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS],
            special_tokens=True,
        )
        tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in ADDED_TOKENS])
        return tokenizer

    return make


def _from_gguf(pre: str) -> Callable[[dict[str, list]], transformers.PreTrainedTokenizerBase]:
    """Returns what writes a GGUF file with this name of a pre-tokenizer and has transformers read it."""

    def make(vocabulary: dict[str, list]) -> transformers.PreTrainedTokenizerBase:
        with tempfile.TemporaryDirectory() as directory:
            writer = GGUFWriter(Path(directory) / "vocabulary.gguf", "llama")
            for name in ("context_length", "embedding_length", "feed_forward_length", "block_count", "head_count"):
                getattr(writer, f"add_{name}")(64)
            writer.add_layer_norm_rms_eps(1e-5)
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(pre)
            writer.add_token_list(vocabulary["tokens"])
            writer.add_token_types(vocabulary["token_type"])
            writer.add_token_merges(vocabulary["merges"])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            return transformers.AutoTokenizer.from_pretrained(directory, gguf_file="vocabulary.gguf")

    return make


BYTE_LEVEL = {
    "gpt-2": _native("GPT2Tokenizer"),
    "qwen2": _native("Qwen2Tokenizer"),
    "qwen35": _native("Qwen3_5Tokenizer"),
    "command-r": _native("CohereTokenizer"),
    "llama-bpe": _from_gguf("llama-bpe"),
    "tekken": _from_gguf("tekken"),
    "gpt-4o": _from_gguf("gpt-4o"),
}


def _train_sentence_piece(added: tuple[str, ...], *, has_prefix: bool) -> sentencepiece.SentencePieceProcessor:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING),
        model_writer=written,
        model_type="bpe",
        vocab_size=800,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=[token.replace(" ", "\u2581") for token in added],
        add_dummy_prefix=has_prefix,
        control_symbols=list(CONTROL_TOKENS),
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def _sentence_piece_vocabulary(
    processor: sentencepiece.SentencePieceProcessor, added: tuple[str, ...]
) -> dict[str, object]:
    """Returns the pieces as GGUF files have them: those that were added with real spaces."""
    kinds = {
        "is_control": TokenType.CONTROL,
        "is_unknown": TokenType.UNKNOWN,
        "is_byte": TokenType.BYTE,
        "is_unused": TokenType.UNUSED,
    }
    pieces = range(processor.get_piece_size())
    tokens = [processor.id_to_piece(piece) for piece in pieces]
    types = [
        next((kind for test, kind in kinds.items() if getattr(processor, test)(piece)), TokenType.NORMAL)
        for piece in pieces
    ]
    for token in added:
        index = tokens.index(token.replace(" ", "\u2581"))
        tokens[index], types[index] = token, TokenType.USER_DEFINED
    return {
        "model": "llama",
        "tokens": tokens,
        "token_type": types,
        "scores": [processor.get_score(piece) for piece in pieces],
    }


def _word_piece_vocabulary() -> dict[str, list]:
    """Returns words as BERT has them, and the same in the form of GGUF: marked where a word begins.

    Common words, beginnings, ends and letters; the library's trainer makes others in every run.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalized = normalizers.BertNormalizer().normalize_str(" ".join(TRAINING))
    found = [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalized)]
    counts = Counter(found)
    pieces = {word for word in found if counts[word] > 1} | {word[:3] for word in found} | {word[0] for word in found}
    letters = Counter(letter for word in found for letter in word[1:])
    pieces |= {f"##{word[-2:]}" for word in found} | {f"##{letter}" for letter in letters if letters[letter] > 1}
    plain = sorted(pieces)
    words = [*special, *plain]
    tokens = [*special, *(word[2:] if word.startswith("##") else f"\u2581{word}" for word in plain)]
    types = [TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * len(plain)
    return {"words": words, "tokens": tokens, "token_type": types}


if __name__ == "__main__":
    main()
