"""Bidirectional multi-head attention over the patches of one tile: a file and a row of `KERNELS` for each kernel."""

from multipatch_jax.nn.attention.kernels import KERNELS, attention, rows_suit_cublas

__all__ = ["KERNELS", "attention", "rows_suit_cublas"]
