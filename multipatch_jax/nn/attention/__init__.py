"""Bidirectional multi-head attention over the patches of one tile: one file for each kernel, and the choice of one."""

from multipatch_jax.nn.attention.kernels import KERNELS, attention, choose_kernel

__all__ = ["KERNELS", "attention", "choose_kernel"]
