from __future__ import annotations

from pathlib import Path

import pytest

from plait.compiler.bundle.spec import BundleSpec
from plait.compiler.rack.bundle_file import read_bundle_file
from plait.errors import ConfigurationError

MODEL_BUNDLE = """
apiVersion: sambanova.ai/v1alpha1
kind: ModelBundle
metadata: {name: mb-demo}
spec:
  secretNames: [reader]
  modelConfigs:
  - model: meta-llama-3-3-70b-instruct:2
    profile: high-interactivity
    batchingConfig: {8k: {batch_sizes: [2, 4]}, 16k: {batch_sizes: [1], is_default: true}}
  - model: meta-llama-3-2-1b-instruct:llama-3p2-1b:1
    modelSettings: {routable: false, swappable: false}
    batchingConfig: {4096: {batch_sizes: [2]}}
  specDecodingPairs:
  - {draft: meta-llama-3-2-1b-instruct, target: meta-llama-3-3-70b-instruct}
"""
TIER = "batchingConfig: {512: {batch_sizes: [1]}}"
TEMPLATE = """
apiVersion: sambanova.ai/v1alpha1
kind: BundleTemplate
metadata: {name: bt-demo}
spec:
  usePefCRs: true
  models:
    Meta-Llama-3.1-8B-Instruct:
      experts:
        4k:
          configs:
          - {pef: COE_Meta-Llama-3-1-8B-Instruct_32k_bs2_ss4096:1}
          - {pef: other, batch_size: 8}
    DeepSeek-V3-0324:
      experts:
        8k:
          configs:
          - pef: deepseek-ss8192-bs1-sd9:3
            spec_decoding: {draft_model: Meta-Llama-3.1-8B-Instruct}
"""
BUNDLE = """
---
apiVersion: sambanova.ai/v1alpha1
kind: Bundle
metadata: {name: b-demo}
spec:
  template: bt-demo
  models:
    Meta-Llama-3.1-8B-Instruct: {checkpoint: A, template: Meta-Llama-3.1-8B-Instruct}
    Tuned-8B: {checkpoint: B, template: Meta-Llama-3.1-8B-Instruct}
    DeepSeek-V3-0324: {checkpoint: C}
"""


def read(tmp_path: Path, text: str, target: str | None = "sn40l-16") -> BundleSpec:
    (tmp_path / "bundle.yaml").write_text(text)
    return read_bundle_file(tmp_path / "bundle.yaml", target=target)


def shapes(spec: BundleSpec, model: str) -> list[tuple[int, int]]:
    return [(each.sequence, each.batch) for each in spec.models[model].configurations]


def test_a_model_bundle_is_read(tmp_path: Path) -> None:
    spec = read(tmp_path, MODEL_BUNDLE)
    assert (spec.bundle, spec.target) == ("mb-demo", "sn40l-16")
    large, small = spec.models["meta-llama-3-3-70b-instruct"], spec.models["meta-llama-3-2-1b-instruct"]
    assert (large.source, large.pin, large.routable) == ("llama-3.3-70b", None, True)
    assert (small.source, small.pin, small.routable) == ("llama-3.2-1b", "hbm", False)
    assert shapes(spec, "meta-llama-3-3-70b-instruct") == [(8192, 2), (8192, 4), (16384, 1)]
    assert [(pair.draft, pair.target) for pair in spec.speculative] == [
        ("meta-llama-3-2-1b-instruct", "meta-llama-3-3-70b-instruct")
    ]


def test_a_template_and_its_bundle_are_read(tmp_path: Path) -> None:
    spec = read(tmp_path, TEMPLATE + BUNDLE)
    assert spec.bundle == "b-demo"
    assert {name: model.source for name, model in spec.models.items()} == {
        "Meta-Llama-3.1-8B-Instruct": "llama-3.1-8b",
        "Tuned-8B": "llama-3.1-8b",
        "DeepSeek-V3-0324": "deepseek-v3",
    }
    assert shapes(spec, "Tuned-8B") == [(4096, 2), (4096, 8)]
    assert len(spec.speculative) == 1
    assert read(tmp_path, TEMPLATE).bundle == "bt-demo"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("Meta-Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("llama-3p1-8b", "llama-3.1-8b"),
        ("DeepSeek-R1-0528", "deepseek-r1"),
        ("Qwen2.5-72B-Instruct", "qwen2.5-72b"),
        ("Qwen3-32B", "qwen3-32b"),
        ("Llama-2-7b-chat-hf", "llama-2-7b"),
        ("Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("gpt-oss-120b", "gpt-oss-120b"),
        ("all-MiniLM-L6-v2", "minilm-l6"),
    ],
)
def test_names_are_found_in_the_zoo(tmp_path: Path, name: str, source: str) -> None:
    text = MODEL_BUNDLE[: MODEL_BUNDLE.index("  modelConfigs")] + f"  modelConfigs: [{{model: '{name}:1', {TIER}}}]\n"
    (model,) = read(tmp_path, text).models.values()
    assert model.source == source


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "meta-llama-3-3-70b-instruct:2",
            "E5-Mistral-7B:1",
            "'E5-Mistral-7B' is not in the zoo; .*llama-3.3",
        ),
        ("batch_sizes: [2, 4]", "batch_sizes: [two]", r"modelConfigs\[0\].*.8k.batch_sizes: 'two' is no batch size"),
        ("batch_sizes: [2, 4]", "sizes: [2]", r"batchingConfig.8k has no `batch_sizes`"),
        ("16k:", "long:", "'long' is no context length"),
        ("swappable: false", "swappable: perhaps", "swappable is neither true nor false"),
        ("draft: meta-llama-3-2-1b-instruct", "draft: nobody", "names 'nobody', the bundle's models are"),
        ("kind: ModelBundle", "kind: Pef", "no ModelBundle and no BundleTemplate; its kinds: Pef"),
        ("metadata: {name: mb-demo}", "metadata: {}", "metadata has no `name`"),
    ],
    ids=["model", "batch", "no batches", "length", "truth", "pair", "kind", "name"],
)
def test_what_is_used_is_checked(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read(tmp_path, MODEL_BUNDLE.replace(old, new))


def test_a_target_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"names no target; give one, e\.g\. --target sn40l-16"):
        read(tmp_path, MODEL_BUNDLE, target=None)


def test_a_pef_without_a_batch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no `batch_size`, and its `pef` 'x:1' says no bsN"):
        read(tmp_path, TEMPLATE.replace("COE_Meta-Llama-3-1-8B-Instruct_32k_bs2_ss4096:1", "'x:1'"))
