"""`plait bench switch` on tiny models, in this process: every way is run and compared."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from encoder_zoo import write_variant
from tiny import write_tiny_bert, write_tiny_llama

from plait.compiler.bundle.build import build_bundle
from plait.compiler.bundle.reader import open_bundle
from plait.compiler.bundle.spec import BundleSpec
from plait.errors import ConfigurationError, ExecutionError
from plait.runtime.bench.switching import agent as agent_loop
from plait.runtime.bench.switching.agent import ANSWER_TOKENS, Roles
from plait.runtime.bench.switching.child import RemoteStation
from plait.runtime.bench.switching.intervals import estimate, ratio
from plait.runtime.bench.switching.page_cache import cached_share
from plait.runtime.bench.switching.report import SwitchReport
from plait.runtime.bench.switching.run import Plan, SwitchRuns, run_switching
from plait.runtime.bench.switching.station import StationSpec, opened

TURNS, BLOCK = 4, 2
SWITCH_SECONDS = 0.03


def median(values: np.ndarray) -> np.ndarray:
    return np.median(values, axis=-1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four decoders and two encoders."""
    directory = tmp_path_factory.mktemp("switching")
    names = ("chat-0", "chat-1", "guard-0", "guard-1")
    for seed, name in enumerate(names):
        write_tiny_llama(directory / name, seed=seed)
    write_tiny_bert(directory / "bert")
    write_variant(directory / "sparse", "bert-sparse")
    spec = {
        "bundle": "agent",
        "target": "cpu-tiered",
        "models": {
            **{name: {"source": name, "sequence": 48, "batch": 1, "kv_tokens": 64} for name in names},
            "embed": {"source": "bert", "sequence": 24, "batch": 1},
            "sparse": {"source": "sparse", "batch": 1},
        },
    }
    return build_bundle(BundleSpec.model_validate(spec), directory / "agent.plait", base=directory).path


@pytest.fixture(scope="module")
def plan(bundle: Path) -> Plan:
    moved = open_bundle(bundle).manifest.model("chat-0").moved_bytes
    return Plan(bundle, moved / SWITCH_SECONDS, TURNS, BLOCK, num_rounds=1, learning_turns=2, wants_timeline=True)


@pytest.fixture(scope="module")
def runs(plan: Plan) -> SwitchRuns:
    return run_switching(plan, opened, [], lambda label, done, total: None)


def test_the_roles_are_read_off_the_bundle(bundle: Path) -> None:
    roles = Roles.of(open_bundle(bundle).manifest)
    assert roles.pairs == (("chat-0", "guard-0"), ("chat-1", "guard-1"))
    assert roles.cycle == ("embed", "sparse", "chat-0", "guard-0", "embed", "sparse", "chat-1", "guard-1")


@pytest.mark.parametrize("missing", ["guard-1", "embed", "sparse"])
def test_a_bundle_without_the_roles_is_refused(bundle: Path, missing: str) -> None:
    manifest = open_bundle(bundle).manifest
    rest = tuple(entry for entry in manifest.models if entry.name != missing)
    with pytest.raises(ConfigurationError, match="'agent' has too little for the agent: four chat models or more"):
        Roles.of(dataclasses.replace(manifest, models=rest))


def test_no_prompt_comes_twice_whatever_the_look_ahead(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    text = agent_loop.chat_text

    def chat_text(number: int, passage: str) -> str:
        asked.append(text(number, passage))
        return asked[-1]

    monkeypatch.setattr(agent_loop, "chat_text", chat_text)
    station = opened(StationSpec(bundle, "half", "all", None))
    try:
        for ahead in ("declared", "learned", "none"):
            station.block(ahead, 2)
    finally:
        station.close()
    assert len(set(asked)) == len(asked) == 3 * (1 + 2)


@pytest.mark.long
def test_every_way_runs_its_turns(runs: SwitchRuns) -> None:
    counts = {way: len(loop.turns) for way, loop in runs.loops.items()}
    assert counts == {"resident": 4, "declared": 4, "learned": 2, "blocking": 2, "reload": 4, "reload_cold": 4}
    assert {way: len(of) for way, of in runs.switches.items()} == {"copied": 3, "reload": 1, "reload_cold": 1}


@pytest.mark.long
def test_only_where_not_all_fit_there_are_switches_and_stalls(runs: SwitchRuns) -> None:
    resident, blocking = runs.loops["resident"], runs.loops["blocking"]
    assert sum(block.num_switches for block in resident.blocks.values()) == 0
    assert all(turn.stall_seconds == 0 for turn in resident.turns)
    num_switches = sum(block.num_switches for block in blocking.blocks.values())
    assert num_switches >= len(blocking.turns)
    assert sum(turn.stall_seconds for turn in blocking.turns) >= 0.9 * num_switches * SWITCH_SECONDS


@pytest.mark.long
def test_a_switch_moves_the_models_bytes_and_a_cached_file_is_seen_as_such(runs: SwitchRuns, bundle: Path) -> None:
    moved = open_bundle(bundle).manifest.model("chat-0").moved_bytes
    assert {switch.num_bytes for of in runs.switches.values() for switch in of} == {moved}
    assert all(switch.cached_share == 1.0 for switch in runs.switches["reload"])
    assert all(0 < s.copy_seconds <= s.ready_seconds <= s.ttft_seconds for s in runs.switches["copied"])


@pytest.mark.long
def test_a_link_that_is_not_given_makes_a_switch_last_ten_decode_steps(plan: Plan) -> None:
    plan = dataclasses.replace(plan, link_bytes_per_s=None, num_turns=BLOCK, wants_timeline=False)
    runs = run_switching(plan, opened, [], lambda label, done, total: None)
    steps = [turn.decode_seconds / (ANSWER_TOKENS - 1) for turn in runs.loops["resident"].turns]
    switch_seconds = runs.switches["copied"][0].num_bytes / runs.link_bytes_per_s
    assert 3 < switch_seconds / float(np.median(steps)) < 30  # steps of a tiny model last as long as they like


@pytest.mark.long
def test_the_timeline_has_steps_and_transfers_at_once(runs: SwitchRuns, bundle: Path) -> None:
    assert runs.timeline is not None
    moved = open_bundle(bundle).manifest.model("chat-0").moved_bytes
    events = [event for event in json.loads(runs.timeline)["traceEvents"] if event["ph"] == "X"]
    steps = [event for event in events if event["name"] in ("prefill", "decode", "embed")]
    transfers = [e for e in events if e["name"] == "ddr->hbm" and e["args"]["bytes"] == moved]
    assert transfers
    assert all(event["dur"] >= 0.9e6 * SWITCH_SECONDS for event in transfers)
    overlaps = [
        min(step["ts"] + step["dur"], transfer["ts"] + transfer["dur"]) - max(step["ts"], transfer["ts"])
        for step in steps
        for transfer in transfers
    ]
    assert max(overlaps) > 0


@pytest.mark.long
def test_the_report_compares_with_all_resident(plan: Plan, runs: SwitchRuns) -> None:
    report = SwitchReport(plan, runs)
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["agent"]["resident"]["share_of_resident"]["value"] == 1.0
    seconds = {way: np.mean([turn.seconds for turn in loop.turns]) for way, loop in runs.loops.items()}
    blocks = runs.loops["resident"].blocks, runs.loops["blocking"].blocks
    share = np.mean([turn.seconds for turn in blocks[0][0].turns]) / np.mean([t.seconds for t in blocks[1][0].turns])
    assert data["agent"]["blocking"]["share_of_resident"]["value"] == pytest.approx(share)
    assert data["agent"]["declared"]["turns_per_s"] == pytest.approx(1 / seconds["declared"])
    assert len(data["bars"]) == 6
    text = "\n".join(table.as_text() for table in report.tables())
    for name in ("(a) all resident", "(b) copy from ddr, blocking", "(c) reload, page cache dropped"):
        assert name in text


def test_what_goes_wrong_in_a_childs_process_is_said_here(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="is not a plait bundle"):
        RemoteStation(StationSpec(tmp_path, "all", "one", None))


def test_a_childs_process_that_is_not_done_ends_with_the_parents_interest(bundle: Path) -> None:
    class StopError(Exception):
        """Comes at some moment."""

    def stop(number: int, frame: object) -> None:
        raise StopError

    station = RemoteStation(StationSpec(bundle, "all", "one", None))
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(StopError):
            station.block("none", 100_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        began = time.monotonic()
        station.close()
    assert time.monotonic() - began < 5.0


def test_an_interval_holds_the_figure_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    estimates = [estimate(generator.normal(5.0, 1.0, 40).tolist(), lambda v: v.mean(axis=-1)) for _ in range(200)]
    assert 0.88 <= np.mean([of.low <= 5.0 <= of.high for of in estimates]) <= 0.99
    # A mean of 40 normal values has a standard deviation of 1 / sqrt(40).
    assert np.mean([of.high - of.low for of in estimates]) == pytest.approx(2 * 1.96 / 40**0.5, rel=0.1)


def test_a_ratio_is_that_of_the_statistics() -> None:
    of = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], median)
    assert of.value == 2.0
    assert of.low < 2.0 < of.high
    same = ratio([3.0] * 5, [2.0] * 5, median)
    assert (same.low, same.value, same.high) == (1.5, 1.5, 1.5)


def test_a_file_just_written_is_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    assert cached_share(path) == 1.0
