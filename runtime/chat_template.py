"""Chat templates: from messages to the text, and the tokens, that a model was trained on.

Comes in: the Jinja template of a model and the messages of a request. Goes out: the prompt. What a message says stays
text: a special token that is spelled out in it does not become that token (see `quotation.py`). Whatever a template
makes of messages that it was not written for is the client's error, not the server's. So is a template that does not
end: loops and calls are counted, up to a limit; memory is not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NoReturn, cast

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import InvalidRequestError, UnsupportedModelError
from .tokenizer import Tokenizer

__all__ = ["ROLES", "ChatTemplate"]

ROLES = ("system", "developer", "user", "assistant", "tool")

_MAX_STEPS = 300_000  # turns of loops, and calls: about a second; long conversations take some ten thousand
_MAX_POWER_BITS = 1024
_STEPS = "steps left"  # a variable that no template can name

Objects = Sequence[Mapping[str, object]]  # of JSON


class ChatTemplate:
    """A model's Jinja template, which turns messages into the text that the model was trained on.

    It runs in a sandbox: it comes with the model, not from us.

    Args:
        source: The template.
        bos_token: What the template knows as `bos_token`; None for a model without one.
        eos_token: Likewise.

    Raises:
        UnsupportedModelError: if the template is none that Jinja reads.
    """

    def __init__(self, source: str, *, bos_token: str | None = None, eos_token: str | None = None) -> None:
        try:
            environment = _environment()
            parsed = environment.parse(source)
            self.takes_tools = "tools" in meta.find_undeclared_variables(parsed)  # whether it describes them
            self._template = environment.from_string(_counting(parsed))
        except (jinja2.TemplateError, RecursionError) as error:
            raise UnsupportedModelError(f"the model's chat template cannot be read: {_one_line(error)}") from None
        self.source = source
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}

    def render(
        self,
        messages: Objects,
        *,
        tools: Objects | None = None,
        documents: Objects | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Returns the prompt for a conversation.

        Args:
            messages: Each with a "role" of `ROLES` and "content", and what else the template reads.
            tools: JSON schemas of functions that the model may call.
            documents: Texts that the answer may rest on.
            add_generation_prompt: Whether to end with the beginning of the assistant's answer.

        Raises:
            InvalidRequestError: if there is no message, a role is wrong, or the template refuses the conversation.
        """
        _check_messages(messages)
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
                **{_STEPS: _Steps()},
            )
        except Exception as error:  # templates are programs: there is no telling what they raise
            reason = _one_line(error) or type(error).__name__
            raise _invalid_messages(f"the model's chat template refuses these messages: {reason}") from None

    def encode(self, messages: Objects, tokenizer: Tokenizer, *, tools: Objects | None = None) -> list[int]:
        """Returns the tokens of the prompt for a conversation; only the template writes special tokens.

        Args:
            messages: As for `render`.
            tokenizer: The model's.
            tools: As for `render`.

        Raises:
            InvalidRequestError: as `render`.
        """
        quotation = tokenizer.quotation()
        quoted_tools = None if tools is None else cast(Objects, quotation.quote(tools))
        try:
            text = self.render(cast(Objects, quotation.quote(messages)), tools=quoted_tools)
        except InvalidRequestError as error:
            raise _invalid_messages(quotation.unquote(str(error))) from None
        return tokenizer.encode_rendered(text, quotation)


def _check_messages(messages: Objects) -> None:
    if not messages:
        raise _invalid_messages("there are no messages; give at least one")
    for index, message in enumerate(messages):
        if (role := message.get("role")) not in ROLES:
            raise _invalid_messages(f"messages[{index}] has role {role!r}; the roles are {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise _invalid_messages(f"messages[{index}] has no text as its content")


def _invalid_messages(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="messages")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _GenerationBlocks(Extension):
    """Takes `{% generation %}` blocks, with which templates mark what to train on, for what is in them."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Scope:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Steps:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self._num_left = _MAX_STEPS

    def spend(self, num_steps: int) -> None:
        self._num_left -= num_steps
        if self._num_left < 0:
            raise jinja2.TemplateError(f"it takes more than {_MAX_STEPS} steps")


class _CountingEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which templates end: the sandbox of Jinja bounds no more than each range."""

    intercepted_binops = frozenset({"**"})

    def call(self, context: Context, called: Callable[..., object], /, *args: object, **kwargs: object) -> object:
        """Calls something for a template, for a step; a range costs its length, for filters go through it uncounted."""
        steps = context.resolve(_STEPS)
        steps.spend(1)
        result = super().call(context, called, *args, **kwargs)
        if isinstance(result, range):
            steps.spend(len(result))
        return result

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Refuses powers that take for ever."""
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MAX_POWER_BITS:
            raise jinja2.TemplateError("a power is too large")
        return super().call_binop(context, operator, left, right)

    def step(self) -> bool:
        """Counts, by being called."""
        return True


def _counting(template: nodes.Template) -> nodes.Template:
    """Returns a template in which each turn of a loop calls `step`, before its condition and before its body."""
    for loop in template.find_all(nodes.For):
        step = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None, lineno=loop.lineno)
        loop.body.insert(0, nodes.ExprStmt(step, lineno=loop.lineno))
        if loop.test is not None:
            loop.test = nodes.And(step, loop.test, lineno=loop.lineno)
    return template


def _environment() -> _CountingEnvironment:
    """Returns the environment that templates are written for."""
    environment = _CountingEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlocks]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Writes JSON as templates expect it; Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
