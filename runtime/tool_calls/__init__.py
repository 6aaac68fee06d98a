"""Tool calls: how models write them, how a prompt offers tools, what may be drawn, and how calls are read from text."""

from __future__ import annotations

from .formats import HERMES, TOOL_FORMATS, ToolFormat, format_of_template
from .grammar import schema_structures, tool_structure
from .parser import ToolCallParser, whole_calls
from .prompt import in_hermes_form

__all__ = [
    "HERMES",
    "TOOL_FORMATS",
    "ToolCallParser",
    "ToolFormat",
    "format_of_template",
    "in_hermes_form",
    "schema_structures",
    "tool_structure",
    "whole_calls",
]
