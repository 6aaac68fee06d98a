from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from plait.compiler.bundle.spec import BundleSpec
from plait.compiler.rack.traffic import read_traffic
from plait.errors import ConfigurationError

MODELS = {"expert": {"source": "llama-2-7b", "copies": 3}, "chat": {"source": "llama-2-7b", "aliases": ["talk"]}}


def spec(traffic: object, models: Mapping[str, object] = MODELS) -> BundleSpec:
    return BundleSpec.model_validate({"bundle": "x", "target": "sn40l-8", "models": models, "traffic": traffic})


def trace(tmp_path: Path, *names: str) -> Path:
    lines = [f"2024-01-01 00:00:{i:02d},{name}" for i, name in enumerate(names)]
    (tmp_path / "trace.csv").write_text("\n".join(["timestamp,model", *lines]))
    return tmp_path


def test_without_traffic_every_routable_copy_is_as_likely() -> None:
    models = {**MODELS, "draft": {"source": "llama-2-7b", "routable": False}}
    traffic = read_traffic(spec(None, models), Path())
    assert (traffic.kind, traffic.rate("expert", 2), traffic.rate("chat", 0)) == ("assumed", 0.25, 0.25)
    assert traffic.rate("draft", 0) == 0


def test_a_models_rate_is_for_all_its_copies_and_one_copy_can_have_its_own() -> None:
    traffic = read_traffic(spec({"expert": "6/s", "talk": "30/min", "expert-1": "9/s"}), Path())
    assert [traffic.rate("expert", copy) for copy in range(3)] == [2, 9, 2]
    assert traffic.rate("chat", 0) == 0.5


def test_names_of_a_trace_are_copies_in_the_order_they_come(tmp_path: Path) -> None:
    traffic = read_traffic(spec("trace.csv"), trace(tmp_path, "b", "chat", "a", "b", "talk"))
    assert [(each.model, each.copy) for each in traffic.arrivals] == [
        ("expert", 0),
        ("chat", 0),
        ("expert", 1),
        ("expert", 0),
        ("chat", 0),
    ]
    assert traffic.rate("expert", 0) == 0.5  # two in four seconds
    assert traffic.rate("expert", 2) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time,model\n1,a\n", "has no columns `timestamp` and `model`"),
        ("timestamp,model\nnoon,chat\n", "line 2 of .* 'noon' is no time"),
        ("timestamp,model\n1,chat\n", "no two requests at different times"),
        ("timestamp,model\n1,a\n2,b\n3,c\n4,d\n", "more models than 'expert' has copies"),
    ],
    ids=["columns", "time", "one", "too many"],
)
def test_a_trace_that_cannot_be_used_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "trace.csv").write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        read_traffic(spec("trace.csv"), tmp_path)


def test_a_name_that_means_no_model_is_refused(tmp_path: Path) -> None:
    alone = {"chat": MODELS["chat"]}
    with pytest.raises(ConfigurationError, match="asks for 'b', which is no model of this bundle"):
        read_traffic(spec("trace.csv", alone), trace(tmp_path, "chat", "b"))
    with pytest.raises(ConfigurationError, match="No such file"):
        read_traffic(spec("nowhere.csv"), tmp_path)
    with pytest.raises(ConfigurationError, match="traffic of 'chat' is -1"):
        read_traffic(spec({"chat": -1}), tmp_path)
