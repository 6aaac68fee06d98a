"""Tools for models whose chat template has none: described and answered in the Hermes form, in ordinary messages.

The tools go into the system message, calls into the assistant's text, and results into a user's message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ..request import Tool

__all__ = ["in_hermes_form"]

_OFFER = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def in_hermes_form(messages: Sequence[Mapping[str, object]], tools: Sequence[Tool]) -> list[dict[str, object]]:
    """Returns messages that say what tools there are, what was called and what came of it, as plain text.

    Args:
        messages: Of a conversation, with calls and results as chat templates take them.
        tools: On offer.
    """
    plain: list[dict[str, object]] = []
    for index, message in enumerate(messages):
        if message.get("role") != "tool":
            plain.append({"role": message.get("role"), "content": _with_calls(message)})
            continue
        result = f"<tool_response>\n{message.get('content')}\n</tool_response>"
        if index and messages[index - 1].get("role") == "tool":
            result = f"{plain.pop()['content']}\n{result}"
        plain.append({"role": "user", "content": result})
    if not tools:
        return plain
    offer = _OFFER.format(tools="\n".join(json.dumps(tool.to_json(), ensure_ascii=False) for tool in tools))
    if plain and plain[0]["role"] == "system":
        return [{"role": "system", "content": f"{plain[0]['content']}\n\n{offer}"}, *plain[1:]]
    return [{"role": "system", "content": offer}, *plain]


def _with_calls(message: Mapping[str, object]) -> object:
    """Returns a message's text, with the calls in it."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message.get("content")
    written = [f"<tool_call>\n{json.dumps(_call(one), ensure_ascii=False)}\n</tool_call>" for one in calls]
    return "\n".join([str(message["content"])] * bool(message.get("content")) + written)


def _call(call: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    function = call["function"]
    return {"name": function["name"], "arguments": function["arguments"]}
