"""`plait explain` and `plait inspect` of a bundle of stored weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_tiny_llama

from plait.compiler import products
from plait.compiler.bundle.build import build_bundle
from plait.compiler.bundle.spec import BundleSpec


@pytest.fixture(scope="module")
def stored_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in two stored forms, their small products timed too."""
    directory = tmp_path_factory.mktemp("stored")
    write_tiny_llama(directory / "llama")
    sizes = {"source": "llama", "sequence": 64, "batch": 1, "kv_tokens": 64, "dtype": "bf16"}
    models = {form: {**sizes, "weights": form} for form in ("int8", "q4_0")}
    spec = BundleSpec.model_validate({"bundle": "stored", "target": "cpu", "models": models})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_MIN_VALUES", 1)
        return build_bundle(spec, directory / "stored.plait", base=directory).path


def test_explain_tells_the_forms_and_what_stored_weights_cost(plait: Callable, stored_bundle: Path) -> None:
    told = {model["model"]: model for model in plait("explain", stored_bundle, "--json").data}
    assert 0 < told["int8"]["accuracy"]["kl_divergence"] < told["q4_0"]["accuracy"]["kl_divergence"] < 1
    assert told["int8"]["accuracy"]["same_token"] > 0.8
    integers = [product for product in told["int8"]["products"] if product["dtype"] == "int8"]
    assert {(p["out_size"], p["in_size"]) for p in integers} == {(128, 64), (64, 64), (256, 64), (64, 128)}
    for product in integers:
        assert product["seconds"][str(product["slices"])] == min(product["seconds"].values())
    text = plait("explain", stored_bundle, "int8", "--all").out
    assert "int8: weights are stored as int8; against dense ones" in text
    assert text.count("*") >= len(told["int8"]["products"])
    assert "diverges by" in plait("inspect", stored_bundle).out


def test_explain_of_a_model_that_is_not_there_names_those_that_are(plait: Callable, stored_bundle: Path) -> None:
    assert plait("explain", stored_bundle, "other").complaint().endswith("has no model 'other'; it has int8, q4_0\n")
