"""Sections of real models and of plain functions: legal on any chip, the cheapest of all cuts, and what they cost."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_functions import FUNCTIONS

from plait.compiler.configuration import Configuration
from plait.compiler.fuse import Mode, Sections, fuse
from plait.compiler.fuse.pipeline import Fuser
from plait.compiler.fuse.rules import FusionRule, PatternStep
from plait.compiler.fuse.search import cheapest
from plait.compiler.fuse.work import works_of
from plait.compiler.graph import Graph
from plait.compiler.mesh import Mesh
from plait.compiler.partition.result import Partition
from plait.compiler.partition.search import partition
from plait.compiler.partition.skeleton import Skeleton, buffer_roots, skeleton
from plait.compiler.schedule import schedule
from plait.compiler.subject import read_subject
from plait.compiler.target import Chip, Target, load_target
from plait.compiler.trace import trace, trace_model
from plait.compiler.train import Training, trace_training
from plait.compiler.verify.fusion import verify_schedule, verify_sections
from plait.errors import VerificationError
from plait.models.config import DecoderConfig

SN40L = load_target("sn40l")
NODE = load_target("sn40l-8")
DTYPE = "bfloat16"


def planned(
    model: str, phase: str, tokens: int, target: Target = NODE, batch: int = 1, num_layers: int = 0
) -> tuple[Skeleton, Partition, Configuration]:
    """A step of a zoo model, partitioned."""
    config = read_subject(model, base=Path()).config
    assert isinstance(config, DecoderConfig)
    config = replace(config, num_layers=num_layers or config.num_layers)
    assert phase in ("prefill", "decode", "train")
    shapes = Configuration(phase, batch, 1 if phase == "decode" else tokens, tokens)
    if phase == "train":
        traced = trace_training(config, shapes, DTYPE, Training(rematerializes=True))
    else:
        traced = trace_model(config, shapes, DTYPE)
    plan = partition(traced, target, dtype=DTYPE, num_devices=target.num_devices, num_stages=1)
    return skeleton(traced), plan, shapes


def verified(bones: Skeleton, plan: Partition, target: Target, mode: Mode = "o3", **options: object) -> Sections:
    """Sections that went through their verifier."""
    found = fuse(bones, plan.sharding, target, DTYPE, mode=mode, **options)  # pyright: ignore[reportArgumentType]
    works = works_of(bones, plan.sharding, target, DTYPE)
    verify_sections(found, works, bones.traced.graph, target)
    return found


@pytest.fixture(scope="module")
def decode() -> tuple[Skeleton, Partition, Configuration]:
    return planned("llama-3.1-8b", "decode", 2048)


def test_a_decoder_layer_is_one_kernel_that_waits_for_hbm(decode) -> None:
    bones, plan, shapes = decode
    found = verified(bones, plan, NODE)
    (layer,) = (section for section in found.sections if found.counts[section.id] == 32)
    assert layer.bound == "hbm"
    assert layer.num_pcus > 0.9 * 1040
    assert layer.num_pmus > 0.9 * 1040
    step = schedule(bones.traced, plan, found, NODE, DTYPE, configuration=shapes)
    verify_schedule(step, found)
    assert step.seconds == pytest.approx(found.seconds)
    assert step.joules is not None
    assert 8 * NODE.power.idle_watts * step.seconds < step.joules < 8 * NODE.power.peak_watts * step.seconds  # pyright: ignore[reportOptionalMemberAccess]


def test_reading_all_weights_once_is_what_a_step_takes_from_hbm(decode) -> None:
    bones, plan, _ = decode
    graph = bones.traced.graph
    found = verified(bones, plan, NODE)
    mesh = plan.mesh
    stored = sum(
        size / mesh.num_shards(layout.axes)
        for value, layout, size in zip(graph.inputs, plan.sharding.inputs, graph.input_bytes_read, strict=True)
        if graph.values[value].kind in ("parameter", "cache")
    )
    assert found.total("read_bytes") == pytest.approx(stored, rel=0.02)


@pytest.mark.parametrize(
    ("mode", "orchestration"), [("o0", "hardware"), ("o0", "software"), ("o3", "hardware"), ("o3", "software")]
)
def test_nothing_fused_takes_longer_and_more_launches(decode, mode, orchestration) -> None:
    bones, plan, _ = decode
    fused = verified(bones, plan, NODE, "o3")
    found = verified(bones, plan, NODE, mode, orchestration=orchestration)
    assert found.seconds >= fused.seconds * (1 - 1e-9)
    assert found.num_kernels >= fused.num_kernels
    if mode == "o0":
        assert found.num_kernels > 15 * fused.num_kernels


def test_a_prefill_is_cut_where_all_rows_are_waited_for() -> None:
    bones, plan, _ = planned("llama-2-7b", "prefill", 4096)
    found = verified(bones, plan, NODE)
    unfused = verified(bones, plan, NODE, "o0")
    (attending,) = (each for each in found.sections if "attention" in {stage.name for stage in each.stages})
    assert {stage.phase for stage in attending.stages} == {0}  # keys and values of all rows come from another section
    assert {section.bound for section in found.sections if found.counts[section.id] == 32} == {"compute"}
    assert 10.4 < unfused.num_kernels / found.num_kernels < 11.6  # published: 11


def test_the_scores_of_attention_never_go_through_hbm() -> None:
    bones, plan, _ = planned("llama-2-7b", "train", 4096, batch=8, num_layers=2)
    scores = max(value.bytes for value in bones.traced.graph.values if value.kind == "intermediate")
    assert scores == 8 * 32 * 4096 * 4096 * 4  # f32, of all devices
    found = verified(bones, plan, NODE)
    assert all(section.read_bytes + section.written_bytes < scores / 8 for section in found.sections)
    again = [stage for section in found.sections for stage in section.stages if stage.operation < section.begin]
    assert again  # what is cheap to make is made again


def test_the_cheapest_of_all_cuts_is_found(decode) -> None:
    bones, plan, _ = decode
    graph: Graph = bones.traced.graph
    run = bones.merged.runs[0]
    roots = buffer_roots(graph)
    outputs = frozenset(roots.get(value, value) for value in graph.outputs)
    works = works_of(bones, plan.sharding, NODE, DTYPE)
    small = replace(NODE, chip=Chip(3, 4, 1 << 20, 1e9, 64.0, 64.0))
    fuser = Fuser(works, outputs, small, DTYPE)
    begin, end = run.begin, run.begin + 14
    section = functools.cache(fuser.section)
    places = [place for place in range(begin + 1, end) if works[place].kernels]
    best = float("inf")
    for count in range(len(places) + 1):
        for cuts in itertools.combinations(places, count):
            sections = [section(*pair) for pair in itertools.pairwise((begin, *cuts, end))]
            if None not in sections:
                best = min(best, sum(each.seconds for each in sections if each and each.num_kernels))
    found = [each for each in cheapest(fuser, begin, end) if each.num_kernels]
    assert sum(each.seconds for each in found) == pytest.approx(best)
    assert 1 < len(found) < len(places)


def test_rules_make_the_sections_that_they_say(decode) -> None:
    bones, plan, _ = decode
    rule = FusionRule(
        pattern={
            "gate": PatternStep(("linear",)),
            "activation": PatternStep(("logistic",)),
            "times": PatternStep(("mul",), required=False),
        },
        priority=3,
    )
    found = verified(bones, plan, NODE, "o1", rules=(rule,))
    operations = bones.traced.graph.operations
    made = [
        [operations[place].name for place in range(section.begin, section.end) if operations[place].flops]
        for section in found.sections
    ]
    assert made.count(["linear", "logistic", "mul"]) == 1
    assert {len(names) for names in made if names != ["linear", "logistic", "mul"]} <= {0, 1}


def test_a_target_without_a_chip_runs_operation_by_operation(decode) -> None:
    bones, plan, _ = decode
    found = verified(bones, plan, load_target("h100-8"))
    assert all(not section.stages and section.num_kernels == 1 for section in found.sections)
    assert found.num_kernels > 16 * 32


CHIPS = st.builds(
    Chip,
    rows=st.integers(2, 12),
    columns=st.integers(2, 12),
    pmu_bytes=st.sampled_from([1 << 10, 1 << 14, 1 << 19]),
    clock_hz=st.sampled_from([1e8, 1.6e9]),
    pmu_bytes_per_cycle=st.sampled_from([16.0, 64.0]),
    link_bytes_per_cycle=st.just(64.0),
    tile_rows=st.sampled_from([1, 8, 64]),
)


@given(name=st.sampled_from(sorted(FUNCTIONS)), chip=CHIPS, mode=st.sampled_from(["o0", "o1", "o3"]))
@settings(max_examples=30, deadline=None)
def test_any_function_on_any_chip_becomes_legal_sections(name, chip, mode) -> None:
    function, arguments = FUNCTIONS[name]()
    traced = trace(function, *arguments)
    target = replace(SN40L, chip=chip)
    plan = partition(traced, target, dtype="float32", mesh=Mesh((), ()))
    found = verified(skeleton(traced), plan, target, mode)
    shapes = Configuration("embed", 1, 1, 1)
    step = schedule(traced, plan, found, target, "float32", configuration=shapes)
    verify_schedule(step, found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: replace(found, launches=found.launches[1:]), "is not run exactly once"),
        (lambda found: replace(found, launches=(*found.launches, found.launches[-1])), "is not run exactly once"),
        (lambda found: _changed(found, num_pcus=2000), "compute units"),
        (lambda found: _changed(found, num_pmus=0), "memory units"),
        (lambda found: _changed(found, sram_bytes=1 << 40), "of SRAM"),
        (lambda found: _slower(found, read_bytes=0.0), "at least"),
        (lambda found: _slower(found, hbm_seconds=0.0), "too fast"),
        (lambda found: _slower(found, compute_seconds=0.0), "above the peak"),
    ],
    ids=["missing", "twice", "compute units", "memory units", "sram", "traffic", "bandwidth", "peak"],
)
def test_the_verifier_finds_what_is_wrong(decode, change, message) -> None:
    bones, plan, _ = decode
    found = fuse(bones, plan.sharding, NODE, DTYPE)
    works = works_of(bones, plan.sharding, NODE, DTYPE)
    with pytest.raises(VerificationError, match=message):
        verify_sections(change(found), works, bones.traced.graph, NODE)


def _changed(found: Sections, **fields: int) -> Sections:
    layer = found.sections[1]
    stages = (replace(layer.stages[0], **fields), *layer.stages[1:])
    return _slower(found, stages=stages)


def _slower(found: Sections, **fields: object) -> Sections:
    sections = list(found.sections)
    sections[1] = replace(sections[1], **fields)  # pyright: ignore[reportArgumentType]
    return replace(found, sections=tuple(sections))
