"""Kernels of our own for what XLA's CPU backend does badly: compiled by numba, called by XLA.

`paged_attention_call` is what a program calls, and `paged_attention` what it computes; `vectors` and `memory` are what
that is written in, `call_frame` and `threads` how XLA calls it and lends it threads.
"""

from .paged_attention_call import (
    PAGED_ATTENTION,
    paged_attention,
    register_paged_attention,
    supports_paged_attention,
)

__all__ = ["PAGED_ATTENTION", "paged_attention", "register_paged_attention", "supports_paged_attention"]
