"""The tokenizer of a GGUF file, rebuilt from its metadata.

Comes in: the fields `tokenizer.*` of a file. Goes out: a tokenizer.json that gives the ids of the tokenizer that the
file was converted from. The hazard: the file has tokens, and merges or scores, but only the name of the rules by which
text is split before; what a name stands for is written down here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from gguf import TokenType
from pydantic import BaseModel, Field
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from ...errors import CheckpointError, UnsupportedModelError
from .contents import TokenizerContents

__all__ = ["Vocabulary", "rebuild_tokenizer"]

_SPACE = "\u2581"  # what SentencePiece writes for a space
_SPECIAL_TYPES = (TokenType.CONTROL, TokenType.UNKNOWN)


class Vocabulary(BaseModel):
    """The tokenizer's fields of a GGUF file."""

    model: str = Field(alias="tokenizer.ggml.model")
    pre: str = Field("default", alias="tokenizer.ggml.pre")
    tokens: list[str] = Field(alias="tokenizer.ggml.tokens", min_length=1)
    token_types: list[int] = Field(alias="tokenizer.ggml.token_type")
    scores: list[float] = Field([], alias="tokenizer.ggml.scores")
    merges: list[str] = Field([], alias="tokenizer.ggml.merges")
    add_bos_token: bool | None = Field(None, alias="tokenizer.ggml.add_bos_token")
    add_eos_token: bool = Field(False, alias="tokenizer.ggml.add_eos_token")
    add_space_prefix: bool = Field(True, alias="tokenizer.ggml.add_space_prefix")
    is_lowercase: bool = Field(True, alias="tokenizer.ggml.normalizer.lowercase")
    strips_accents: bool | None = Field(None, alias="tokenizer.ggml.normalizer.strip_accents")
    bos_token_id: int | None = Field(None, alias="tokenizer.ggml.bos_token_id", ge=0)
    eos_token_id: int | None = Field(None, alias="tokenizer.ggml.eos_token_id", ge=0)
    eot_token_id: int | None = Field(None, alias="tokenizer.ggml.eot_token_id", ge=0)
    eom_token_id: int | None = Field(None, alias="tokenizer.ggml.eom_token_id", ge=0)
    unknown_token_id: int | None = Field(None, alias="tokenizer.ggml.unknown_token_id", ge=0)
    cls_token_id: int | None = Field(None, alias="tokenizer.ggml.cls_token_id", ge=0)
    separator_token_id: int | None = Field(None, alias="tokenizer.ggml.seperator_token_id", ge=0)  # as GGUF spells it
    chat_template: str | None = Field(None, alias="tokenizer.chat_template")

    def token(self, token_id: int | None) -> str | None:
        """Returns the text of a token, None for none."""
        return None if token_id is None else self.tokens[token_id]

    def of_types(self, *types: TokenType) -> list[str]:
        """Returns the tokens of some types."""
        return [token for token, kind in zip(self.tokens, self.token_types, strict=True) if kind in types]


@dataclass(frozen=True)
class _Splitting:
    """How a byte-level vocabulary wants text to be split before merges."""

    patterns: tuple[str, ...]  # one after another; every match of one is a piece
    ignores_merges: bool = False  # a piece that is a token is that token, whatever the merges say
    adds_bos: bool = False  # unless the file says otherwise
    is_composed: bool = False  # text is brought to NFC first


_SUFFIXES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SUFFIXES}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_QWEN2 = rf"{_SUFFIXES}|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_QWEN35 = rf"{_SUFFIXES}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_REST}"
_TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
_GPT4O = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_SUFFIXES}?|{_LEAD}{_UPPER}+{_LOWER}*{_SUFFIXES}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_REST}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}")

_DIGITS = _Splitting((r"\p{N}", _GPT2))
_LLAMA = _Splitting((_LLAMA3,), ignores_merges=True, adds_bos=True)
_SPLITTINGS = {
    **dict.fromkeys(("gpt-2", "phi-2"), _Splitting((_GPT2,))),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    "command-r": _Splitting(_DIGITS.patterns, is_composed=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), _LLAMA),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _Splitting((_LLAMA3,))),
    "glm4": _Splitting((_LLAMA3,), ignores_merges=True),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _Splitting((_QWEN2,), is_composed=True)),
    "stablelm2": _Splitting((_QWEN2,)),
    "qwen35": _Splitting((_QWEN35,), is_composed=True),
    "tekken": _Splitting((_TEKKEN,), ignores_merges=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _Splitting((_GPT4O,))),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), _Splitting(_DEEPSEEK3)),
    "deepseek-coder": _Splitting(_DEEPSEEK_CODER),
}


def rebuild_tokenizer(path: Path, vocabulary: Vocabulary) -> TokenizerContents:
    """Returns the tokenizer of a GGUF file and what belongs to it.

    Control tokens are special, tokens that the model's makers added are not, as the file has them. Tokens before and
    after every text are those that the file asks for, or that are usual with its kind of tokenizer.

    Raises:
        UnsupportedModelError: if it is of another kind than byte-level BPE with a known way of splitting,
            SentencePiece's BPE or WordPiece.
        CheckpointError: if its lists contradict each other.
    """
    _check(path, vocabulary)
    builders = {"gpt2": _byte_level, "llama": _sentence_piece, "bert": _word_piece}
    is_known = vocabulary.model != "gpt2" or vocabulary.pre in _SPLITTINGS
    if vocabulary.model not in builders or not is_known:
        raise UnsupportedModelError(
            f"{path}: tokenizer {vocabulary.model!r} with pre-tokenizer {vocabulary.pre!r} is not supported; "
            f"supported: 'llama', 'bert', and 'gpt2' with {', '.join(map(repr, _SPLITTINGS))}"
        )
    try:
        tokenizer = builders[vocabulary.model](vocabulary)
    except Exception as error:  # the library raises the bare class
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: its tokens and merges do not fit together: {reason}") from None
    ends = (vocabulary.eos_token_id, vocabulary.eot_token_id, vocabulary.eom_token_id)
    return TokenizerContents(
        json=tokenizer.to_str(),
        chat_template=vocabulary.chat_template,
        bos_token=vocabulary.token(vocabulary.bos_token_id),
        eos_token=vocabulary.token(vocabulary.eos_token_id),
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
    )


def _check(path: Path, vocabulary: Vocabulary) -> None:
    num_tokens = len(vocabulary.tokens)
    lists = {"token types": vocabulary.token_types, "scores": vocabulary.scores}
    for name, values in lists.items():
        if len(values) != num_tokens and (values or vocabulary.model == "llama" or name == "token types"):
            raise CheckpointError(f"{path}: it has {num_tokens} tokens but {len(values)} {name}")
    if num_tokens != len(set(vocabulary.tokens)):
        seen: set[str] = set()
        twice = next(token for token in vocabulary.tokens if token in seen or seen.add(token))
        raise CheckpointError(f"{path}: its token {twice!r} is there twice")
    named = {name: value for name, value in vocabulary if name.endswith("_token_id") and value is not None}
    for name, token_id in named.items():
        if token_id >= num_tokens:
            raise CheckpointError(f"{path}: its {name} {token_id} is not among its {num_tokens} tokens")


def _byte_level(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    splitting = _SPLITTINGS[vocabulary.pre]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in vocabulary.merges)]
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=splitting.ignores_merges))
    if splitting.is_composed:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splitting.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, vocabulary)
    _surround(tokenizer, vocabulary, adds_bos=splitting.adds_bos)
    return tokenizer


def _sentence_piece(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    unknown = vocabulary.tokens[_given(vocabulary.unknown_token_id, 0)]
    model = models.BPE(vocab=ids, merges=_merges(vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    prefix = [normalizers.Prepend(_SPACE)] if vocabulary.add_space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.add_space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_tokens(tokenizer, vocabulary)
    _surround(tokenizer, vocabulary, adds_bos=True)
    return tokenizer


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Returns every way to make a token of two others, the token of the highest score first.

    Of several ways to make the same token the one with the longer left part comes first. Only what text can be made
    of takes part: no merge makes a control token, nor one that was added and is found in the text before.
    """
    pieces = set(vocabulary.of_types(TokenType.NORMAL, TokenType.UNUSED))
    made = [
        (-score, cut - len(token), token[:cut], token[cut:])
        for token, score in zip(vocabulary.tokens, vocabulary.scores, strict=True)
        if token in pieces
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    return [(left, right) for _, _, left, right in sorted(made, key=lambda merge: merge[:2])]


def _word_piece(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    tokens = [
        token if kind == TokenType.CONTROL else _as_word_piece(token)
        for token, kind in zip(vocabulary.tokens, vocabulary.token_types, strict=True)
    ]
    first = _given(vocabulary.cls_token_id, vocabulary.bos_token_id, 101)  # BERT's own ids where the file says nothing
    last = _given(vocabulary.separator_token_id, 102)
    unknown = tokens[_given(vocabulary.unknown_token_id, 100)]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab=ids, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=vocabulary.is_lowercase, strip_accents=vocabulary.strips_accents
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _add_tokens(tokenizer, vocabulary.model_copy(update={"tokens": tokens}))
    tokenizer.post_processor = processors.BertProcessing((tokens[last], last), (tokens[first], first))
    return tokenizer


def _as_word_piece(token: str) -> str:
    """Turns "▁word" and "end" back to "word" and "##end"; GGUF marks where words begin, not where they go on."""
    return token[1:] if token.startswith(_SPACE) else f"##{token}"


def _given(*token_ids: int | None) -> int:
    return next(token_id for token_id in token_ids if token_id is not None)


def _add_tokens(tokenizer: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
    def added(tokens: Sequence[str], *, is_special: bool) -> list[AddedToken]:
        return [AddedToken(token, normalized=False, special=is_special) for token in tokens if token]

    tokenizer.add_special_tokens(added(vocabulary.of_types(*_SPECIAL_TYPES), is_special=True))
    tokenizer.add_tokens(added(vocabulary.of_types(TokenType.USER_DEFINED), is_special=False))


def _surround(tokenizer: tokenizers.Tokenizer, vocabulary: Vocabulary, *, adds_bos: bool) -> None:
    """Lets every text begin and end with the tokens that the file asks for."""
    if vocabulary.add_bos_token is not None:
        adds_bos = vocabulary.add_bos_token
    before = [vocabulary.bos_token_id] if adds_bos and vocabulary.bos_token_id is not None else []
    after = [vocabulary.eos_token_id] if vocabulary.add_eos_token and vocabulary.eos_token_id is not None else []
    if before or after:
        names = {token_id: vocabulary.tokens[token_id] for token_id in (*before, *after)}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*(names[token_id] for token_id in before), "$A", *(names[token_id] for token_id in after)],
            special_tokens=[(name, token_id) for token_id, name in names.items()],
        )
