"""The tools of a request, and what is to be done with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, JsonValue, Tag
from pydantic_core import PydanticCustomError

from ....errors import InvalidRequestError
from ...request import Tool, ToolUse
from .fields import Strict, Text

__all__ = ["ToolChoice", "Tools", "tool_use"]

_MAX_NAME = 64
_MAX_TOOLS = 128

FunctionName = Annotated[Text, Field(pattern=rf"^[A-Za-z0-9_-]{{1,{_MAX_NAME}}}$")]


class FunctionDefinition(Strict):
    """A function that the client can call for the model."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, JsonValue] | None = None  # JSON schema of an object; none: it takes no arguments
    strict: bool | None = None


class ToolDefinition(Strict):
    """A tool on offer."""

    type: Literal["function"]
    function: FunctionDefinition

    def as_tool(self) -> Tool:
        """Returns the tool in the engine's terms."""
        function = self.function
        return Tool(function.name, function.description or "", function.parameters or {}, bool(function.strict))


class FunctionChoice(Strict):
    """The name of a function."""

    name: Text


class NamedTool(Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionChoice


def _choice_kind(choice: JsonValue) -> str | None:
    return {str: "<string>", dict: "<object>", type(None): "<null>"}.get(type(choice))


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")]
    | Annotated[NamedTool, Tag("<object>")]
    | Annotated[None, Tag("<null>")],
    Discriminator(
        _choice_kind,
        custom_error_type="tool_choice",
        custom_error_message="Must be 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': string}}",
    ),
]


def _of_different_names(tools: list[ToolDefinition]) -> list[ToolDefinition]:
    names = [tool.function.name for tool in tools]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PydanticCustomError("tool_names", "Has two tools of the name '{name}'", {"name": twice})
    return tools


Tools = Annotated[list[ToolDefinition], Field(max_length=_MAX_TOOLS), AfterValidator(_of_different_names)]


def tool_use(tools: Sequence[ToolDefinition], choice: str | NamedTool | None, *, is_parallel: bool) -> ToolUse | None:
    """Returns what the engine is told of tools, or None if the model is to know of none.

    Raises:
        InvalidRequestError: if a choice is made where there is none.
    """
    if not tools and choice not in (None, "none", "auto"):
        raise InvalidRequestError("'tool_choice' asks for a call, but there are no 'tools'", param="tool_choice")
    if not tools or choice == "none":
        return None
    offered = tuple(tool.as_tool() for tool in tools)
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in [tool.name for tool in offered]:
            raise InvalidRequestError(f"'tool_choice' names {name!r}, which is none of 'tools'", param="tool_choice")
        return ToolUse(offered, "required", name, is_parallel)
    return ToolUse(offered, "required" if choice == "required" else "auto", None, is_parallel)
