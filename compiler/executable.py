"""Executables: exported programs compiled for this machine's devices, with what XLA says they need.

The bundle compiles each program once when it is made, to record its bytes and its time; the runtime compiles it
again from the same bytes, out of the persistent compilation cache. A model's stages run one after the other, each on
devices of its own: what one hands on is copied to the next one's devices.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from jax import export
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Array

from ..errors import ConfigurationError, ExecutionError
from ..models.cache import cache_directory
from .kernels import register_few_rows_product, register_paged_attention
from .mesh import Mesh
from .program import Program

__all__ = [
    "Executable",
    "StageExecutable",
    "compile_program",
    "device_sharding",
    "mesh_sharding",
    "notes_of_programs",
    "provide_devices",
    "use_compilation_cache",
]

_ONE_DEVICE = Mesh((), ())
_NUM_ARGUMENTS = 4  # of `lower.Program`
_COUNT_FLAG = "xla_force_host_platform_device_count"


@dataclass(frozen=True)
class StageExecutable:
    """A compiled program of one stage."""

    compiled: jax.stages.Compiled
    handed: tuple[Sharding, ...]  # where the values must be that earlier stages hand it
    takes: tuple[int, ...]  # their ids
    gives: tuple[int, ...]  # ids of the values that it hands on
    num_pools: int  # of its layers
    temporary_bytes: int  # on each of its devices: XLA's buffer assignment, and what it is handed
    output_bytes: int  # results that are not donated arguments


@dataclass(frozen=True)
class Executable:
    """The compiled stages of one configuration of a model."""

    stages: tuple[StageExecutable, ...]

    def __call__(
        self, weights: Sequence[Mapping[str, Array]], inputs: Mapping[str, object], pools: Sequence[Array]
    ) -> tuple[Array, list[Array]]:
        """Runs all stages and returns the result and the KV pools.

        Args:
            weights: Of each stage, on its devices.
            inputs: By name, on no device in particular.
            pools: Of each layer, on the devices of its stage; they are donated and gone afterwards.
        """
        handed: dict[int, Array] = {}
        left, extended = list(pools), []
        for stage, own in zip(self.stages, weights, strict=True):
            mine, left = left[: stage.num_pools], left[stage.num_pools :]
            taken = [jax.device_put(handed[v], where) for v, where in zip(stage.takes, stage.handed, strict=True)]
            given, updated = stage.compiled(own, inputs, mine, taken)
            handed.update(zip(stage.gives, given, strict=True))
            extended += updated
        return handed[self.stages[-1].gives[-1]], extended


def provide_devices(num_devices: int) -> None:
    """Makes sure that this process has so many devices: on the CPU it makes virtual ones if JAX has not started yet.

    Raises:
        ConfigurationError: if there are fewer and no more can be made.
    """
    if num_devices > 1 and _COUNT_FLAG not in os.environ.get("XLA_FLAGS", ""):
        try:
            configured = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_num_cpu_devices", max(num_devices, configured))
        except RuntimeError:
            pass  # JAX has started: there are as many as there are
    if (found := len(jax.devices())) < num_devices:
        raise ConfigurationError(
            f"{num_devices} devices are needed, this process has {found} ({jax.default_backend()}); on the CPU set "
            f"JAX_NUM_CPU_DEVICES={num_devices} before JAX starts, or bundle the models for a smaller mesh"
        )


def use_compilation_cache() -> None:
    """Keeps compiled programs in plait's cache directory, unless the user has chosen one for JAX."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def notes_of_programs() -> Path:
    """Returns the directory in plait's cache for what compiling programs has shown of them."""
    return cache_directory() / "programs"


def device_sharding(memory_kind: str | None, device: int = 0) -> SingleDeviceSharding:
    """Returns the sharding of arrays on one device, by default the first, in a memory of this kind."""
    return SingleDeviceSharding(jax.devices()[device], memory_kind=memory_kind)


def mesh_sharding(mesh: Mesh, spec: PartitionSpec, memory_kind: str | None, first_device: int) -> Sharding:
    """Returns a sharding over the devices of a mesh from a first one on; over one device its own."""
    if mesh.num_devices == 1:
        return device_sharding(memory_kind, first_device)
    return NamedSharding(mesh.devices(first_device), spec, memory_kind=memory_kind)


def compile_program(programs: Sequence[Program], *, num_blocks: int = 0, mesh: Mesh = _ONE_DEVICE) -> Executable:
    """Compiles the programs of all stages of a configuration, each for devices of its own.

    Args:
        programs: Of each stage.
        num_blocks: Value of the symbolic number of KV blocks, for programs that have one.
        mesh: Of one stage.

    Raises:
        ExecutionError: if one was exported for other platforms or another number of devices, or XLA refuses it.
    """
    size = mesh.num_devices
    return Executable(tuple(_compile(program, num_blocks, mesh, i * size) for i, program in enumerate(programs)))


def _compile(program: Program, num_blocks: int, mesh: Mesh, first_device: int) -> StageExecutable:
    exported = program.exported
    platform = export.default_export_platform()
    if platform not in exported.platforms:
        raise ExecutionError(f"program was exported for {', '.join(exported.platforms)}, this machine runs {platform}")
    if exported.nr_devices != mesh.num_devices:
        raise ExecutionError(
            f"program was exported for {exported.nr_devices} devices, its mesh ({mesh}) has {mesh.num_devices}"
        )
    if mesh.num_devices > 1 and len(exported.platforms) > 1:
        raise ExecutionError("a program for several devices was exported for several platforms; rebuild the bundle")
    arguments = _abstract_arguments(exported, num_blocks, mesh, first_device)
    if platform == "cpu":
        register_paged_attention()
        register_few_rows_product()
    try:
        compiled = jax.jit(exported.call, donate_argnums=program.donated).lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        raise ExecutionError(f"XLA cannot compile the program: {str(error).splitlines()[0]}") from None
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend has no memory analysis"
    _, _, pools, handed = arguments
    return StageExecutable(
        compiled,
        tuple(aval.sharding for aval in handed),
        program.takes,
        program.gives,
        len(pools),
        temporary_bytes=memory.temp_size_in_bytes + _device_bytes(handed),
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    )


def _abstract_arguments(exported: export.Exported, num_blocks: int, mesh: Mesh, first_device: int):
    """Returns the arguments of a stage's program, with sizes and shardings, without values."""
    is_symbolic = any(not isinstance(size, int) for aval in exported.in_avals for size in aval.shape)
    if mesh.num_devices > 1 and is_symbolic:
        raise ExecutionError("a program for several devices has symbolic sizes, which XLA cannot compile; rebuild it")
    avals = [
        jax.ShapeDtypeStruct(_sizes(aval.shape, num_blocks), aval.dtype, sharding=sharding)
        for aval, sharding in zip(exported.in_avals, _argument_shardings(exported, mesh, first_device), strict=True)
    ]
    arguments, _ = jax.tree.unflatten(exported.in_tree, avals)
    if len(arguments) != _NUM_ARGUMENTS:
        raise ExecutionError(f"program takes {len(arguments)} arguments, a stage of a model takes {_NUM_ARGUMENTS}")
    return arguments


def _argument_shardings(exported: export.Exported, mesh: Mesh, first_device: int) -> Sequence[Sharding]:
    if mesh.num_devices == 1:
        return [device_sharding(None, first_device)] * len(exported.in_avals)
    devices = mesh.devices(first_device)
    anywhere = NamedSharding(devices, PartitionSpec())  # of arguments that the program does not look at
    return [sharding or anywhere for sharding in exported.in_shardings_jax(devices)]


def _sizes(shape: Sequence[object], num_blocks: int) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else num_blocks for size in shape)


def _device_bytes(avals: Iterable[jax.ShapeDtypeStruct]) -> int:
    shapes = ((aval.sharding.shard_shape(aval.shape), aval.dtype) for aval in avals)
    return sum(jax.ShapeDtypeStruct(shape, dtype).size * dtype.itemsize for shape, dtype in shapes)
