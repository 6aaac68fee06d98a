from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import END_TOKEN_ID, _byte_level_tokenizer, _letter_tokenizer

from plait.errors import InvalidRequestError
from plait.runtime.request import Structure
from plait.runtime.structured import Grammars, StructuredAnswer
from plait.runtime.tokenizer import Tokenizer

TOKENIZER = Tokenizer(_byte_level_tokenizer().to_str())
GRAMMARS = Grammars(TOKENIZER, (END_TOKEN_ID,))
VOCAB = 288  # more rows than the tokenizer has tokens, as models pad them
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


def schema(value: object) -> Structure:
    return Structure("json", json.dumps(value), "response_format")


def tokens(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def texts(answer: StructuredAnswer, before: str = "") -> set[bytes]:
    """The tokens that may follow, as bytes; the end as its name."""
    return {TOKENIZER.token_bytes(int(one)) for one in np.flatnonzero(answer.allowed(tokens(before), VOCAB))}


def fits(structure: Structure, text: str) -> bool:
    """Whether a text can come token by token, and an end after it."""
    answer, so_far = GRAMMARS.constrain(structure), []
    for token in [*tokens(text), END_TOKEN_ID]:
        if not answer.allowed(so_far, VOCAB)[token]:
            return False
        so_far.append(token)
    return True


def test_only_what_fits_may_follow_and_an_end_only_what_is_complete():
    answer = GRAMMARS.constrain(Structure("regex", "[0-9]{2}|7"))
    assert texts(answer) == set(map(bytes, zip(b"0123456789", strict=True)))
    assert texts(answer, "7") == {*map(bytes, zip(b"0123456789", strict=True)), b"<|im_end|>"}
    assert texts(answer, "42") == {b"<|im_end|>"}
    assert (answer.is_complete(tokens("7")), answer.is_complete(tokens("42"))) == (False, True)


def test_it_says_the_same_of_an_answer_whatever_it_was_asked_before():
    answer, other = (GRAMMARS.constrain(schema(PERSON)) for _ in range(2))
    text = tokens('{"name": "Ann", "age": 4}')
    forwards = [answer.allowed(text[:count], VOCAB) for count in range(len(text) + 1)]
    backwards = [other.allowed(text[:count], VOCAB) for count in reversed(range(len(text) + 1))]
    assert all(np.array_equal(one, two) for one, two in zip(forwards, reversed(backwards), strict=True))


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ('{"name":"Ann"}', True),
        ('{"name": "Ann", "age": 41}', True),
        ('{\n  "name": "Ann",\n  "age": 41\n}', True),
        ('{"name": "naïve 🙂"}', True),
        ('{"age": 41}', False),
        ('{"name": "Ann", "age": "x"}', False),
        ('{"name": "Ann", "more": 1}', False),
        ('{"name":      "Ann"}', False),
        ('{"name": "Ann"', False),
    ],
    ids=["compact", "spaced", "indented", "unicode", "required", "type", "additional", "wide", "unfinished"],
)
def test_json_fits_its_schema_with_bounded_white_space(text: str, is_right: bool):
    assert fits(schema(PERSON), text) is is_right


def test_choices_and_grammars_are_followed():
    choice = Structure("choice", json.dumps(["yes", "no, never", 'naïve "🙂"']))
    assert all(fits(choice, text) for text in ("yes", "no, never", 'naïve "🙂"'))
    assert not fits(choice, "no")
    lark = Structure("grammar", 'start: "a" rest\nrest: "b" | "c" rest')
    gbnf = Structure("grammar", 'root ::= "a" rest\nrest ::= "b" | "c" rest')
    assert all(fits(one, "accb") for one in (lark, gbnf))
    assert not any(fits(one, "acc") for one in (lark, gbnf))


def test_special_tokens_are_no_text():
    answer = GRAMMARS.constrain(Structure("regex", "(.|\n)*"))
    allowed = np.flatnonzero(answer.allowed((), VOCAB)).tolist()
    assert 0 not in allowed
    assert 1 not in allowed
    assert END_TOKEN_ID in allowed
    assert max(allowed) < TOKENIZER.vocab_size


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        (schema({"type": "wrong"}), "Invalid type: wrong"),
        (schema({"properties": 3}), "properties must be an object"),
        (schema({"type": "integer", "minimum": 5, "maximum": 2}), "Unsatisfiable schema"),
        (schema({"$ref": "http://example.com/x"}), "not present in a registry"),
        (schema({"not": {"type": "string"}, "x-guidance": {"lenient": True}}), "Unimplemented keys"),
        (schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), "NoExtension"),
        (schema({"enum": ["\ud800"]}), "hex escape"),
        (Structure("json", "[1", "response_format"), "EOF"),
        (Structure("regex", "(a", "response_format"), "unclosed group"),
        (Structure("grammar", "start: foo", "response_format"), "unknown name"),
    ],
    ids=[
        "type",
        "properties",
        "empty",
        "reference",
        "unknown keyword",
        "endless",
        "surrogate",
        "no JSON",
        "regex",
        "grammar",
    ],
)
def test_a_structure_that_is_none_is_refused_with_its_parameter(structure: Structure, reason: str):
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        GRAMMARS.constrain(structure)
    assert caught.value.param == "response_format"
    assert "'response_format'" in str(caught.value)


def test_no_complaint_tells_the_names_that_nobody_can_write():
    with pytest.raises(InvalidRequestError, match="unknown special token") as caught:
        GRAMMARS.constrain(Structure("grammar", "start: <|nothing|>"))
    assert "<|endoftext|>" in str(caught.value)
    assert not any(name[1:-1] in str(caught.value) for name in TOKENIZER._names.values())
    assert not any(name[1:-1] in TOKENIZER.to_json() for name in TOKENIZER._names.values())


def test_models_that_cannot_be_constrained_say_so():
    with pytest.raises(InvalidRequestError, match="no token that ends an answer"):
        Grammars(TOKENIZER, ()).constrain(schema(PERSON))
    with pytest.raises(InvalidRequestError, match="tokenizer cannot be constrained: can't determine decoder"):
        Grammars(Tokenizer(_letter_tokenizer().to_str()), (3,)).constrain(schema(PERSON))


def test_a_constraint_that_fails_ends_the_answer_and_says_why():
    answer = GRAMMARS.constrain(Structure("regex", "[0-9]+"))
    assert not answer.failure
    assert texts(answer, "x") == {b"<|im_end|>"}
    assert answer.failure
