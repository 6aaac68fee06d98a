from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from plait.errors import CheckpointError, InvalidRequestError, UnsupportedModelError
from plait.models.checkpoint import open_checkpoint
from plait.runtime.tokenizer import ChatTemplate, Detokenizer, StopMatcher, Tokenizer

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


def test_decoding_leaves_special_tokens_out():
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("a<end>a", add_special_tokens=False)
    assert len(ids) == 3
    assert tokenizer.decode(ids) == "aa"


def test_junk_is_refused_as_a_tokenizer():
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        Tokenizer("{}")


@pytest.mark.weights
def test_smollm2_tokenizer_gives_the_reference_ids(smollm2: Path):
    tokenizer = Tokenizer(open_checkpoint(smollm2).tokenizer_json)
    cases = json.loads((GOLDEN / "reference_tokens.json").read_text(encoding="utf-8"))
    assert len(cases) >= 10
    for case in cases:
        ids = tokenizer.encode(case["text"], add_special_tokens=True)
        assert ids == case["ids"], case["text"]
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


CHATML = (
    "{% for m in messages %}\n<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}\n{{ 'A:' if add_generation_prompt }}"
)


def test_template_renders_with_block_lines_trimmed():
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    template = ChatTemplate(CHATML)
    assert template.render(messages) == "<system>be brief\n<user>hi\nA:"
    assert template.render(messages, add_generation_prompt=False) == "<system>be brief\n<user>hi\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s><b>é</s>"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "<b>é"}]'),
        ("{% for m in messages * 3 %}{% if loop.index > 2 %}{% break %}{% endif %}x{% endfor %}", "xx"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
    ids=["tokens", "tojson", "break", "strftime"],
)
def test_template_has_what_models_expect(source: str, expected: str):
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    assert template.render([{"role": "user", "content": "<b>é"}]) == expected


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "there are no messages"),
        ([{"role": "wizard", "content": "hi"}], "role 'wizard'; the roles are system, user, assistant"),
        ([{"role": "user"}], r"messages\[0\] has no text"),
        ([{"role": "assistant", "content": "hi"}], "refuses these messages: a user begins"),
        ([{"role": "user", "content": "divide"}], "refuses these messages: .*division.* by zero"),
        ([{"role": "user", "content": "escape"}], "refuses these messages: access to attribute '__class__'"),
    ],
    ids=["none", "role", "content", "raise", "arithmetic", "sandbox"],
)
def test_messages_that_cannot_be_rendered_are_refused(messages: list[dict[str, str]], message: str):
    template = ChatTemplate(
        "{% if messages[0].role != 'user' %}{{ raise_exception('a user begins') }}{% endif %}"
        "{% if messages[0].content == 'divide' %}{{ 1 // 0 }}{% endif %}"
        "{% if messages[0].content == 'escape' %}{{ ''.__class__.__mro__ }}{% endif %}"
    )
    with pytest.raises(InvalidRequestError, match=message) as raised:
        template.render(messages)
    assert raised.value.param == "messages"


def test_a_broken_template_is_refused():
    with pytest.raises(UnsupportedModelError, match="chat template cannot be read"):
        ChatTemplate("{% for %}")
