"""From an answer's text to its tool calls, as the text comes.

Comes in: final text, in pieces of any size. Goes out: the text that is no call, and each call's name and arguments as
soon as they are known. How the text was cut makes no difference to what comes out as a whole. What begins like a call
and turns out to be none is text; once a name was told it stays a call, though an answer that is cut off may leave its
arguments incomplete. White space right before a call belongs to it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from ..request import ToolCall, ToolCallDelta
from ..tokenizer import num_held
from .formats import ToolFormat

__all__ = ["Parsed", "ToolCallParser", "whole_calls"]


@dataclass(frozen=True)
class Parsed:
    """What a piece of an answer has brought."""

    text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class _Place(Enum):
    TEXT = "text"
    HEAD = "head"  # from the trigger to the arguments
    ARGUMENTS = "arguments"
    TAIL = "tail"  # from the arguments to the end, or to the next call


class ToolCallParser:
    """Reads the calls out of one answer.

    Args:
        form: How they are written.
        names: Of the tools; anything else that is called is text.
        new_id: Makes the calls' ids; random ones by default.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], new_id: Callable[[], str] | None = None) -> None:
        self._form = form
        self._names = names
        self._new_id = new_id or (lambda: _random_id(form))
        self._first = re.compile(_lax(form.begin) + _lax(form.lead) + _head(form))
        self._next = None if form.repeats_begin else re.compile(_lax(form.closing + form.join) + _head(form))
        self._place = _Place.TEXT
        self._held = ""  # what has come and is not decided
        self._has_text = False
        self._object = _ObjectScanner()
        self._text: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._num_calls = 0

    @property
    def has_calls(self) -> bool:
        """Whether a call has begun."""
        return self._num_calls > 0

    def push(self, text: str) -> Parsed:
        """Returns what a piece of text brings; "" brings nothing."""
        self._held += text
        steps = {
            _Place.TEXT: self._read_text,
            _Place.HEAD: self._read_head,
            _Place.ARGUMENTS: self._read_arguments,
            _Place.TAIL: self._read_tail,
        }
        while steps[self._place]():
            pass
        return self._take()

    def flush(self) -> Parsed:
        """Returns what was held back, no call having come of it. Nothing comes after."""
        is_rest = self._place in (_Place.TEXT, _Place.HEAD) and not (self.has_calls and self._held.isspace())
        if is_rest:
            self._text.append(self._held)
        self._held = ""
        return self._take()

    def _take(self) -> Parsed:
        parsed = Parsed("".join(self._text), tuple(self._calls))
        self._text, self._calls = [], []
        return parsed

    # Each step returns whether there is more to read in what is held.

    def _read_text(self) -> bool:
        trigger, held = self._form.trigger, self._held
        if not self._form.begin and (self._has_text or not trigger.startswith(held.lstrip()[: len(trigger)])):
            self._say(held)  # only what an answer begins with can be a call
            self._held = ""
            return False
        found = held.find(trigger)
        if found >= 0:
            said = held[:found].rstrip()
            self._say(said)
            self._held = held[len(said) :]
            self._place = _Place.HEAD
            return True
        decided = len(held[: len(held) - num_held(held, (trigger,))].rstrip())
        self._say(held[:decided])
        self._held = held[decided:]
        return False

    def _read_head(self) -> bool:
        match = self._first.match(self._held)
        end = self._end_of_calls(self._held.find(self._form.trigger) + len(self._form.trigger))
        if match and match[1] in self._names and not 0 <= end < match.end():
            self._start_call(match)
            return True
        if end >= 0:
            self._say(self._held[:end])
            self._held = self._held[end:]
            self._place = _Place.TEXT
        return end >= 0

    def _start_call(self, match: re.Match[str]) -> None:
        self._calls.append(ToolCallDelta(self._num_calls, self._new_id(), match[1]))
        self._num_calls += 1
        self._held = self._held[match.end() :]
        self._object = _ObjectScanner()
        self._place = _Place.ARGUMENTS

    def _read_arguments(self) -> bool:
        length = self._object.push(self._held)
        if length:
            self._calls.append(ToolCallDelta(self._num_calls - 1, arguments=self._held[:length]))
        self._held = self._held[length:]
        if self._object.is_closed:
            self._place = _Place.TAIL
        return self._object.is_closed

    def _read_tail(self) -> bool:
        match = self._next.match(self._held) if self._next else None
        if match and match[1] in self._names:
            self._start_call(match)
            return True
        end = self._end_of_calls(0)
        if end >= 0:
            self._held = self._held[end:]
            self._place = _Place.TEXT
        return end >= 0

    def _end_of_calls(self, start: int) -> int:
        """Returns the position after the first end of calls in what is held, or -1 if there is none."""
        end = self._form.end.strip()
        found = self._held.find(end, start) if end else -1
        return found if found < 0 else found + len(end)

    def _say(self, text: str) -> None:
        if text:
            self._text.append(text)
            self._has_text = self._has_text or not text.isspace()


class _ObjectScanner:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self.is_closed = False

    def push(self, text: str) -> int:
        """Returns how many characters of a text belong to the object."""
        for index, character in enumerate(text):
            if self._is_in_string:
                self._is_in_string = self._is_escaped or character != '"'
                self._is_escaped = character == "\\" and not self._is_escaped
            elif character == '"':
                self._is_in_string = True
            else:
                self._depth += (character in "{[") - (character in "}]")
                if self._depth <= 0:
                    self.is_closed = True
                    return index + 1
        return len(text)


def whole_calls(deltas: Iterable[ToolCallDelta]) -> tuple[ToolCall, ...]:
    """Returns the calls that pieces of them make."""
    calls: list[ToolCall] = []
    for delta in deltas:
        if delta.index == len(calls):
            calls.append(ToolCall(delta.id or "", delta.name or "", delta.arguments))
        else:
            one = calls[delta.index]
            calls[delta.index] = ToolCall(one.id, one.name, one.arguments + delta.arguments)
    return tuple(calls)


def _head(form: ToolFormat) -> str:
    """Returns the expression of what is before a call's arguments, with the name as its group."""
    return rf'\s*\{{\s*"name"\s*:\s*"([A-Za-z0-9_-]+)"\s*,\s*"{form.key}"\s*:\s*(?=\{{)'


def _lax(literal: str) -> str:
    """Returns the expression of a literal that may have any white space around it, or none."""
    return rf"\s*{re.escape(literal.strip())}\s*"


def _random_id(form: ToolFormat) -> str:
    return secrets.token_hex(5)[:9] if form.has_short_ids else f"call_{secrets.token_hex(12)}"
