"""Plans as files: what was written is read back, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import tiny

from plait.compiler.configuration import Phase
from plait.compiler.mesh import Layout, Mesh
from plait.compiler.pipeline import Compilation, Parallelism, compile_model, configuration_for
from plait.compiler.plan_file import open_plan, read_plan
from plait.compiler.target import load_target
from plait.compiler.train import Training
from plait.errors import ConfigurationError


def compiled(phase: Phase = "prefill", **wanted) -> Compilation:
    return compile_model(
        tiny.LLAMA_CONFIG,
        configuration_for(tiny.LLAMA_CONFIG, phase=phase, batch=2, sequence=32),
        dtype="bfloat16",
        target=load_target("sn40l-16"),
        training=Training("lion", rematerializes=True) if phase == "train" else None,
        parallelism=Parallelism(**wanted),
        stop_after="partition",
    )


MESH = Mesh(("data", "tensor"), (2, 2))
CASES = {
    "mesh and pins": ("prefill", {"mesh": MESH, "pins": (("layers.*.mlp.down.weight", "-,data*tensor"),)}),
    "stages": ("decode", {"num_devices": 4, "num_stages": 2, "objective": "throughput"}),
    "training": ("train", {"mesh": MESH, "budget_bytes": 1 << 24}),
    "one device": ("decode", {"num_devices": 1}),
}


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_a_plan_is_read_back_as_it_was(case, tmp_path: Path) -> None:
    phase, wanted = CASES[case]
    made = compiled(phase, **wanted)
    made.save(tmp_path)
    for path in (tmp_path, tmp_path / "plan.json"):
        found = read_plan(path)
        assert (found.model, found.configuration, found.dtype) == (made.model, made.configuration, made.dtype)
        assert (found.target, found.training, found.parallelism) == (made.target, made.training, made.parallelism)
        assert found.partition == made.partition
        assert found.traced.graph == made.traced.graph
    assert open_plan(tmp_path).partition == made.partition


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plan")
    compiled(mesh=MESH, pins=(("layers.*.mlp.down.weight", "-,data*tensor"),)).save(directory)
    return directory / "plan.json"


def test_a_file_is_small_and_readable(plan: Path) -> None:
    text = plan.read_text()
    assert len(text) < 12000
    assert '"-,data*tensor"' in text
    assert max(map(len, text.splitlines())) < 400


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (Layout(()), "()"),
        (Layout(((),)), "-"),
        (Layout((("x", "y"), ())), "x*y,-"),
        (Layout(((), ("y",)), (("x", "sum"), ("z", "max"))), "-,y|sum:x|max:z"),
        (Layout((), (("x", "min"),)), "()|min:x"),
    ],
    ids=str,
)
def test_a_layout_is_a_few_characters(layout: Layout, text: str) -> None:
    assert layout.as_text() == text
    assert Layout.from_text(text) == layout


@pytest.mark.parametrize("text", ["", "x,,y", "x*", "-|", "-|sum", "-|mean:x", "-|sum:", "x-y", "() "])
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no layout"):
        Layout.from_text(text)


def changed(plan: Path, tmp_path: Path, path: tuple[str | int, ...], value: object) -> Path:
    data = json.loads(plan.read_text())
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    return file


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("format",), 2, "is a plan in format '2' of plait '0.1.0'; this is plait 0.1.0, which reads format 1"),
        (("target",), "cpu", "target: "),
        (("model", "config", "num_layers"), 3, "it is of another graph: "),
        (("model", "config", "num_layers"), -1, "num_layers: Input should be greater than 0"),
        (("model", "config", "family"), "mamba", "unknown model family 'mamba'"),
        (("configuration", "context"), 10**6, "don't fit"),
        (("configuration", "phase"), "embed", "has no phase 'embed'"),
        (("dtype",), "float4", "dtype: Input should be"),
        (("training",), {"optimizer": "lion"}, "it has an optimizer, but its phase is prefill"),
        (("parallelism", "objective"), "beauty", "parallelism.objective"),
        (("partition", "stages", 0, "end"), 7, "its stages don't cover operations 0 to"),
        (("partition", "stages", 0, "first_device"), 1, "its stages don't begin at every 4 devices"),
        (("partition", "sharding", "mesh"), {"data": 2}, "cannot have layout"),
        (("partition", "sharding", "mesh"), {"data": 3, "tensor": 2}, "does not divide"),
        (("partition", "sharding", "layouts", 0), "data,data", "cannot have layout"),
        (("partition", "sharding", "layouts", 0), "data,-,-", "cannot have layout"),
        (("partition", "sharding", "layouts", 0), "[x]", "is no layout"),
        (("partition", "sharding", "inputs", 0), 99, "a layout or a division is not there"),
        (("partition", "sharding", "operations"), [], "the sharding is of another graph"),
        (("partition", "sharding", "shared"), {"99999": 0}, "a value that is not there"),
        (("partition", "sharding", "constants"), {"0": 0}, "layouts of other constants"),
        (("partition", "sharding", "divisions", 0), "- -> -", "is no division"),
        (("partition", "sharding", "divisions", 0), "- / - / - -> -", "another number of factors"),
    ],
)
def test_a_plan_that_is_wrong_is_refused_in_one_line(plan: Path, tmp_path: Path, path, value, says: str) -> None:
    file = changed(plan, tmp_path, path, value)
    with pytest.raises(ConfigurationError) as caught:
        read_plan(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_division_that_no_rule_gives_is_refused(plan: Path, tmp_path: Path) -> None:
    data = json.loads(plan.read_text())
    used = data["partition"]["sharding"]["operations"]
    divisions = data["partition"]["sharding"]["divisions"]
    place = next(i for i, text in enumerate(divisions) if "data" in text and i in used)
    axes, rest = divisions[place].split(" / ", 1)
    blank = ",".join("-" for _ in axes.split(","))
    file = changed(plan, tmp_path, ("partition", "sharding", "divisions", place), f"{blank} / {rest}")
    with pytest.raises(ConfigurationError, match="cannot have an operand or a result in layout"):
        read_plan(file)


def test_another_version_is_named_where_its_plan_does_not_fit(plan: Path, tmp_path: Path) -> None:
    newer = changed(plan, tmp_path, ("plait",), "9.9")
    assert read_plan(newer).partition == read_plan(plan).partition
    with pytest.raises(ConfigurationError, match=r"plait 9\.9 wrote it, this is .*: compile it again"):
        read_plan(changed(newer, tmp_path, ("graph", "operations"), 1))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "damaged or not JSON"),
        (b"\xff\xfe", "damaged or not JSON"),
        (b"[" * 100_000, "nested too deep|not JSON"),
        (b"[]", "is no plan of `plait compile -o DIR`"),
        (b'{"problem": {}}', "is no plan of `plait compile -o DIR`"),
        (b'{"plait": "0.1.0", "format": 1}', "is no plan: model: Field required"),
    ],
    ids=["empty", "bytes", "deep", "list", "problem", "head"],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=says):
        read_plan(tmp_path)
    with pytest.raises(ConfigurationError, match=r"cannot read plan .*nowhere: No such file"):
        read_plan(tmp_path / "nowhere")


def test_a_truncated_file_is_refused(plan: Path, tmp_path: Path) -> None:
    content = plan.read_bytes().rstrip()
    for end in range(0, len(content), 97):
        (tmp_path / "plan.json").write_bytes(content[:end])
        with pytest.raises(ConfigurationError, match="damaged or not JSON"):
            read_plan(tmp_path)


def places(data: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in pairs for place in places(value, (*path, key)))]


@hypothesis.given(random=st.randoms(use_true_random=False))
@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_a_changed_file_is_read_or_refused_in_one_line(plan: Path, tmp_path: Path, random) -> None:
    data = json.loads(plan.read_text())
    data["partition"].pop("tried")
    data["partition"]["tried"] = []
    path = random.choice([place for place in places(data) if place and place[0] != "memory"])
    junk = random.choice([None, "", -1, 2.5, [], {}, "x*y,-", True, [[]], {"a": 1}])
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    file = changed(file, tmp_path, path, junk)
    assert "\n" not in refusal(file)


def refusal(file: Path) -> str:
    """Returns why a plan is refused, or nothing; any other error is one of the test."""
    try:
        read_plan(file)
    except ConfigurationError as error:
        return str(error)
    return ""
