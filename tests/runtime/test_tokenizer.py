from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from plait.errors import CheckpointError, InvalidRequestError
from plait.models.checkpoint import open_checkpoint
from plait.runtime.tokenizer import Detokenizer, StopMatcher, Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


def byte_level() -> Tokenizer:
    """Bytes, a few merges that cut characters apart, and a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    left, middle, right = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("€")[0][0]
    merges = [(left, middle), ("Ġ", "a"), (right, "a")]
    vocab = {token: token_id for token_id, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return Tokenizer(tokenizer.to_str())


def byte_fallback() -> Tokenizer:
    """Pieces with leading spaces and byte tokens, decoded as SentencePiece vocabularies are."""
    pieces = ["<unk>", "▁", "▁the", "a", "é", "<end>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: token_id for token_id, token in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<end>"])
    return Tokenizer(tokenizer.to_str())


TOKENIZERS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}


def fallback_ids(data: bytes) -> list[int]:
    return [6 + byte for byte in data]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


def test_a_special_token_does_not_end_a_run_of_bytes():
    tokenizer = TOKENIZERS["byte-fallback"]
    ids = [6, 5, 134]  # <0x00> <end> <0x80>: decoded together, the two bytes are no UTF-8
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == "\ufffd\ufffd"


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_streamed_text_is_the_decoding_of_the_whole(name: str, data: st.DataObject):
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@given(text=st.text(alphabet=st.sampled_from("a €é😀日\n"), max_size=30))
def test_streamed_text_of_a_valid_text_is_that_text_without_replacements(text: str):
    tokenizer = TOKENIZERS["byte-level"]
    pieces = streamed(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_whole_with_its_last_byte():
    ids = fallback_ids("€".encode())
    assert streamed(TOKENIZERS["byte-fallback"], [*ids, 3]) == ["", "", "", "€a", ""]
    tokenizer = TOKENIZERS["byte-level"]
    pieces = streamed(tokenizer, tokenizer.encode("😀", add_special_tokens=False))
    assert pieces[-2:] == ["😀", ""]
    assert not any(pieces[:-2])


def test_flush_shows_a_character_that_was_never_finished():
    tokenizer = TOKENIZERS["byte-level"]
    first, *_ = tokenizer.encode("😀", add_special_tokens=False)
    assert streamed(tokenizer, [first]) == ["", "\ufffd"]


def test_what_is_no_character_is_shown_as_soon_as_it_cannot_become_one():
    tokenizer = TOKENIZERS["byte-level"]
    first, *_ = tokenizer.encode("😀", add_special_tokens=False)
    assert streamed(tokenizer, [first] * 4) == ["", "\ufffd", "\ufffd", "\ufffd", "\ufffd"]


def test_text_before_an_incomplete_character_is_shown_with_its_token():
    tokenizer = TOKENIZERS["byte-level"]
    [a], [first, *rest] = (tokenizer.encode(text, add_special_tokens=False) for text in ("a", "€"))
    assert tokenizer.decode([first, a, first]) == "\ufffda\ufffd"
    assert streamed(tokenizer, [a, first, a, first, *rest]) == [
        "a",
        "",
        "\ufffda",
        "",
        *[""] * (len(rest) - 1),
        "€",
        "",
    ]


def test_decoding_leaves_special_tokens_out():
    tokenizer = TOKENIZERS["byte-level"]
    [a] = tokenizer.encode("a", add_special_tokens=False)
    end = tokenizer.vocab_size - 1
    assert tokenizer.is_special(end)
    assert tokenizer.decode([a, end, a]) == "aa"


def unigram() -> Tokenizer:
    """Pieces by score, in which the text of a control token is the likeliest piece of all."""
    pieces = [("<unk>", 0.0), ("<end>", 0.0), *((character, -5.0) for character in "<end>a▁")]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<end>"])
    return Tokenizer(tokenizer.to_str())


def word_piece() -> Tokenizer:
    """Words, with special tokens of which one swallows the space before it, and which have no id in the model."""
    vocab = {word: token_id for token_id, word in enumerate(["[UNK]", "<", "end", ">", "a", "[", "unk", "]"])}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[UNK]", AddedToken("<end>", lstrip=True)])
    return Tokenizer(tokenizer.to_str())


def whole_words() -> Tokenizer:
    """A byte-level vocabulary that takes whole words before it looks at merges, and has a merge to a control token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: token_id for token_id, piece in enumerate([*letters, "en", "end", "stop"])}
    model = models.BPE(vocab=vocab, merges=[("e", "n"), ("en", "d")], ignore_merges=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["end", "stop"])
    return Tokenizer(tokenizer.to_str())


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (TOKENIZERS["byte-level"], "a<end>a <end>"),
        (TOKENIZERS["byte-fallback"], "a<end>a"),
        (unigram(), "a <end>"),
        (word_piece(), "a <end> [UNK]"),
        (whole_words(), "end stop the end"),
    ],
    ids=["byte-level", "byte-fallback", "unigram", "word-piece", "whole-words"],
)
def test_special_tokens_in_a_text_stay_text(tokenizer: Tokenizer, text: str):
    assert not any(tokenizer.is_special(token) for token in tokenizer.encode(text, add_special_tokens=False))
    rendered = tokenizer.encode_rendered(text, tokenizer.quotation())
    assert any(tokenizer.is_special(token) for token in rendered)


@given(text=st.text(alphabet=st.sampled_from("<end> a€"), max_size=30) | st.just("<<end>end>"))
def test_a_text_comes_back_whatever_it_spells(text: str):
    tokenizer = TOKENIZERS["byte-level"]
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_merges_in_the_form_of_older_files_are_read():
    contents = {
        "added_tokens": [{"id": 3, "content": "<end>", "special": True, "normalized": False}],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<end>": 3}, "merges": ["a b"]},
    }
    for token in contents["added_tokens"]:
        token.update(single_word=False, lstrip=False, rstrip=False)
    assert Tokenizer(json.dumps(contents)).encode("ab", add_special_tokens=False) == [2]


def test_junk_is_refused_as_a_tokenizer():
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        Tokenizer("{}")


@pytest.mark.weights
def test_smollm2_tokenizer_gives_the_reference_ids(smollm2: Path):
    tokenizer = Tokenizer(open_checkpoint(smollm2).tokenizer_json)
    cases = json.loads((GOLDEN / "reference_tokens.json").read_text(encoding="utf-8"))
    assert len(cases) >= 10
    for case in cases:
        ids = tokenizer.encode_rendered(case["text"], tokenizer.quotation())
        assert ids == case["ids"], case["text"]
        plain = tokenizer.encode(case["text"], add_special_tokens=True)
        assert tokenizer.decode(plain) == case["text"]
        assert plain == ids or any(tokenizer.is_special(token) for token in ids)
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def matched(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    results = [matcher.push(piece) for piece in pieces]
    return "".join(text for text, _ in results) + matcher.flush(), any(is_stopped for _, is_stopped in results)


def first_stop(stops: tuple[str, ...], text: str) -> tuple[str, bool]:
    """By definition: read on until the text read ends in a stop string; of those take the longest."""
    for end in range(1, len(text) + 1):
        if endings := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, endings))], True
    return text, False


STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3).map(tuple)


@given(stops=STOPS, pieces=st.lists(st.text("ab\nc", max_size=4), max_size=10))
def test_stop_is_found_wherever_the_text_is_cut(stops: tuple[str, ...], pieces: list[str]):
    assert matched(stops, pieces) == first_stop(stops, "".join(pieces))


@given(stops=STOPS, pieces=st.lists(st.text("ab\nc", max_size=4), max_size=10))
def test_text_held_back_is_always_the_beginning_of_a_stop(stops: tuple[str, ...], pieces: list[str]):
    matcher, shown, seen = StopMatcher(stops), "", ""
    for piece in pieces:
        text, is_stopped = matcher.push(piece)
        shown, seen = shown + text, seen + piece
        if is_stopped:
            break
        held = seen[len(shown) :]
        assert seen.startswith(shown)
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_nothing_is_shown_after_a_stop():
    matcher = StopMatcher(("END",))
    assert matcher.push("one E") == ("one ", False)
    assert matcher.push("ND two") == ("", True)
    assert matcher.push("three") == ("", True)
    assert matcher.flush() == ""


def test_an_empty_stop_is_refused():
    with pytest.raises(InvalidRequestError, match="stop string is empty") as raised:
        StopMatcher(("a", ""))
    assert raised.value.param == "stop"


@pytest.mark.parametrize("make", [byte_level, byte_fallback], ids=["byte level", "byte fallback"])
def test_the_bytes_of_tokens_are_those_of_the_text(make):
    tokenizer = make()
    text = " the a€é"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, tokens)).decode().strip() == text.strip()
    special = next(token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token) == b"<end>")
    assert tokenizer.is_special(special)
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""
