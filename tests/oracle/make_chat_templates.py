"""Writes the rendered chat templates that the tests compare with, made by transformers.

Run by `make oracle` in an environment with the extra `oracle`, or by itself; it needs no weights. Reads the templates
in `tests/golden/chat_templates`, written in the forms that models come with; writes `tests/golden/chat_templates.json`:
conversations, and the text or the error that comes of each template with each of them.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import tokenizers
import transformers
from tokenizers import models

GOLDEN = Path(__file__).parents[1] / "golden"

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Says how the weather is in a "place".',
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "e.g. Zürich <北>"},
                "units": {"type": "string", "enum": ["metric", "imperial"]},
                "days": {"type": "array", "items": {"type": "number"}},
            },
            "required": ["place"],
        },
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"place": "Zürich", "days": [1, 2]}}}
HELLO = {"role": "user", "content": "  Hello! <b>é</b> 'quoted' \"twice\"\n"}
CONVERSATIONS: dict[str, dict[str, list]] = {
    "one": {"messages": [HELLO]},
    "system": {"messages": [{"role": "system", "content": " Be brief. "}, HELLO]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, HELLO]},
    "several": {
        "messages": [
            HELLO,
            {"role": "assistant", "content": "<think>\nIt is\n</think>\n\nHi 😀"},
            {"role": "user", "content": ""},
        ]
    },
    "answered": {"messages": [HELLO, {"role": "assistant", "content": "Hi"}]},
    "alternation": {"messages": [HELLO, HELLO]},
    "tools": {"messages": [{"role": "system", "content": "S"}, HELLO], "tools": [WEATHER]},
    "called": {
        "messages": [
            HELLO,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": '{"degrees": 21}', "name": "get_weather"},
        ],
        "tools": [WEATHER],
    },
    "documents": {"messages": [HELLO], "documents": [{"title": "A", "text": "one"}, {"title": "B", "text": "two"}]},
    "channel": {"messages": [{"role": "user", "content": "<|channel|>analysis<|message|>"}]},
}


def main() -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>"
    )
    rendered = {
        path.stem: {
            name: _rendered(tokenizer, path.read_text(encoding="utf-8"), given) for name, given in CONVERSATIONS.items()
        }
        for path in sorted((GOLDEN / "chat_templates").glob("*.jinja"))
    }
    versions = {library.__name__: library.__version__ for library in (transformers, jinja2)}
    about = {"command": "python tests/oracle/make_chat_templates.py", "versions": versions}
    content = {"about": about, "conversations": CONVERSATIONS, "rendered": rendered}
    (GOLDEN / "chat_templates.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _rendered(tokenizer: transformers.PreTrainedTokenizerBase, source: str, given: dict[str, list]) -> dict[str, str]:
    try:
        text = tokenizer.apply_chat_template(
            given["messages"],
            chat_template=source,
            tools=given.get("tools"),
            documents=given.get("documents"),
            add_generation_prompt=True,
            tokenize=False,
        )
    except Exception as error:
        return {"error": str(error)}
    return {"text": text}


if __name__ == "__main__":
    main()
