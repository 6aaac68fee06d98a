from __future__ import annotations

import itertools

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from plait.runtime.answer import Answer
from plait.runtime.events import Reply, Timing
from plait.runtime.request import Piece
from plait.runtime.tokenizer import Tokenizer

TIMING = Timing(arrived_at=10.0, started_at=10.5, switch_seconds=0.25)


def bytes_tokenizer() -> Tokenizer:
    """One token for each byte, whose id is its rank in the byte-level alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Tokenizer(tokenizer.to_str())


TOKENIZER = bytes_tokenizer()


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


def pieces(tokens: tuple[int, ...], *stops: str, cuts: tuple[int, ...] = ()) -> list[Piece]:
    """What is made of an answer that comes in replies cut at these tokens, the last of which ends it."""
    answer = Answer(TOKENIZER, stops, num_prompt=5, submitted_at=9.0)
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(tokens)}), len(tokens)]
    made: list[Piece] = []
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        is_last = end == len(tokens)
        reply = Reply(1, tokens[start:end], "length" if is_last else None, timing=TIMING)
        piece = answer.push(reply, 11.0 + index)
        made += [piece] if piece is not None else []
        if piece is not None and piece.finish_reason is not None:
            break
    return made


def one_by_one(text: str, *stops: str) -> list[Piece]:
    tokens = ids(text)
    return pieces(tokens, *stops, cuts=tuple(range(len(tokens))))


def text_of(made: list[Piece]) -> str:
    return "".join(piece.text for piece in made)


def test_every_token_gives_its_text_at_once():
    assert [piece.text for piece in one_by_one("abc")] == ["a", "b", "c"]


def test_a_character_of_several_tokens_is_never_split():
    made = one_by_one("a€b")
    assert [piece.text for piece in made] == ["a", "€", "b"]
    assert [len(piece.token_ids) for piece in made] == [1, 3, 1]


def test_a_reply_that_completes_no_character_makes_no_piece():
    answer = Answer(TOKENIZER, (), num_prompt=1, submitted_at=0.0)
    assert answer.push(Reply(1, ids("€")[:2]), 1.0) is None


def test_a_character_that_stays_incomplete_ends_as_a_replacement():
    made = pieces(ids("a€")[:3], cuts=(1, 2))
    assert text_of(made) == "a\ufffd"
    assert made[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one\n\ntwo", ("\n\n",), "one"),
        ("abcabd", ("abd",), "abc"),
        ("aab", ("ab",), "a"),
        ("x STOP y", ("STOP", "OP"), "x "),
        ("€uro", ("u",), "€"),
        ("a€b€c", ("€c",), "a€b"),
        ("stop", ("stop",), ""),
    ],
    ids=str,
)
def test_an_answer_ends_before_the_first_stop_string(text: str, stops: tuple[str, ...], shown: str):
    made = one_by_one(text, *stops)
    assert text_of(made) == shown
    assert made[-1].finish_reason == "stop"


def test_what_may_become_a_stop_string_is_held_back_and_shown_when_it_does_not():
    made = one_by_one("abXabd", "abc")
    assert [piece.text for piece in made] == ["abX", "abd"]
    assert made[-1].finish_reason == "length"


def test_tokens_after_a_stop_string_are_dropped_and_not_counted():
    (piece,) = pieces(ids("ab|cd"), "|")
    assert piece.usage is not None
    assert (piece.text, piece.token_ids, piece.usage.completion_tokens) == ("ab", ids("ab|"), 3)


def test_an_end_without_tokens_is_a_piece_without_text():
    answer = Answer(TOKENIZER, (), num_prompt=1, submitted_at=0.0)
    piece = answer.push(Reply(1, (), "stop", timing=TIMING), 1.0)
    assert piece is not None
    assert (piece.text, piece.token_ids, piece.finish_reason) == ("", (), "stop")


@pytest.mark.parametrize("stops", [(), ("d",)], ids=["at its end", "at a stop string"])
def test_the_usage_of_an_answer(stops: tuple[str, ...]):
    usage = one_by_one("abcd", *stops)[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 4)
    assert (usage.queue_seconds, usage.switch_seconds) == (0.5, 0.25)
    assert usage.time_to_first_token_seconds == 2.0
    assert usage.total_seconds == 5.0


def test_only_the_last_piece_has_a_finish_reason_and_usage():
    made = one_by_one("abcd")
    assert [piece.finish_reason for piece in made] == [None, None, None, "length"]
    assert [piece.usage is not None for piece in made] == [False, False, False, True]


@given(text=st.text(min_size=1, max_size=20), cuts=st.lists(st.integers(0, 60)), stop=st.text(max_size=3))
def test_pieces_together_are_the_whole_however_it_is_cut(text: str, cuts: list[int], stop: str):
    stops = (stop,) if stop else ()
    tokens = ids(text)
    made = pieces(tokens, *stops, cuts=tuple(cuts))
    assert text_of(made) == (text.partition(stop)[0] if stop else text)
    streamed = [token for piece in made for token in piece.token_ids]
    usage = made[-1].usage
    assert usage is not None
    assert tuple(streamed) == tokens[: usage.completion_tokens]
    if made[-1].finish_reason == "length":
        assert usage.completion_tokens == len(tokens)


def test_a_stop_that_is_complete_too_soon_is_text():
    answer = Answer(TOKENIZER, ("b",), num_prompt=1, submitted_at=0.0, min_tokens=3)
    made = [answer.push(Reply(1, (token,), timing=TIMING), 1.0) for token in ids("abab")]
    assert [piece and (piece.text, piece.finish_reason) for piece in made] == [
        ("a", None),
        ("b", None),
        ("a", None),
        ("", "stop"),
    ]


def test_the_logprobs_of_held_tokens_come_with_their_text():
    answer = Answer(TOKENIZER, (), num_prompt=1, submitted_at=0.0)
    first, second, third = ids("€")
    assert answer.push(Reply(1, (first, second)), 1.0, [[(first, -1.0)], [(second, -2.0), (first, -0.5)]]) is None
    piece = answer.push(Reply(1, (third,)), 1.0, [[(third, -3.0)]])
    assert piece is not None
    assert [one.drawn.logprob for one in piece.logprobs] == [-1.0, -2.0, -3.0]
    assert b"".join(one.drawn.data for one in piece.logprobs).decode() == "€"
    assert [[score.token_id for score in one.likeliest] for one in piece.logprobs] == [[], [first], []]
