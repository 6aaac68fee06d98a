"""An independent client: llm-comply's checks against the OpenAI schema, of the server over a real socket."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REFUSED = {"chat-image-input"}  # with a 400 that says so


@pytest.fixture(scope="module")
def report(server_url: str) -> dict:
    command = shutil.which("llm-comply", path=str(Path(sys.executable).parent)) or shutil.which("llm-comply")
    if command is None:
        pytest.skip("llm-comply is not installed")
    arguments = ["--format", "openai-chat", "-u", f"{server_url}/v1", "-k", "x", "-m", "chat", "--json"]
    run = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=120, check=False)
    return json.loads(run.stdout)


def test_llm_comply_passes_but_for_images(report) -> None:
    results = {result["id"]: result for result in report["results"] if result["status"] != "skipped"}
    assert len(results) >= 8
    assert {name for name, result in results.items() if result["status"] != "passed"} == REFUSED
    assert not [result for name, result in results.items() if name not in REFUSED and result.get("warnings")]
    for name in REFUSED:
        assert any("HTTP 400" in error for error in results[name]["errors"])
