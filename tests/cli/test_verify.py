from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from plait.compiler.verify import partition as verifier

OPTIONS = ("--phase", "prefill", "--batch", "2", "--sequence", "64", "--mesh", "2x2", "--target", "sn40l-16")
PIN = ("--pin", "layers.*.mlp.down.weight=-,x*y")  # so that something is sent


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def plan(plait, llama: Path, tmp_path: Path) -> Path:
    """The plan of a tiny model on a mesh, saved."""
    assert plait("compile", llama, *OPTIONS, *PIN, "-o", tmp_path / "plan").code == 0
    return tmp_path / "plan"


@pytest.mark.parametrize("options", [(), ("--twin",)], ids=["itself", "twin"])
def test_a_plan_is_verified_by_running_it(plait, plan: Path, options) -> None:
    outcome = plait("verify", plan, *options)
    assert (outcome.code, outcome.err) == (0, "")
    facts = dict(line.split("  ", 1) for line in outcome.out.splitlines() if not line.startswith(" "))
    assert facts["verified"].strip() == "yes"
    assert facts["plan"].strip() == "llama/prefill-b2-t64-c64, x=2 x y=2 of sn40l-16"
    assert ("twin" in facts) == bool(options)
    data = plait("verify", plan, *options, "--json").data
    assert data["verified"]
    assert data["difference"] <= data["tolerance"] == 1e-5
    assert data["collectives"]["predicted"] == data["collectives"]["compiled"] != []


def test_a_collective_too_many_is_named_with_its_line(plait, plan: Path, monkeypatch) -> None:
    predicted = verifier.predicted_collectives
    monkeypatch.setattr(verifier, "predicted_collectives", lambda *arguments: predicted(*arguments)[1:])
    outcome = plait("verify", plan)
    assert outcome.code == 1
    assert "elements differ" in outcome.out
    assert "is not verified: " in outcome.err
    assert " in the program, first at layers.0/" in outcome.err
    assert not plait("verify", plan, "--json").data["verified"]


def test_what_cannot_be_verified_is_one_line(plait, llama: Path, plan: Path, tmp_path: Path) -> None:
    assert (
        "is for 4 devices, which are more than 3: raise --devices"
        in plait("verify", plan, "--devices", "3").complaint()
    )
    assert "cannot read plan" in plait("verify", tmp_path / "nowhere").complaint()
    plait("compile", llama, "--sequence", "64", "--stop-after", "trace", "-o", tmp_path / "traced")
    assert "divides nothing; compile it up to its stage 'partition'" in plait("verify", tmp_path / "traced").complaint()
