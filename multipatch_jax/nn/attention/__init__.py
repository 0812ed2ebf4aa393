"""Bidirectional multi-head attention over the patches of one tile: a file a kernel, and the choice among them."""

from multipatch_jax.nn.attention.kernels import KERNELS, attention, choose_kernel

__all__ = ["KERNELS", "attention", "choose_kernel"]
