"""The forms in which models write tool calls, as data: one row a form.

All calls of an answer are written as

    begin lead CALL end join begin lead CALL end    where each call has a begin of its own
    begin lead CALL join CALL end                   where one serves all

with CALL being `{"name": NAME, KEY: ARGUMENTS}`, and ARGUMENTS a JSON object.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HERMES", "TOOL_FORMATS", "ToolFormat", "format_of_template"]


@dataclass(frozen=True)
class ToolFormat:
    """One way to write tool calls."""

    name: str
    begin: str  # what follows it is no text; "" where an answer is either text or calls
    lead: str  # between `begin` and a call
    key: str  # of the arguments
    end: str
    join: str
    repeats_begin: bool = True
    prefix: str = ""  # special token that may come before an answer of calls
    has_short_ids: bool = False  # of nine letters and digits, as the templates want them

    @property
    def opening(self) -> str:
        """A call up to its name."""
        return '{"name": "'

    @property
    def middle(self) -> str:
        """A call between its name and its arguments."""
        return f'", "{self.key}": '

    @property
    def closing(self) -> str:
        """A call after its arguments."""
        return "}"

    @property
    def trigger(self) -> str:
        """What tells a call from text, as soon as it is there."""
        return self.begin or self.opening


HERMES = ToolFormat("hermes", begin="<tool_call>", lead="\n", key="arguments", end="\n</tool_call>", join="\n")
_MISTRAL = ToolFormat(
    "mistral",
    begin="[TOOL_CALLS]",
    lead="[",
    key="arguments",
    end="]",
    join=", ",
    repeats_begin=False,
    has_short_ids=True,
)
_LLAMA = ToolFormat(
    "llama3_json",
    begin="",
    lead="",
    key="parameters",
    end="",
    join="; ",
    repeats_begin=False,
    prefix="<|python_tag|>",
)
TOOL_FORMATS = {form.name: form for form in (HERMES, _MISTRAL, _LLAMA)}


def format_of_template(source: str, *, takes_tools: bool) -> ToolFormat | None:
    """Returns the form in which a model with this chat template writes calls, or None if it is none of these.

    Args:
        source: The Jinja template.
        takes_tools: Whether it reads `tools`. For one that does not, tools are described in the Hermes form.
    """
    if not takes_tools or "<tool_call>" in source:
        return HERMES
    if "[TOOL_CALLS]" in source and "[ARGS]" not in source:
        return _MISTRAL
    if "ipython" in source and '"parameters": ' in source:
        return _LLAMA
    return None
