"""Steps mapped onto chips: every stage verified, spills with their bound, and verifiers that find what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_functions import FUNCTIONS

from plait.compiler.configuration import Configuration
from plait.compiler.fuse import fuse
from plait.compiler.mapping import Fusion, Mapped, map_step
from plait.compiler.mesh import Layout, Mesh
from plait.compiler.partition.search import partition
from plait.compiler.partition.skeleton import skeleton
from plait.compiler.pipeline import Compilation, Parallelism, compile_model, configuration_for
from plait.compiler.schedule import schedule
from plait.compiler.subject import read_subject
from plait.compiler.target import Chip, Target, load_target
from plait.compiler.trace import trace, trace_model
from plait.compiler.verify.fusion import verify_schedule
from plait.compiler.verify.tiers import verify_tier_plan
from plait.errors import VerificationError
from plait.models.config import DecoderConfig


def compiled(model: str, target: str, sequence: int = 2048, num_stages: int | None = None) -> Compilation:
    config = read_subject(model, base=Path()).config
    assert isinstance(config, DecoderConfig)
    shapes = configuration_for(config, phase="decode", batch=1, sequence=sequence)
    return compile_model(
        config,
        shapes,
        dtype="bfloat16",
        target=load_target(target),
        parallelism=Parallelism(num_stages=num_stages),
        stop_after="schedule",
    )


@pytest.fixture(scope="module")
def node() -> Compilation:
    """Llama 3.1 8B in two pipeline stages on 8 sockets."""
    return compiled("llama-3.1-8b", "sn40l-8", num_stages=2)


def mapped(compilation: Compilation) -> Mapped:
    assert compilation.mapped is not None
    return compilation.mapped


def test_two_stages_hold_half_each_and_hand_on_what_the_second_needs(node: Compilation) -> None:
    found = mapped(node)
    assert found.tiers is not None
    assert found.schedule is not None
    first, second = found.tiers.stages
    assert (first.first_device, second.first_device) == (0, 4)
    assert node.partition is not None
    for stage, planned in zip((first, second), node.partition.stages, strict=True):
        held = sum(buffer.bytes for buffer in stage.buffers if buffer.kind in ("parameter", "cache"))
        assert held == planned.footprint.parameters + planned.footprint.cache
        assert stage.hbm_bytes == stage.hbm_lower_bound_bytes
        assert stage.spill_bytes_moved == 0
    handed = [buffer for buffer in second.buffers if buffer.kind == "intermediate" and buffer.begin == 0]
    assert handed  # by the first stage
    kinds = [step.kind for step in found.schedule.steps]
    assert kinds.count("handover") == 1
    assert found.schedule.handover_seconds > 0


def test_what_is_over_budget_is_spilled_the_least_moved_first_and_near_the_bound() -> None:
    found = mapped(compiled("llama-3.1-70b", "sn40l"))
    assert found.tiers is not None
    assert found.schedule is not None
    (stage,) = found.tiers.stages
    assert stage.hbm_bytes <= stage.budget_bytes
    assert stage.ddr_bytes > 60 << 30
    assert stage.spill_lower_bound_bytes <= stage.spill_bytes_moved <= 1.02 * stage.spill_lower_bound_bytes
    assert found.schedule.bound == "ddr"
    assert found.schedule.seconds >= stage.spill_seconds


def test_a_saved_plan_has_a_file_of_each_noun(node: Compilation, tmp_path: Path) -> None:
    names = {path.name for path in node.save(tmp_path / "plan")}
    assert {"plan.json", "sections.json", "placement.json", "tiers.json", "schedule.json"} <= names
    schedule = json.loads((tmp_path / "plan" / "schedule.json").read_text())
    assert schedule["seconds"] == mapped(node).schedule.seconds  # pyright: ignore[reportOptionalMemberAccess]
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["schedule"]["bound"] == schedule["bound"]


def test_a_stage_can_be_the_last(node: Compilation) -> None:
    assert node.partition is not None
    found = map_step(
        node.traced,
        node.partition,
        node.target,
        node.dtype,
        configuration=node.configuration,
        fusion=Fusion("o0", "software"),
        stop_after="fuse",
    )
    assert (found.placement, found.tiers, found.schedule) == (None, None, None)
    assert found.sections.mode == "o0"


CHIPS = st.builds(
    Chip,
    rows=st.integers(2, 8),
    columns=st.integers(2, 8),
    pmu_bytes=st.sampled_from([1 << 12, 1 << 16]),
    clock_hz=st.just(1e9),
    pmu_bytes_per_cycle=st.just(64.0),
    link_bytes_per_cycle=st.just(64.0),
    tile_rows=st.sampled_from([1, 16]),
)


@given(name=st.sampled_from(sorted(FUNCTIONS)), chip=CHIPS, hbm=st.sampled_from([1 << 10, 1 << 14, 1 << 30]))
@settings(max_examples=12, deadline=None)
def test_any_function_maps_onto_any_chip(name: str, chip: Chip, hbm: int) -> None:
    function, arguments = FUNCTIONS[name]()
    traced = trace(function, *arguments)
    target = small(load_target("sn40l"), chip, hbm)
    plan = partition(traced, target, dtype="float32", mesh=Mesh((), ()))
    shapes = Configuration("embed", 1, 1, 1)
    found = map_step(traced, plan, target, "float32", configuration=shapes)  # verifies every stage
    assert found.tiers is not None
    (stage,) = found.tiers.stages
    assert stage.spill_bytes_moved >= stage.spill_lower_bound_bytes


def small(target: Target, chip: Chip, hbm_bytes: int) -> Target:
    hbm = replace(target.tiers["hbm"], capacity_bytes=hbm_bytes, reserved_bytes=0)
    return replace(target, chip=chip, tiers={**target.tiers, "hbm": hbm})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset_bytes": 0}, "share addresses in hbm"),
        ({"bytes": 1 << 40}, "share addresses|is used up to"),
        ({"begin": 5}, "which is not held then"),
        ({"tier": "ddr"}, "is used up to|spilled buffers move"),
    ],
    ids=["overlap", "size", "late", "tier"],
)
def test_a_wrong_tier_plan_is_found(node: Compilation, change: dict[str, int | str], message: str) -> None:
    found = mapped(node)
    assert found.tiers is not None
    assert node.partition is not None
    stage = found.tiers.stages[0]
    place = next(i for i, each in enumerate(stage.buffers) if each.kind == "parameter" and each.offset_bytes > 0)
    buffers = list(stage.buffers)
    buffers[place] = replace(buffers[place], **change)  # pyright: ignore[reportArgumentType]
    wrong = replace(found.tiers, stages=(replace(stage, buffers=tuple(buffers)), *found.tiers.stages[1:]))
    with pytest.raises(VerificationError, match=message):
        verify_tier_plan(wrong, node.traced.graph, node.partition, found.works, found.sections)


@pytest.mark.parametrize(
    ("mesh", "num_sequences", "num_heads"),
    [(Mesh((), ()), 4, 3), (Mesh(("x",), (3,)), 4, 1), (Mesh(("y",), (2,)), 2, 3)],
    ids=["one device", "heads divided", "sequences divided"],
)
def test_a_step_adds_keys_and_values_to_its_caches_of_each_head_and_sequence_that_a_device_holds(
    mesh: Mesh, num_sequences: int, num_heads: int
) -> None:
    config = read_subject("smollm2-135m", base=Path()).config
    assert isinstance(config, DecoderConfig)
    base = load_target("sn40l-8")
    target = replace(base, compute=replace(base.compute, sequence_seconds=1e-4))
    shapes = Configuration("decode", 4, 1, 256)
    traced = trace_model(config, shapes, "bfloat16")
    divided = {(): ((), (), (), ()), ("x",): ((), (), ("x",), ()), ("y",): (("y",), (), (), ())}
    layouts = (Layout(divided[mesh.axes]),)
    pins = {value.id: layouts for value in traced.graph.values if value.kind == "cache"}
    plan = partition(traced, target, dtype="bfloat16", mesh=mesh, num_stages=1, pins=pins)
    sections = fuse(skeleton(traced), plan.sharding, target, "bfloat16")
    found = schedule(traced, plan, sections, target, "bfloat16", configuration=shapes)
    count = 2 * config.num_layers * num_heads * num_sequences * (1 - 1 / shapes.batch)
    assert found.append_seconds == pytest.approx(target.compute.append_seconds * count)
    assert found.host_seconds == pytest.approx(3e-4)
    last = {step.kind: step.seconds for step in found.steps[-2:]}
    assert last == {"append": found.append_seconds, "host": found.host_seconds}
    verify_schedule(found, sections)


def test_a_wrong_schedule_is_found(node: Compilation) -> None:
    found = mapped(node)
    assert found.schedule is not None
    steps = found.schedule.steps
    with pytest.raises(VerificationError, match="begins at"):
        verify_schedule(replace(found.schedule, steps=steps[1:]), found.sections)
    with pytest.raises(VerificationError, match="the schedule"):
        verify_schedule(replace(found.schedule, steps=steps[:-1]), found.sections)
