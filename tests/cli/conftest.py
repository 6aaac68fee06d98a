"""The command line as a function: arguments in, exit code and both outputs back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from plait.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def data(self):
        """Standard output as JSON."""
        return json.loads(self.out)

    def complaint(self) -> str:
        """Returns the one line of a refusal: exit code 2, nothing on standard output, no traceback."""
        assert (self.code, self.out) == (2, "")
        assert self.err.startswith("plait: ")
        assert self.err.count("\n") == 1
        return self.err


@pytest.fixture
def plait(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line in this process."""

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["plait", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main.run()
        code = exit_info.value.code
        assert isinstance(code, int)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def bundle_file(tmp_path: Path) -> Path:
    """A bundle file of one tiny encoder, which takes a second or two to build."""
    from tiny import write_tiny_bert

    write_tiny_bert(tmp_path / "bert")
    file = tmp_path / "small.yaml"
    file.write_text("bundle: small\ntarget: cpu\nmodels: {embed: {source: bert, sequence: 32, batch: 1}}\n")
    return file
