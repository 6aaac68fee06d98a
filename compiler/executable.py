"""Executables: exported programs compiled for this machine's device, with what XLA says they need.

The bundle compiles each program once when it is made, to record its bytes and its time; the runtime compiles it
again from the same bytes, out of the persistent compilation cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax import export
from jax.sharding import SingleDeviceSharding

from ..errors import ExecutionError
from ..models.registry import cache_directory

__all__ = ["Executable", "compile_exported", "device_sharding", "use_compilation_cache"]


@dataclass(frozen=True)
class Executable:
    """A compiled program."""

    compiled: jax.stages.Compiled
    temporary_bytes: int  # XLA's buffer assignment
    output_bytes: int  # results that are not donated arguments

    def __call__(self, *arguments):
        """Runs the program; donated arguments are gone afterwards."""
        return self.compiled(*arguments)


def use_compilation_cache() -> None:
    """Keeps compiled programs in plait's cache directory, unless the user has chosen one for JAX."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def device_sharding(memory_kind: str | None) -> SingleDeviceSharding:
    """Returns the sharding of arrays on the first device, in a memory of this kind."""
    return SingleDeviceSharding(jax.devices()[0], memory_kind=memory_kind)


def compile_exported(exported: export.Exported, donated: tuple[int, ...], *, num_blocks: int = 0) -> Executable:
    """Compiles an exported program for the first device.

    Args:
        exported: The program.
        donated: Positions of the arguments that it may overwrite; an exported program forgets them.
        num_blocks: Value of the symbolic number of KV blocks, for a program that has one.

    Raises:
        ExecutionError: if it was exported for other platforms, or XLA refuses it.
    """
    platform = jax.default_backend()
    if platform not in exported.platforms:
        raise ExecutionError(f"program was exported for {', '.join(exported.platforms)}, this machine runs {platform}")
    avals = [
        jax.ShapeDtypeStruct(tuple(size if isinstance(size, int) else num_blocks for size in aval.shape), aval.dtype)
        for aval in exported.in_avals
    ]
    arguments, _ = jax.tree.unflatten(exported.in_tree, avals)
    try:
        compiled = jax.jit(exported.call, donate_argnums=donated).lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        raise ExecutionError(f"XLA cannot compile the program: {str(error).splitlines()[0]}") from None
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend has no memory analysis"
    return Executable(
        compiled,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    )
