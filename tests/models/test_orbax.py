"""Orbax directories: written, opened again, restored in shards, and read by orbax alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny import write_tiny_llama

from plait.errors import CheckpointError, ConfigurationError
from plait.models.checkpoint import Checkpoint, open_checkpoint
from plait.models.checkpoint.orbax import restore_parameters, write_orbax


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_tiny_llama(tmp_path_factory.mktemp("orbax") / "llama"))


@pytest.fixture
def directory(original: Checkpoint, tmp_path: Path) -> Path:
    write_orbax(tmp_path / "model", original)
    return tmp_path / "model"


def test_what_is_written_opens_as_the_same_model(original: Checkpoint, directory: Path) -> None:
    opened = open_checkpoint(directory)
    assert opened.config == original.config
    assert (opened.tokenizer_json, opened.chat_template) == (original.tokenizer_json, original.chat_template)
    assert (opened.max_sequence, opened.eos_token_ids) == (original.max_sequence, original.eos_token_ids)
    assert opened.tensor_names == original.tensor_names
    for name in original.tensor_names:
        np.testing.assert_array_equal(opened.read(name), original.read(name))


def test_parameters_are_restored_in_shards(original: Checkpoint, directory: Path) -> None:
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    shardings = {
        name: NamedSharding(mesh, PartitionSpec("model" if name.endswith("up.weight") else None))
        for name in original.tensor_names
    }
    restored = restore_parameters(directory, shardings=shardings, dtype=jnp.bfloat16)
    assert set(restored) == set(original.tensor_names)
    for name, array in restored.items():
        assert array.sharding.is_equivalent_to(shardings[name], array.ndim)
        np.testing.assert_array_equal(np.asarray(array), original.read(name).astype(jnp.bfloat16))
    up = restored["layers.0.mlp.up.weight"]
    assert {shard.data.shape for shard in up.addressable_shards} == {(up.shape[0] // 4, up.shape[1])}


def test_trained_parameters_are_written_from_where_they_are(original: Checkpoint, tmp_path: Path) -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    trained = {name: jax.device_put(original.read(name) + 1, replicated) for name in original.tensor_names}
    write_orbax(tmp_path / "trained", original, parameters=trained)
    opened = open_checkpoint(tmp_path / "trained")
    np.testing.assert_array_equal(opened.read("norm.weight"), original.read("norm.weight") + 1)


def test_orbax_alone_reads_the_tree(original: Checkpoint, directory: Path) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(directory / "params")
    np.testing.assert_array_equal(
        tree["layers"]["1"]["mlp"]["down"]["weight"], original.read("layers.1.mlp.down.weight")
    )


def test_the_type_of_the_weights_can_be_chosen(original: Checkpoint, tmp_path: Path) -> None:
    write_orbax(tmp_path / "half", original, dtype="bfloat16")
    assert {array.dtype for array in restore_parameters(tmp_path / "half").values()} == {jnp.dtype(jnp.bfloat16)}


def test_nothing_is_overwritten(original: Checkpoint, directory: Path) -> None:
    with pytest.raises(ConfigurationError, match="exists; remove it or choose another"):
        write_orbax(directory, original)


def test_parameters_of_another_model_are_refused(original: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is missing or unknown"):
        write_orbax(tmp_path / "odd", original, parameters={"norm.weight": np.ones(3)})
    assert list(tmp_path.iterdir()) == []


def test_a_sharding_that_does_not_divide_is_refused(directory: Path) -> None:
    mesh = jax.make_mesh((3,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ConfigurationError, match=r"parameter '\S+weight': .*evenly divide"):
        restore_parameters(directory, shardings=NamedSharding(mesh, PartitionSpec("model")))
    with pytest.raises(ConfigurationError, match="has no sharding"):
        restore_parameters(directory, shardings={})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: shutil.rmtree(root / "params"),
        lambda root: (root / "params" / "_METADATA").write_text("{"),
        lambda root: (root / "tokenizer.json").unlink(),
        lambda root: cut(root / "model.json"),
        lambda root: (root / "model.json").write_text(json.dumps({"architecture": {"family": "decoder"}})),
    ],
    ids=["no params", "bad metadata", "no tokenizer", "cut description", "empty description"],
)
def test_a_damaged_directory_is_refused_in_one_line(directory: Path, damage) -> None:
    damage(directory)
    with pytest.raises(CheckpointError, match=str(directory)) as caught:
        open_checkpoint(directory)
    assert "\n" not in str(caught.value)


def test_convert_writes_a_directory_that_compiles(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "llama")
    plait = [sys.executable, "-c", "from plait.cli.main import run; run()"]
    command = [*plait, "convert", str(source), "-o", str(tmp_path / "out"), "--dtype", "bf16", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["tensors"] == len(open_checkpoint(source).tensor_names)
    compiled = [*plait, "compile", str(tmp_path / "out"), "--phase", "decode", "--json"]
    plan = subprocess.run(compiled, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(plan.stdout)["configuration"]["phase"] == "decode"
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 2
    assert again.stderr.strip().splitlines() == [
        f"plait: {tmp_path / 'out'} exists; remove it or choose another directory"
    ]
