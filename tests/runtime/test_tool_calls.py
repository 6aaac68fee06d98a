from __future__ import annotations

import itertools
import json
from pathlib import Path

import jsonschema
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiny import END_TOKEN_ID, _byte_level_tokenizer
from tokenizers import AddedToken

from plait.errors import InvalidRequestError
from plait.runtime.chat_template import ChatTemplate
from plait.runtime.request import Structure, Tool, ToolCall, ToolCallDelta, ToolUse
from plait.runtime.structured import Grammars
from plait.runtime.tokenizer import Tokenizer
from plait.runtime.tool_calls import (
    TOOL_FORMATS,
    ToolCallParser,
    ToolFormat,
    format_of_template,
    in_hermes_form,
    schema_structures,
    tool_structure,
    whole_calls,
)

TEMPLATES = Path(__file__).parents[1] / "golden" / "chat_templates"
WEATHER = Tool(
    "weather",
    "Tells the weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
TOOLS = (WEATHER, Tool("time"))
HERMES, MISTRAL, LLAMA = (TOOL_FORMATS[name] for name in ("hermes", "mistral", "llama3_json"))
ROME, NOW = '{"city": "R]o<m}e\\"", "days": 2}', "{}"
ANSWERS = {  # of two calls, with text where there can be some
    "hermes": f'Well. <tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>\n'
    f'<tool_call>\n{{"name": "time", "arguments": {NOW}}}\n</tool_call>',
    "mistral": f'Well. [TOOL_CALLS][{{"name": "weather", "arguments": {ROME}}}, '
    f'{{"name": "time", "arguments": {NOW}}}]',
    "llama3_json": f'{{"name": "weather", "parameters": {ROME}}}; {{"name": "time", "parameters": {NOW}}}',
}
BYTES = Tokenizer(_byte_level_tokenizer().to_str())


def with_mark(mark: str, *, is_special: bool) -> Tokenizer:
    """A tokenizer that has a mark as one token."""
    tokenizer: tokenizers.Tokenizer = _byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, special=is_special, normalized=False)])
    return Tokenizer(tokenizer.to_str())


def fits(structure: Structure, text: str, tokenizer: Tokenizer = BYTES, mark: int | None = None) -> bool:
    """Whether a text can come token by token, and an end after it; `mark` stands for the character "@"."""
    answer, so_far = Grammars(tokenizer, (END_TOKEN_ID,)).constrain(structure), []
    parts = [tokenizer.encode(part, add_special_tokens=False) for part in text.split("@")]
    tokens = list(itertools.chain.from_iterable([*part, mark] for part in parts))[:-1]
    for token in [*tokens, END_TOKEN_ID]:
        if not answer.allowed(so_far, tokenizer.vocab_size)[token]:
            return False
        so_far.append(token)
    return True


FREE, REQUIRED = ToolUse(TOOLS), ToolUse(TOOLS, "required")


def structure(
    form: ToolFormat = HERMES, tokenizer: Tokenizer = BYTES, *, use: ToolUse = FREE, answer: Structure | None = None
) -> Structure:
    return tool_structure(use, form, tokenizer, (END_TOKEN_ID,), answer)


def parse(form: ToolFormat, pieces: list[str]) -> tuple[str, list[ToolCall]]:
    """The text and the calls that pieces of an answer bring."""
    numbers = map(str, itertools.count())
    parser = ToolCallParser(form, [tool.name for tool in TOOLS], lambda: next(numbers))
    parsed = [*(parser.push(piece) for piece in pieces), parser.flush()]
    return "".join(one.text for one in parsed), list(whole_calls(call for one in parsed for call in one.calls))


# What may be drawn


@pytest.mark.parametrize("form", TOOL_FORMATS.values(), ids=TOOL_FORMATS)
def test_two_calls_may_be_drawn_freely_and_alone_if_they_are_required(form: ToolFormat):
    text = ANSWERS[form.name]
    assert fits(structure(form), text)
    assert fits(structure(form), "It may rain <tool_ca [TOOL {")
    required = structure(form, use=REQUIRED)
    assert fits(required, text.removeprefix("Well. "))
    assert not fits(required, "It may rain")
    assert text.startswith("Well. ") is not fits(required, text)


@pytest.mark.parametrize("form", TOOL_FORMATS.values(), ids=TOOL_FORMATS)
@pytest.mark.parametrize("use", [FREE, REQUIRED], ids=["auto", "required"])
def test_a_call_that_has_begun_must_fit_its_tool(form: ToolFormat, use: ToolUse):
    text = ANSWERS[form.name].removeprefix("Well. ")
    wanted = structure(form, use=use)
    assert fits(wanted, text)
    for wrong, right in ((", 'days': 2", ', "days": 2'), ('"days": 0', '"days": 2'), ('"xtime"', '"time"'), ("", "}")):
        assert right in text
        assert not fits(wanted, text.replace(right, wrong)), wrong
    assert not fits(wanted, text.replace('{"city"', '{"town": 1, "city"'))


@pytest.mark.parametrize("form", TOOL_FORMATS.values(), ids=TOOL_FORMATS)
def test_a_second_call_is_only_for_answers_that_may_have_it(form: ToolFormat):
    text = ANSWERS[form.name].removeprefix("Well. ")
    again = form.begin + form.lead if form.repeats_begin else ""
    one = text[: text.index(form.join + again + '{"name": "time"')] + (form.end if not form.repeats_begin else "")
    single = ToolUse(TOOLS, is_parallel=False), ToolUse(TOOLS, "required", is_parallel=False)
    for use in (*single, ToolUse(TOOLS, only="weather")):
        assert fits(structure(form, use=use), one), use
        assert not fits(structure(form, use=use), text), use
    assert not fits(structure(form, use=ToolUse(TOOLS, only="time")), one)


def test_a_mark_that_is_a_special_token_is_that_token():
    tokenizer = with_mark("[TOOL_CALLS]", is_special=True)
    mark = tokenizer.special_ids["[TOOL_CALLS]"]
    text = ANSWERS["mistral"].replace("[TOOL_CALLS]", "@")
    for use in (FREE, REQUIRED):
        assert fits(structure(MISTRAL, tokenizer, use=use), text.removeprefix("Well. "), tokenizer, mark)
    assert fits(structure(MISTRAL, tokenizer), text, tokenizer, mark)
    assert not fits(structure(MISTRAL, tokenizer), "@ not a call", tokenizer, mark)


def test_a_mark_that_is_one_ordinary_token_may_be_that_token_or_be_spelled():
    tokenizer = with_mark("<tool_call>", is_special=False)
    (mark,) = tokenizer.encode("<tool_call>", add_special_tokens=False)
    text = ANSWERS["hermes"].replace("<tool_call>", "@")
    assert fits(structure(HERMES, tokenizer), text, tokenizer, mark)
    assert fits(structure(HERMES, tokenizer, use=REQUIRED), text.removeprefix("Well. "), tokenizer, mark)
    assert not fits(structure(HERMES, tokenizer), text.replace("weather", "whether"), tokenizer, mark)


def test_other_special_tokens_may_still_come_between_text():
    assert fits(structure(), "hm@ so", mark=1)
    assert fits(structure(use=ToolUse(TOOLS, is_parallel=False)), "hm@ so", mark=1)
    assert not fits(structure(use=REQUIRED), "@", mark=1)


def test_an_answer_without_calls_may_have_a_structure_of_its_own():
    wanted = structure(answer=Structure("json", '{"enum": [1, 23]}', "response_format"))
    assert fits(wanted, "23")
    assert fits(wanted, ANSWERS["hermes"].removeprefix("Well. "))
    assert not fits(wanted, "24")
    assert not fits(wanted, ANSWERS["hermes"])
    with pytest.raises(InvalidRequestError, match="'guided_regex' cannot be combined with tools") as caught:
        structure(answer=Structure("regex", "a", "guided_regex"))
    assert caught.value.param == "guided_regex"


def test_a_tool_without_parameters_takes_none():
    assert fits(
        structure(use=ToolUse(TOOLS, only="time")), '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    )
    assert not fits(
        structure(use=ToolUse(TOOLS, only="time")), '<tool_call>\n{"name": "time", "arguments": {"a": 1}}\n</tool_call>'
    )


def test_what_a_schema_cannot_enforce_is_left_out_unless_the_tool_is_strict():
    odd = {"type": "object", "properties": {"a": {"type": "string", "contentEncoding": "base64", "x-odd": 1}}}
    odd["properties"]["a"]["not"] = {"const": "x"}  # type: ignore[index]
    grammars = Grammars(BYTES, (END_TOKEN_ID,))
    lax, strict = (ToolUse((Tool("f", "", odd, is_strict=strict),)) for strict in (False, True))
    grammars.constrain(tool_structure(lax, HERMES, BYTES, (END_TOKEN_ID,)))
    (culprit,) = schema_structures(strict)
    with pytest.raises(InvalidRequestError, match="Unimplemented keys") as caught:
        grammars.constrain(culprit)
    assert caught.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize("parameters", [{"type": "string"}, {"type": ["object", "null"]}], ids=["string", "union"])
def test_parameters_that_are_no_object_are_refused(parameters: dict[str, object]):
    with pytest.raises(InvalidRequestError, match=r"'tools\[1\]\.function\.parameters' is the schema of") as caught:
        tool_structure(ToolUse((WEATHER, Tool("f", "", parameters))), HERMES, BYTES, (END_TOKEN_ID,))
    assert caught.value.param == "tools[1].function.parameters"


# What is read


@pytest.mark.parametrize("form", TOOL_FORMATS.values(), ids=TOOL_FORMATS)
def test_calls_are_read_character_by_character(form: ToolFormat):
    text, calls = parse(form, list(ANSWERS[form.name]))
    assert text == ("Well." if form.begin else "")
    assert calls == [ToolCall("0", "weather", ROME), ToolCall("1", "time", NOW)]
    for call, tool in zip(calls, TOOLS, strict=True):
        jsonschema.validate(json.loads(call.arguments), tool.to_json()["function"]["parameters"])  # type: ignore[index]


def test_the_name_comes_first_and_the_arguments_as_they_are_written():
    parser = ToolCallParser(HERMES, ["weather"], lambda: "x")
    pieces = [
        "a",
        " <tool",
        "_call>\n{",
        '"name": "weather',
        '", "arguments": ',
        '{"ci',
        'ty": "Ro',
        'me"}}\n</tool_c',
        "all>",
    ]
    parsed = [parser.push(piece) for piece in pieces]
    assert [one.text for one in parsed] == ["a", *[""] * 8]
    assert [one.calls for one in parsed[5:]] == [
        (ToolCallDelta(0, "x", "weather"), ToolCallDelta(0, arguments='{"ci')),
        (ToolCallDelta(0, arguments='ty": "Ro'),),
        (ToolCallDelta(0, arguments='me"}'),),
        (),
    ]
    assert not any(one.calls for one in parsed[:5])


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, "a <tool_ca"),
        (HERMES, "a <tool_call> b </tool_call> c"),
        (HERMES, '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "weather", "arguments": 3}</tool_call> c'),
        (HERMES, '<tool_call>\n{"name": "wea'),
        (HERMES, "</tool_call>"),
        (HERMES, " a <b> \n"),
        (MISTRAL, "a [TOOL_CALLS] b"),
        (MISTRAL, "[TOOL_CALLS][1]"),
        (LLAMA, 'a {"name": "weather", "parameters": {}}'),
        (LLAMA, '{"name": "nobody", "parameters": {}}'),
        (LLAMA, '{"nam": 1}'),
    ],
)
def test_what_merely_looks_like_a_call_is_text(form: ToolFormat, text: str):
    assert parse(form, [text]) == (text, [])
    assert parse(form, list(text)) == (text, [])


def test_white_space_in_calls_is_free_and_around_them_theirs():
    loose = 'a\n\n<tool_call>{"name":"time" , "arguments" :{} }</tool_call> \n '
    loose += '<tool_call> {"name":"time","arguments":{}} </tool_call>\n'
    assert parse(HERMES, [loose]) == ("a", [ToolCall("0", "time", "{}"), ToolCall("1", "time", "{}")])
    assert parse(HERMES, [loose + "b"])[0] == "a\nb"


def test_a_call_that_is_cut_off_keeps_what_came_of_it():
    cut = '<tool_call>{"name": "weather", "arguments": {"city": "Ro'
    assert parse(HERMES, [cut]) == ("", [ToolCall("0", "weather", '{"city": "Ro')])


PIECES = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "<tool",
            "_call>",
            "\n",
            " ",
            "[",
            "]",
            ", ",
            "; ",
            "}",
            "a",
            "é",
        ),
        *('{"name": "', "weather", "time", '", "arguments": ', '", "parameters": ', '{"city": "x"}', "{}", '"', "\\"),
        *(ANSWERS.values()),
    ]
)


@pytest.mark.parametrize("form", TOOL_FORMATS.values(), ids=TOOL_FORMATS)
@given(data=st.data(), parts=st.lists(PIECES, max_size=12))
def test_how_a_stream_is_cut_makes_no_difference(form: ToolFormat, data: st.DataObject, parts: list[str]):
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=20)))
    pieces = [text[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(text)])]
    whole = parse(form, [text])
    assert parse(form, pieces) == whole
    assert parse(form, list(text)) == whole
    if not whole[1]:
        assert whole[0] == text


# Which form, and what a prompt says


@pytest.mark.parametrize(
    ("template", "form"),
    [("chatml", HERMES), ("reasoning", HERMES), ("headers", LLAMA), ("channels", None), ("inst", HERMES)],
)
def test_the_template_tells_the_form(template: str, form: ToolFormat | None):
    source = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    assert format_of_template(source, takes_tools=ChatTemplate(source).takes_tools) == form


def test_mistrals_template_tells_its_form():
    source = "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}[TOOL_CALLS] {{ messages }}"
    assert format_of_template(source, takes_tools=True) == MISTRAL
    assert format_of_template(source + "[ARGS]", takes_tools=True) is None


def test_tools_are_described_in_the_system_message_of_a_template_without_any():
    call = {"type": "function", "id": "1", "function": {"name": "weather", "arguments": {"city": 'Ro"me'}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call, call]},
        {"role": "tool", "content": "yes", "tool_call_id": "1"},
        {"role": "tool", "content": "no", "tool_call_id": "1"},
    ]
    system, question, called, results = in_hermes_form(messages, TOOLS)
    written = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ro\\"me"}}\n</tool_call>'
    assert str(system["content"]).startswith("Be brief.\n\n# Tools\n")
    assert all(json.dumps(tool.to_json()) in str(system["content"]) for tool in TOOLS)
    assert question == messages[1]
    assert called == {"role": "assistant", "content": f"Let me see.\n{written}\n{written}"}
    answered = "<tool_response>\nyes\n</tool_response>\n<tool_response>\nno\n</tool_response>"
    assert results == {"role": "user", "content": answered}
    without_system = in_hermes_form(messages[1:], TOOLS)
    assert str(without_system[0]["content"]).startswith("# Tools\n")
    assert in_hermes_form(messages, ()) == [messages[0], question, called, results]
