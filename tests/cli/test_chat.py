from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plait.compiler.bundle.reader import open_bundle
from plait.runtime.engine import Runtime
from plait.runtime.request import SamplingParams

GREEDY = ("--temperature", "0", "--max-tokens", "8")
PARAMS = SamplingParams(max_tokens=8, temperature=0)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets standard input."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_it_remembers_until_it_is_told_to_forget(plait, tiny_bundle: Path, typed) -> None:
    typed("one\n\ntwo\n/clear\none\n/exit\nthree\n")
    outcome = plait("chat", tiny_bundle, *GREEDY)
    with Runtime(tiny_bundle) as runtime:
        first = runtime.complete("chat", [user("one")], PARAMS).text
        history = [user("one"), {"role": "assistant", "content": first}, user("two")]
        second = runtime.complete("chat", history, PARAMS).text
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"{first}\n{second}\n{first}\n"


def test_a_question_that_does_not_fit_is_said_and_forgotten(plait, tiny_bundle: Path, typed) -> None:
    typed(f"{'x' * 300}\none\n")
    outcome = plait("chat", tiny_bundle, "other", "--system", "be brief", *GREEDY)
    assert outcome.code == 0
    assert "has a context of 128" in outcome.err
    assert outcome.err.endswith("/clear begins anew\n")
    assert len(outcome.out.splitlines()) >= 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("embed", "'embed' is not a model to chat with; chat models: chat, other"),
        ("nobody", "has no model 'nobody'"),
    ],
    ids=["encoder", "unknown"],
)
def test_who_cannot_chat_is_one_line(plait, tiny_bundle: Path, name: str, says: str) -> None:
    assert says in plait("chat", tiny_bundle, name).complaint()
    assert open_bundle(tiny_bundle).manifest.name == "tiny"
