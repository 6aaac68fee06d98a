"""What may be drawn where tools can be called, as a grammar: calls fit their tool's schema, whatever the model says.

Where calling is free (`auto`), an answer is any text until a call begins; from there on it is one. Special tokens that
are no part of a form may come between the text, as they could without tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator

from ...errors import InvalidRequestError
from ..request import Structure, Tool, ToolUse
from ..structured import json_options
from ..tokenizer import Tokenizer
from .formats import ToolFormat

__all__ = ["schema_structures", "tool_structure"]

_ANYTHING = r"/(.|\n)*/"


def tool_structure(
    use: ToolUse, form: ToolFormat, tokenizer: Tokenizer, ends: Collection[int], answer: Structure | None = None
) -> Structure:
    """Returns what an answer with these tools must look like.

    Args:
        use: The tools and what is to be done with them.
        form: How calls are written.
        tokenizer: The model's.
        ends: The model's own ends.
        answer: What an answer without calls must look like.

    Raises:
        InvalidRequestError: if a tool's parameters are no schema of an object, or `answer` is none of JSON.
    """
    marks = _Marks(tokenizer)
    rules = [*_calls(use, form, marks)]
    if use.choice == "required" or use.only is not None:
        rules += ["start: calls"]
    elif answer is not None:
        if answer.kind != "json":
            raise InvalidRequestError(
                f"'{answer.param}' cannot be combined with tools that may be called or not; send a JSON schema, or "
                "tool_choice 'none'",
                param=answer.param,
            )
        rules += ["start: calls | answer", f"answer: %json {_one_line(answer.source)}"]
    elif not form.begin:
        rules += ["start: calls | PLAIN", f"PLAIN: {_ANYTHING} & ~/{re.escape(form.trigger)}(.|\\n)*/"]
    else:
        rules += _text_and_calls(use, form, marks, ends)
    return Structure("grammar", "\n".join(rules) + "\n", "tools")


def schema_structures(use: ToolUse) -> Iterator[Structure]:
    """Yields each tool's parameters by themselves, to find the one that is to blame."""
    for index, tool in enumerate(use.tools):
        source = f"start: %json {json.dumps(_schema(tool, index))}\n"
        yield Structure("grammar", source, f"tools[{index}].function.parameters")


def _calls(use: ToolUse, form: ToolFormat, marks: _Marks) -> Iterator[str]:
    """Yields the rules of `calls`, all calls of an answer, and of `after_begin`, those that one begin serves."""
    tools = [(index, tool) for index, tool in enumerate(use.tools) if use.only in (None, tool.name)]
    several = use.is_parallel and use.only is None
    begin = marks.rule(form.begin)
    more = f"({_literal(form.join)} call)*" if several and not form.repeats_begin else ""
    yield f"after_begin: {_literal(form.lead)} call {more} {_end(form, marks)}"
    again = f"({_literal(form.join)} {begin} after_begin)*" if several and form.repeats_begin else ""
    prefix = f"{marks.rule(form.prefix)}?" if form.prefix in marks.special else ""
    yield f"calls: {prefix} {begin} after_begin {again}"
    yield "call: " + " | ".join(f"call_{index}" for index, _ in tools)
    for index, tool in tools:
        head = form.opening + tool.name + form.middle
        yield f"call_{index}: {_literal(head)} arguments_{index} {_literal(form.closing)}"
        yield f"arguments_{index}: %json {json.dumps(_schema(tool, index))}"


def _text_and_calls(use: ToolUse, form: ToolFormat, marks: _Marks, ends: Collection[int]) -> Iterator[str]:
    """Yields the rules of an answer that is text until a call begins."""
    others = sorted(marks.control_ids - set(ends) - {marks.ids.get(form.begin, -1)})
    goes_on = form.repeats_begin and use.is_parallel
    turns = ["other"] * bool(others) + ["text_call"] * goes_on
    repeated = f"({' | '.join(turns)})*" if turns else ""
    yield f"start: {repeated} {'TEXT' if goes_on else '(text_call | TEXT)'}"
    if others:
        yield f"other: TEXT <[{','.join(map(str, others))}]>"
    yield "text_call: head after_begin"
    token = f"TEXT <[{marks.ids[form.begin]}]>" if form.begin in marks.ids else ""
    if form.begin in marks.special:
        yield f"head: {token}"
    else:
        yield f"head: {token}{' | ' if token else ''}spelled_head"
        yield f"spelled_head[lazy]: TEXT {_literal(form.begin)}"  # lazy: it ends with the first mark
    yield f"TEXT: {_ANYTHING}"


def _schema(tool: Tool, index: int) -> dict[str, object]:
    schema = dict(tool.parameters) or {"properties": {}, "additionalProperties": False}
    if schema.setdefault("type", "object") != "object":
        raise InvalidRequestError(
            f"'tools[{index}].function.parameters' is the schema of a {schema['type']}; it must be an object's",
            param=f"tools[{index}].function.parameters",
        )
    return schema | {"x-guidance": json_options(is_lenient=not tool.is_strict)}


def _end(form: ToolFormat, marks: _Marks) -> str:
    mark = form.end.lstrip()
    return f"{_literal(form.end.removesuffix(mark))} {marks.rule(mark)}"


class _Marks:
    """What a tokenizer has as one token, and what llguidance takes for a token that has no text.

    The latter are the special tokens, and added ones that look like it: <think>.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.special = tokenizer.special_ids
        self.ids = {**tokenizer.added_ids, **self.special}
        self.control_ids = {
            token for text, token in self.ids.items() if text in self.special or text[:1] + text[-1:] == "<>"
        }

    def rule(self, mark: str) -> str:
        """Returns how a mark is written: a token, its spelling, or either."""
        if mark not in self.ids:
            return _literal(mark)
        token = f"<[{self.ids[mark]}]>"
        return token if mark in self.special else f"({token} | {_literal(mark)})"


def _literal(text: str) -> str:
    return json.dumps(text) if text else ""


def _one_line(source: str) -> str:
    """Returns a schema as grammars take it; what is none is left to the grammar's reader to refuse."""
    try:
        schema = json.loads(source)
    except ValueError:
        return " ".join(source.split())
    return json.dumps(schema | {"x-guidance": json_options(is_lenient=False)} if isinstance(schema, dict) else schema)
