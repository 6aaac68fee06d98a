"""Trace any JAX function into a graph, and count what it computes: exactly, loops included.

python examples/02_trace_any_function.py
"""

import jax
import jax.numpy as jnp

import plait


def rolled(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Applies each of a stack of square weights in turn."""
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0]


x = jax.ShapeDtypeStruct((8, 256), jnp.float32)
weights = jax.ShapeDtypeStruct((12, 256, 256), jnp.float32)

graph = plait.trace(rolled, x, weights).graph
print(graph.as_text())

xla = jax.jit(rolled).lower(x, weights).compile().cost_analysis()
assert xla is not None
products = 12 * 2 * 8 * 256 * 256
print(f"products by hand {products:,}; plait counts {graph.flops:,} in all; XLA counts {xla['flops']:,.0f}")
