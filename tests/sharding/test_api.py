"""`plait.partition` as users call it: meshes, pytrees, modules, what is wrong with a call."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from plain_functions import TARGET, layer, layer_parameters

import plait
from plait.errors import ConfigurationError, DoesNotFitError

README = Path(__file__).parents[2] / "README.md"
MESH = {"data": 2, "tensor": 2}


def mlp(params, x):
    return jax.nn.gelu(x @ params["up"]) @ params["down"]


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 0.3, jnp.float32)


PARAMS = {"up": drawn(64, 256), "down": drawn(256, 64)}
X = drawn(8, 64, seed=1)
planned = functools.partial(plait.partition, target=TARGET, time_limit_seconds=10)


def assert_same(results, expected, limit=1e-5):
    assert jax.tree.structure(results) == jax.tree.structure(expected)
    for have, want in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        have, want = np.asarray(have, np.float64), np.asarray(want, np.float64)
        np.testing.assert_allclose(have, want, rtol=0, atol=limit * max(np.max(np.abs(want), initial=0), 1e-6))


def layouts(plan):
    return [str(layout) for layout in plan.partition.sharding.inputs]


def devices(first, *sizes):
    return np.array(jax.devices()[first : first + int(np.prod(sizes))]).reshape(sizes)


MESHES = {
    "number": (4, "x=4"),
    "one device": (1, "one device"),
    "sizes": ((2, 2), "x=2 x y=2"),
    "text": ("2x2", "x=2 x y=2"),
    "named": (MESH, "data=2 x tensor=2"),
    "axis of size 1": ({"data": 1, "tensor": 2}, "tensor=2"),
    "abstract": (AbstractMesh((2, 2), ("a", "b")), "a=2 x b=2"),
}


@pytest.mark.parametrize(("mesh", "expected"), MESHES.values(), ids=MESHES)
def test_a_mesh_can_be_said_in_many_ways(mesh, expected):
    plan = planned(mlp, PARAMS, X, mesh=mesh)
    assert str(plan.mesh) == expected
    assert_same(plan.jit()(PARAMS, X), mlp(PARAMS, X))


def test_the_devices_of_a_jax_mesh_are_used():
    mesh = jax.sharding.Mesh(devices(4, 2, 1, 2), ("a", "one", "b"))
    plan = planned(mlp, PARAMS, X, mesh=mesh)
    made = plan.jit()(PARAMS, X)
    assert made.sharding.device_set == set(jax.devices()[4:8])
    assert_same(made, mlp(PARAMS, X))


def test_without_a_mesh_all_devices_are_used():
    assert planned(mlp, PARAMS, X).mesh.num_devices == TARGET.num_devices


def test_shardings_are_like_the_arguments_and_fit_a_jit_of_ones_own():
    plan = planned(mlp, PARAMS, X, mesh=MESH, pins={"params.up": "-,tensor"})
    assert jax.tree.structure(plan.shardings) == jax.tree.structure((PARAMS, X))
    assert plan.shardings[0]["up"].spec == PartitionSpec(None, "tensor")
    assert_same(jax.jit(mlp, in_shardings=plan.shardings)(PARAMS, X), mlp(PARAMS, X))


def test_arguments_may_lie_anywhere():
    run = planned(mlp, PARAMS, X, mesh=MESH).jit()
    on_one_device = jax.device_put((PARAMS, X), jax.devices()[3])
    assert_same(run(*on_one_device), mlp(PARAMS, X))
    assert_same(run(PARAMS, np.asarray(X)), mlp(PARAMS, X))


def test_the_function_can_be_used_in_others():
    arguments = jax.tree.map(lambda a: drawn(*a.shape), layer_parameters()), drawn(4, 8, 16, seed=2)
    run = planned(layer, *arguments, mesh=(2, 2)).jit()
    expected = jax.grad(lambda params: jnp.sum(layer(params, arguments[1]) ** 2))(arguments[0])
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(run(params, arguments[1]) ** 2)))(arguments[0])
    assert_same(gradient, expected)


def test_any_pytree_goes_in_and_comes_out():
    def function(a, b, scale, empty):
        return {"o": (a["x"] * scale, None, a["x"]), "s": [b[0] + 1] * 2, "z": empty, "i": jnp.argmax(a["x"], -1)}, 2.0

    arguments = ({"x": X, "n": None}, (jnp.arange(8),), 3.0, jnp.zeros((0, 4)))
    plan = planned(function, *arguments, mesh=(2, 2))
    assert_same(plan.jit()(*arguments), function(*arguments))
    other = ({"x": -X, "n": None}, (jnp.arange(8),), 2.0, jnp.zeros((0, 4)))
    assert_same(plan.jit()(*other), function(*other))
    assert plan.verify(*arguments).agrees


def test_static_arguments_are_bound_and_random_keys_passed():
    def function(key, x, times, activation):
        for _ in range(times):
            x = activation(x)
        return x + jax.random.normal(key, x.shape)

    bound = functools.partial(function, times=2, activation=jnp.tanh)
    key = jax.random.key(3)
    plan = planned(bound, key, X, mesh=4)
    assert plan.name == "function"
    assert_same(plan.jit()(key, X), bound(key, X))


class Block(nnx.Module):
    def __init__(self, rngs, *, deterministic=True):
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.up = nnx.Linear(16, 64, rngs=rngs)
        self.down = nnx.Linear(64, 16, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=deterministic, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.drop(self.down(nnx.gelu(self.up(x))))

    def twice(self, x):
        return self(self(x))


TOKENS = drawn(4, 8, 16, seed=3)


def test_a_module_is_the_first_argument():
    block = Block(nnx.Rngs(0))
    plan = planned(nnx.eval_shape(lambda: Block(nnx.Rngs(0))), TOKENS, mesh=MESH, pins={"up.kernel": (None, "tensor")})
    assert plan.name == "Block"
    assert "up.kernel" in str(plan)
    assert_same(plan.jit()(block, TOKENS), block(TOKENS))
    assert_same(jax.jit(lambda model, x: model(x), in_shardings=plan.shardings)(block, TOKENS), block(TOKENS))
    assert plan.verify().agrees
    assert_same(planned(block.twice, TOKENS, mesh=2).jit()(block, TOKENS), block.twice(TOKENS))


def test_what_a_call_changes_of_a_module_is_written_back():
    one, other = (Block(nnx.Rngs(0), deterministic=False) for _ in range(2))
    run = planned(one, TOKENS, mesh=(2, 2)).jit()
    assert_same([run(one, TOKENS), run(one, TOKENS)], [other(TOKENS), other(TOKENS)])
    assert one.drop.rngs is not None
    assert one.drop.rngs.count[...] == 2


def test_a_training_step_over_a_module_and_its_optimizer():
    def step(model, optimizer, x, y):
        loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    models = [Block(nnx.Rngs(0)), Block(nnx.Rngs(0))]
    optimizers = [nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param) for model in models]
    run = planned(step, models[0], optimizers[0], TOKENS, TOKENS, mesh=(2, 2)).jit()
    for _ in range(2):
        loss = run(models[0], optimizers[0], TOKENS, TOKENS)
        assert_same(loss, step(models[1], optimizers[1], TOKENS, TOKENS))
    assert_same(models[0].up.kernel[...], models[1].up.kernel[...])


def test_batch_statistics_are_written_back():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv, self.norm = nnx.Conv(4, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs)

        def __call__(self, x):
            return nnx.avg_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))

    one, other, images = Net(nnx.Rngs(0)), Net(nnx.Rngs(0)), drawn(8, 8, 8, 4)
    assert_same(planned(one, images, mesh=4).jit()(one, images), other(images))
    assert_same(one.norm.mean[...], other.norm.mean[...])


PINS = {
    "text": ("-,tensor", "[-, tensor]"),
    "partition spec": (PartitionSpec(None, "tensor"), "[-, tensor]"),
    "two axes": ((None, ("data", "tensor")), "[-, data*tensor]"),
    "whole": ("whole", "[-, -]"),
}


@pytest.mark.parametrize(("axes", "expected"), PINS.values(), ids=PINS)
def test_a_pin_is_kept(axes, expected):
    assert layouts(planned(mlp, PARAMS, X, mesh=MESH, pins={"params.up": axes}))[1] == expected


def test_axes_of_size_1_are_left_out_of_pins():
    mesh = {"data": 1, "tensor": 2}
    assert layouts(planned(mlp, PARAMS, X, mesh=mesh, pins={"params.up": "data,tensor"}))[1] == "[-, tensor]"


def test_a_budget_divides_what_would_be_whole():
    free = planned(mlp, PARAMS, X, mesh=4)
    tight = planned(mlp, PARAMS, X, mesh=4, budget=free.partition.device_bytes // 2)
    assert tight.partition.device_bytes <= free.partition.device_bytes // 2
    assert tight.cost >= free.cost
    assert_same(tight.jit()(PARAMS, X), mlp(PARAMS, X))


def test_what_does_not_fit_says_what_is_short_and_what_to_do():
    with pytest.raises(DoesNotFitError, match=r"the budget is 1\.0 KiB .*largest: (up|down) .*mesh=\.\.\.") as caught:
        planned(mlp, PARAMS, X, mesh=4, budget="1KiB", argument_kinds=("parameter", "input"))
    assert "smaller type" in str(caught.value)
    assert "--" not in str(caught.value)
    assert caught.value.shortfall_bytes == caught.value.demand_bytes - 1024


def test_a_plan_says_what_it_is(tmp_path):
    plan = planned(mlp, PARAMS, X, mesh=MESH, pins={"up": "tensor,-"}, argument_kinds=("parameter", "input"))
    assert 0 <= plan.lower_bound <= plan.cost
    assert (plan.status, plan.gap) == ("optimal", 0.0)
    assert plan.collectives
    text = str(plan)
    assert "mlp on data=2 x tensor=2" in text
    assert "[tensor, -]" in text
    assert "test_api.py" in text  # the line that asks for a collective
    data = json.loads(plan.to_json())
    assert [about["name"] for about in data["inputs"]] == ["down", "up", "x"]
    assert len(data["collectives"]) == len(plan.collectives)
    assert {path.name for path in plan.save(tmp_path)} == {"plan.json", "plan.txt", "graph.json", "graph.txt"}
    assert "up: " in str(plan.explain("up"))


def test_what_cannot_be_divided_is_noted():
    table = np.ones((1024, 512), np.float32)
    plan = planned(lambda key, x: jax.random.normal(key, (64,)) + (x @ table).sum(), jax.random.key(0), jnp.ones(1024))
    assert any("random keys are whole" in note for note in plan.notes)
    assert any("closes over 2.0 MiB" in note for note in plan.notes)


WRONG_CALLS = {
    "too few": ((PARAMS,), r"planned for 2 arguments \(params, x\), 1 are given"),
    "shape": ((PARAMS, X[:4]), r"argument x of mlp is float32\[4,64\], it is planned for float32\[8,64\]"),
    "type": ((PARAMS, X.astype(jnp.int32)), r"argument x of mlp is int32\[8,64\]"),
    "tree": (({"up": PARAMS["up"]}, X), "another pytree than it is planned for: params is"),
    "text": ((PARAMS, "x"), "an argument is a str"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_a_wrong_call_is_refused_in_one_line(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        planned(mlp, PARAMS, X, mesh=2).jit()(*arguments)


WRONG_OPTIONS = {
    "no device": ({"mesh": 0}, "mesh 0 is none"),
    "float": ({"mesh": 2.5}, "mesh 2.5 is none"),
    "size 0": ({"mesh": {"data": 0}}, "have sizes of 1 and more"),
    "no axis": ({"mesh": {}}, "mesh {} is none"),
    "half a text": ({"mesh": "2x"}, "mesh '2x' is none"),
    "unknown axis": ({"mesh": MESH, "pins": {"params.up": "nope,-"}}, "axis 'nope' is none of the mesh"),
    "unknown name": ({"mesh": MESH, "pins": {"params.uq": "tensor,-"}}, "close: params.up"),
    "axes without names": ({"mesh": 4, "pins": {"params.up": "x,-"}}, "the mesh must have names"),
    "objective": ({"objective": "speed"}, "objective 'speed' is none; use latency, throughput, memory"),
    "budget": ({"budget": "lots"}, "'lots' is no size in bytes"),
    "time": ({"time_limit_seconds": 0}, "leaves no time"),
    "kinds": ({"argument_kinds": ("input",)}, "1 argument_kinds for 2 arguments"),
}


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_a_wrong_option_is_refused_in_one_line(options, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        plait.partition(mlp, PARAMS, X, **{"target": TARGET, **options})


def test_what_is_no_function_is_refused():
    with pytest.raises(ConfigurationError, match="a int is no function"):
        planned(3, X, mesh=2)  # pyright: ignore[reportArgumentType]


def test_variables_that_a_call_makes_are_refused():
    class Grows(nnx.Module):
        def __call__(self, x):
            self.seen = nnx.Variable(x)
            return x

    with pytest.raises(ConfigurationError, match=r"Grows adds or removes variables of a module \(seen\)"):
        planned(Grows(), X, mesh=2)


def test_a_mesh_larger_than_the_machine_is_planned_and_not_run():
    plan = planned(mlp, PARAMS, X, mesh=16)
    assert plan.mesh.num_devices == 16
    with pytest.raises(ConfigurationError, match="needs 16 devices and this process has 8; set JAX_NUM_CPU_DEVICES=16"):
        plan.jit()
    with pytest.raises(ConfigurationError, match="needs 16 devices"):
        _ = plan.shardings


def test_the_readmes_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (program,) = (block for block in blocks if "plait.partition(" in block)
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "mlp on data=2 x tensor=4 of target cpu" in done.stdout
