"""Bundles whose models lie over several devices: the same answers as on one, switches, bytes, damage, a process."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from tiny import write_tiny_bert, write_tiny_llama

from plait.compiler.bundle.build import build_bundle
from plait.compiler.bundle.manifest import Manifest
from plait.compiler.bundle.reader import Bundle
from plait.compiler.bundle.spec import BundleSpec
from plait.errors import ConfigurationError, ExecutionError
from plait.runtime.engine import Runtime
from plait.runtime.executor import JaxExecutor
from plait.runtime.request import SamplingParams

GREEDY = SamplingParams(max_tokens=12, temperature=0)
SHORT = "The cat"
LONG = "Once upon a time, " * 4  # more than one chunk of a prefill
MESHES = {"whole": {}, "tensor": {"tensor": 2}, "stages": {"pipeline": 2}, "both": {"pipeline": 2, "tensor": 2}}
DECODER = {"source": "llama", "sequence": 128, "batch": 2, "kv_tokens": 256}


def bundle_of(directory: Path, target: str, models: dict[str, dict[str, object]]) -> Bundle:
    """Builds a bundle of these models."""
    spec = BundleSpec.model_validate({"bundle": "meshes", "target": target, "models": models})
    return build_bundle(spec, directory / "meshes.plait", base=directory)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One tiny decoder on every mesh of MESHES, and an encoder on one device and on two."""
    directory = tmp_path_factory.mktemp("meshes")
    write_tiny_llama(directory / "llama")
    write_tiny_bert(directory / "bert")
    models: dict[str, dict[str, object]] = {name: {**DECODER, "mesh": mesh} for name, mesh in MESHES.items()}
    encoder = {"source": "bert", "sequence": 64, "batch": 1}
    return bundle_of(
        directory, "cpu-tiered", {**models, "embed": encoder, "embed-two": {**encoder, "mesh": {"tensor": 2}}}
    )


def answers(runtime: Runtime, model: str, prompts: list[str], params: SamplingParams) -> list[tuple[int, ...]]:
    """The tokens of several prompts, asked at once."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: runtime.complete(model, prompt, params).token_ids, prompts))


def room_for_one(bundle: Bundle) -> int:
    """Bytes of hbm on each device that hold any one of the models."""
    return max(entry.resident_bytes + entry.workspace_bytes for entry in bundle.manifest.models)


def test_every_mesh_gives_the_answers_of_one_device_and_models_take_turns(bundle: Bundle) -> None:
    with Runtime(bundle, hbm=room_for_one(bundle)) as runtime:
        expected = answers(runtime, "whole", [SHORT, LONG], GREEDY)
        for _ in range(2):
            for model in MESHES:
                assert answers(runtime, model, [SHORT, LONG], GREEDY) == expected
        switches = [record.model for record in runtime.transfers() if record.destination == "hbm"]
        assert switches[-len(MESHES) :] == list(MESHES)
        one, two = (runtime.embed(model, "a cat") for model in ("embed", "embed-two"))
        assert abs(one - two).max() <= 1e-5 * abs(one).max()
        for use in runtime.tier_uses():
            assert use.measured_bytes <= use.peak_charged_bytes <= use.budget_bytes
            assert use.predicted_bytes == use.measured_bytes


def test_each_device_has_its_part_and_no_more(bundle: Bundle) -> None:
    with Runtime(bundle) as runtime:
        for model in MESHES:
            runtime.complete(model, SHORT, GREEDY)
        executor: JaxExecutor = runtime._core._executor
        for entry in bundle.manifest.models[: len(MESHES)]:
            hot = executor._tiers["hbm"][entry.name]
            held = [0] * entry.num_devices
            for array in (*(array for stage in hot.weights for array in stage.values()), *hot.pools):
                for shard in array.addressable_shards:
                    held[shard.device.id] += shard.data.nbytes
            assert held == [share.resident_bytes for share in entry.shares]
        whole, tensor, stages, both = (bundle.manifest.model(name).resident_bytes for name in MESHES)
        assert tensor < 0.51 * whole
        assert both < 0.51 * stages < 0.51 * whole


def test_a_unified_target_maps_the_file_for_all_devices_and_unmaps_it(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "llama")
    models = {name: {**DECODER, "batch": 1, "mesh": MESHES[name]} for name in ("whole", "both")}
    bundle = bundle_of(tmp_path, "cpu", models)

    def is_mapped(model: str) -> bool:
        return f"models/{model}/weights.safetensors" in Path("/proc/self/maps").read_text()

    with Runtime(bundle, hbm=room_for_one(bundle)) as runtime:
        expected = runtime.complete("whole", LONG, GREEDY).token_ids
        assert runtime.complete("both", LONG, GREEDY).token_ids == expected
        assert is_mapped("both")
        for entry in bundle.manifest.models:
            runtime.complete(entry.name, SHORT, GREEDY)
        (use,) = runtime.tier_uses()
        assert use.measured_bytes == use.predicted_bytes <= use.budget_bytes
    gc.collect()
    assert not is_mapped("both")


def test_a_bundle_made_on_a_mesh_says_so_in_its_manifest(bundle: Bundle) -> None:
    assert bundle.manifest.num_devices == 4
    again = Manifest.from_json(bundle.manifest.to_json())
    assert again.model("both").placement == bundle.manifest.model("both").placement
    placement = again.model("both").placement
    assert placement is not None
    assert (placement.mesh_shape, placement.pool_axes) == ({"tensor": 2}, ("tensor",))
    assert [stage.layers for stage in placement.stages] == [(0,), (1,)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"no.such.weight": ()}, "places the parameter 'no.such.weight', which its weight file has not"),
        ({"norm.weight": (("tensor",), ())}, r"divides the parameter 'norm.weight' as \[tensor, -\] over tensor=2"),
    ],
    ids=["unknown", "rank"],
)
def test_a_placement_that_does_not_fit_the_weights_is_refused(
    bundle: Bundle, tmp_path: Path, parameters: dict[str, tuple[tuple[str, ...], ...]], message: str
) -> None:
    copy = shutil.copytree(bundle.path, tmp_path / "copy.plait")
    entry = bundle.manifest.model("tensor")
    assert entry.placement is not None
    (stage,) = entry.placement.stages
    wrong = replace(stage, parameters={**stage.parameters, **parameters})
    changed = replace(entry, placement=replace(entry.placement, stages=(wrong,)))
    models = tuple(changed if model.name == "tensor" else model for model in bundle.manifest.models)
    (copy / "manifest.json").write_text(replace(bundle.manifest, models=models).to_json())
    with Runtime(copy) as runtime, pytest.raises(ExecutionError, match=message):
        runtime.complete("tensor", SHORT, GREEDY)


def test_too_few_devices_are_told_before_anything_is_built(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "llama")
    with pytest.raises(ConfigurationError, match="16 devices are needed, this process has 8"):
        bundle_of(tmp_path, "cpu", {"chat": {"source": "llama", "mesh": {"pipeline": 2, "tensor": 8}}})


def test_serve_makes_the_devices_that_a_bundle_needs(bundle: Bundle) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    }
    command = [sys.executable, "-c", "from plait.cli.main import run; run()", "serve", str(bundle.path), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        texts = {
            model: client.completions.create(model=model, prompt=LONG, max_tokens=8, temperature=0).choices[0].text
            for model in MESHES
        }
        assert len(set(texts.values())) == 1
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    finally:
        process.kill()
        process.communicate()


SMOLLM2_MESHES = {"one": {}, "three": {"tensor": 3}, "two": {"tensor": 2}, "stages": {"pipeline": 2}}
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a little girl who " * 8,
]


@pytest.fixture(scope="module")
def smollm2_bundle(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """SmolLM2 on one device, with tensor parallel 3 and 2, and with pipeline 2."""
    del smollm2  # pulled
    model = {"source": "smollm2-135m", "sequence": 128, "batch": 2, "kv_tokens": 256}
    models = {name: {**model, "mesh": mesh} for name, mesh in SMOLLM2_MESHES.items()}
    return bundle_of(tmp_path_factory.mktemp("smollm2"), "cpu", models)


@pytest.fixture(scope="module")
def smollm2_runtime(smollm2_bundle: Bundle) -> Iterator[Runtime]:
    with Runtime(smollm2_bundle, hbm=room_for_one(smollm2_bundle)) as runtime:
        yield runtime


@pytest.mark.long
@pytest.mark.weights
def test_smollm2_gives_the_same_greedy_tokens_on_every_mesh(smollm2_runtime: Runtime) -> None:
    expected = answers(smollm2_runtime, "one", PROMPTS, GREEDY)
    for model in SMOLLM2_MESHES:
        assert answers(smollm2_runtime, model, PROMPTS, GREEDY) == expected, model


@pytest.mark.long
@pytest.mark.weights
def test_attention_really_is_split_over_three(smollm2_runtime: Runtime) -> None:
    smollm2_runtime.complete("three", PROMPTS[0], SamplingParams(max_tokens=1))
    executor: JaxExecutor = smollm2_runtime._core._executor
    hot = executor._tiers["hbm"]["three"]
    (weights,) = hot.weights
    for layer in (0, 29):
        for name in ("query", "key", "value", "output"):
            array = weights[f"layers.{layer}.attention.{name}.weight"]
            assert len(array.addressable_shards) == 3
            assert all(shard.data.nbytes * 3 == array.nbytes for shard in array.addressable_shards)
    assert {shard.data.shape[2] for pool in hot.pools for shard in pool.addressable_shards} == {1}  # KV heads, of 3
    one, three = (smollm2_runtime.bundle.manifest.model(name) for name in ("one", "three"))
    assert three.resident_bytes == pytest.approx(one.resident_bytes / 3, rel=0.001)


@pytest.mark.long
@pytest.mark.weights
def test_a_decode_step_sums_twice_a_layer_and_never_makes_weights_whole(smollm2_runtime: Runtime) -> None:
    executor: JaxExecutor = smollm2_runtime._core._executor
    assert executor._loader is not None
    loading = executor._loader._loading
    (step,) = (e.result() for (model, c), e in loading.items() if model == "three" and c.id == "decode-b2-t1-c128")
    text = step.stages[0].compiled.as_text()
    assert text is not None
    sums = len(re.findall(r" (?:all-reduce|reduce-scatter)\(", text))
    assert 60 <= sums <= 62  # two for each of 30 layers, and one for the embedding
    gathered = re.findall(r"\[([\d,]+)\]\S* all-gather\(", text)
    assert all(_size(shape) <= 2 * 576 for shape in gathered)  # activations, not weights
    assert not re.search(r"f32\[(?:1536,576|576,1536|576,576|49152,576)\]", text)


def _size(shape: str) -> int:
    size = 1
    for dim in shape.split(","):
        size *= int(dim)
    return size
