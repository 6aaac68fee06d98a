"""Kernels of our own for what XLA's CPU backend does badly: compiled by numba, called by XLA.

`paged_attention_call` and `few_rows_call` are what a program calls, `paged_attention` and `few_rows` what they compute;
`vectors` and `memory` are what that is written in, `call_frame` and `threads` how XLA calls it and lends it threads.
"""

from .few_rows_call import (
    FEW_ROWS_PRODUCT,
    few_rows_product,
    register_few_rows_product,
    supports_few_rows_product,
)
from .paged_attention_call import (
    PAGED_ATTENTION,
    paged_attention,
    register_paged_attention,
    supports_paged_attention,
)

__all__ = [
    "FEW_ROWS_PRODUCT",
    "PAGED_ATTENTION",
    "few_rows_product",
    "paged_attention",
    "register_few_rows_product",
    "register_paged_attention",
    "supports_few_rows_product",
    "supports_paged_attention",
]
