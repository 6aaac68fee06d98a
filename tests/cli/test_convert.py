from __future__ import annotations

import numpy as np
import pytest
from tiny import write_tiny_llama

from plait.models.checkpoint import open_checkpoint


def test_a_converted_model_opens_with_the_same_weights_and_template(plait, tmp_path) -> None:
    source, copy = write_tiny_llama(tmp_path / "llama"), tmp_path / "copy"
    outcome = plait("convert", source, "-o", copy, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert {key: outcome.data[key] for key in ("path", "dtype")} == {"path": str(copy), "dtype": "f32"}
    before, after = open_checkpoint(source), open_checkpoint(copy)
    assert outcome.data["tensors"] == len(after.tensor_names) == len(before.tensor_names)
    assert (after.config, after.chat_template) == (before.config, before.chat_template)
    for name in before.tensor_names:
        np.testing.assert_array_equal(after.read(name), before.read(name))


def test_a_directory_that_is_there_stays_as_it_is(plait, tmp_path) -> None:
    source = write_tiny_llama(tmp_path / "llama")
    assert "exists; remove it or choose another directory" in plait("convert", source, "-o", source).complaint()
    assert (source / "config.json").is_file()


@pytest.mark.parametrize(
    ("source", "says"),
    [("nosuch", "no model 'nosuch'"), ("hf:nosuch", "names no model on the Hub; write hf:ORG/NAME")],
    ids=["name", "hub"],
)
def test_what_is_no_model_is_not_converted(plait, tmp_path, source: str, says: str) -> None:
    assert says in plait("convert", source, "-o", tmp_path / "copy").complaint()
    assert not (tmp_path / "copy").exists()
