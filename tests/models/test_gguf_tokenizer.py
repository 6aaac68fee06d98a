from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import TokenType

from plait.errors import CheckpointError, UnsupportedModelError
from plait.models.checkpoint.contents import TokenizerContents, validated
from plait.models.checkpoint.gguf_tokenizer import Vocabulary, rebuild_tokenizer
from plait.runtime.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "token_ids.json").read_text(encoding="utf-8"))
PAGE: list[str] = GOLDEN["page"]
FILE = Path("model.gguf")


def rebuilt(vocabulary: str, pre: str = "default", **changes: object) -> TokenizerContents:
    """The tokenizer of one of the golden vocabularies, some fields changed or added."""
    fields = {"pre": pre} | GOLDEN["vocabularies"][vocabulary] | changes
    metadata = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    return rebuild_tokenizer(FILE, validated(Vocabulary, metadata, FILE))


def id_of(model: str, token: str) -> int:
    return GOLDEN["vocabularies"][model]["tokens"].index(token)


@pytest.mark.parametrize("name", GOLDEN["references"])
def test_ids_are_those_of_the_reference_tokenizer(name: str):
    reference = GOLDEN["references"][name]
    tokenizer = Tokenizer(rebuilt(reference["vocabulary"], name).json)
    for text, ids in zip(PAGE, reference["ids"], strict=True):
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "llama", "llama-no-prefix"])
def test_text_comes_back_from_its_ids(name: str):
    model = GOLDEN["references"][name]["vocabulary"]
    tokenizer = Tokenizer(rebuilt(model, name).json)
    for text in PAGE:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize(
    ("pre", "fields", "num_before", "num_after"),
    [
        ("gpt-2", {}, 0, 0),
        ("llama-bpe", {}, 1, 0),
        ("tekken", {}, 1, 0),
        ("llama-bpe", {"add_bos_token": False}, 0, 0),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, 1, 1),
    ],
    ids=["none", "usual", "usual-too", "refused", "asked-for"],
)
def test_tokens_around_a_text_are_those_of_the_file(pre: str, fields: dict, num_before: int, num_after: int):
    begin, end = id_of("gpt2", "<|begin|>"), id_of("gpt2", "<|im_end|>")
    contents = rebuilt("gpt2", pre, bos_token_id=begin, eos_token_id=end, **fields)
    tokenizer = Tokenizer(contents.json)
    text = tokenizer.encode("a", add_special_tokens=False)
    assert tokenizer.encode("a", add_special_tokens=True) == [begin] * num_before + text + [end] * num_after
    assert (contents.bos_token, contents.eos_token) == ("<|begin|>", "<|im_end|>")


def test_sentence_piece_begins_every_text_with_its_token():
    tokenizer = Tokenizer(rebuilt("llama", bos_token_id=id_of("llama", "<s>")).json)
    assert tokenizer.encode("a", add_special_tokens=True)[0] == id_of("llama", "<s>")


def test_sentence_piece_without_prefix_begins_with_the_text_itself():
    tokenizer = Tokenizer(rebuilt("llama-no-prefix").json)
    assert tokenizer.encode(" a", add_special_tokens=False) != tokenizer.encode("a", add_special_tokens=False)
    assert tokenizer.decode(tokenizer.encode(" a", add_special_tokens=False)) == " a"


def test_word_pieces_stand_between_their_special_tokens():
    tokenizer = Tokenizer(rebuilt("bert").json)
    ids = tokenizer.encode("a b", add_special_tokens=True)
    assert (ids[0], ids[-1]) == (2, 3)
    assert tokenizer.decode(ids) == "a b"


def test_word_pieces_keep_case_where_the_file_says_so():
    cases: list[dict[str, object]] = [
        {"normalizer.lowercase": is_lowercase, "normalizer.strip_accents": False} for is_lowercase in (True, False)
    ]
    lower, kept = (Tokenizer(rebuilt("bert", "bert-bge", **case).json) for case in cases)
    assert lower.encode("FERRY", add_special_tokens=False) == lower.encode("ferry", add_special_tokens=False)
    assert kept.encode("FERRY", add_special_tokens=False) != kept.encode("ferry", add_special_tokens=False)


def test_all_tokens_that_end_an_answer_are_known():
    contents = rebuilt("gpt2", "gpt-2", eos_token_id=3, eot_token_id=5, eom_token_id=3)
    assert contents.eos_token_ids == (3, 5)


def test_control_tokens_are_special_and_added_tokens_are_not():
    tokenizer = Tokenizer(rebuilt("gpt2", "gpt-2").json)
    assert tokenizer.is_special(id_of("gpt2", "<|im_end|>"))
    assert not tokenizer.is_special(id_of("gpt2", "<think>"))
    assert tokenizer.encode("<think>", add_special_tokens=False) == [id_of("gpt2", "<think>")]


@pytest.mark.parametrize(
    ("model", "pre", "message"),
    [
        (
            "gpt2",
            "default",
            "'gpt2' with pre-tokenizer 'default' is not supported; supported: 'llama', 'bert'.*'qwen2'",
        ),
        ("gpt2", "bloom", "pre-tokenizer 'bloom' is not supported"),
        ("t5", "default", "tokenizer 't5' .* is not supported"),
        ("gemma4", "gemma4", "tokenizer 'gemma4' .* is not supported"),
    ],
)
def test_other_kinds_are_refused_by_name(model: str, pre: str, message: str):
    with pytest.raises(UnsupportedModelError, match=message):
        rebuilt("gpt2", pre, model=model)


@pytest.mark.parametrize(
    ("vocabulary", "changes", "message"),
    [
        ("gpt2", {"token_type": [1]}, "tokens but 1 token types$"),
        ("llama", {"scores": []}, "tokens but 0 scores$"),
        ("llama", {"scores": [0.0]}, "tokens but 1 scores$"),
        ("gpt2", {"tokens": ["a", "b", "a"], "token_type": [1, 1, 1]}, "its token 'a' is there twice"),
        ("gpt2", {"tokens": [], "token_type": []}, "tokens: List should have at least 1 item"),
        ("gpt2", {"eot_token_id": 9999}, "its eot_token_id 9999 is not among its [0-9]+ tokens"),
        ("gpt2", {"merges": ["a b c"]}, "tokens and merges do not fit together"),
        ("gpt2", {"merges": ["a nothing"]}, "tokens and merges do not fit together"),
        ("bert", {"tokens": ["a"], "token_type": [1]}, "its unknown_token_id 1 is not among its 1 tokens"),
    ],
    ids=["types", "no-scores", "scores", "twice", "none", "end", "merge-form", "merge-part", "no-unknown"],
)
def test_lists_that_contradict_each_other_are_refused(vocabulary: str, changes: dict, message: str):
    with pytest.raises(CheckpointError, match=message) as raised:
        rebuilt(vocabulary, "gpt-2", **changes)
    assert "\n" not in str(raised.value)


def test_text_never_becomes_a_control_token_even_if_its_parts_are_tokens():
    tokens = ["<unk>", "</s>", "</", "s>", "<", "/", "s", ">", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, *[TokenType.NORMAL] * 6, *[TokenType.BYTE] * 256]
    scores = [0.0] * len(tokens)
    tokenizer = Tokenizer(rebuilt("llama", tokens=tokens, token_type=kinds, scores=scores, add_space_prefix=False).json)
    assert tokenizer.encode("</s>", add_special_tokens=False) == [2, 3]
