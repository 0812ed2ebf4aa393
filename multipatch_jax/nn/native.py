"""The encoder in compiled code for CPUs: all layers of one tile in one custom call of XLA.

The C++ is in `native/`; setup.py builds it where a compiler is found, once for every set of instructions. Its products
are blocked for the caches and their sums as exact as the reference's; bias, GELU and residual are done while a tile of
sums is in L1, scores of attention too, and no layer's parameters are copied.
"""

import ctypes
import functools
import importlib.util
import platform
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

BUILDS = ("avx512", "avx2", "baseline")  # best first; "baseline" is what the compiler gives without flags: SSE2, NEON
OF_LAYER = (
    "layer_norm1/scale layer_norm1/bias "
    "self_attn/q_proj/kernel self_attn/q_proj/bias self_attn/k_proj/kernel self_attn/k_proj/bias "
    "self_attn/v_proj/kernel self_attn/v_proj/bias self_attn/out_proj/kernel self_attn/out_proj/bias "
    "layer_norm2/scale layer_norm2/bias mlp/fc1/kernel mlp/fc1/bias mlp/fc2/kernel mlp/fc2/bias"
).split()  # in the order of the custom call's operands


@functools.cache
def builds() -> tuple[str, ...]:
    """The builds that are installed and run on this machine, best first; registered with XLA on the first call."""
    found = []
    for name in BUILDS:
        spec = importlib.util.find_spec(f"multipatch_jax.nn._encoder_{name}")
        if spec is None or spec.origin is None:
            continue
        try:
            library = ctypes.CDLL(spec.origin)
            if not library.MultipatchSupported():
                continue
            handler = jax.ffi.pycapsule(library.MultipatchEncoder)
            jax.ffi.register_ffi_target(_target(name), handler, platform="cpu")
        except Exception as error:  # built for another jaxlib or another system: XLA's own code does as well
            warnings.warn(
                f"The compiled encoder {name} is left out ({error}); install multipatch_jax again.", stacklevel=2
            )
            continue
        found.append(name)
    return tuple(found)


def best_build() -> str | None:
    """The build that "native" stands for. An x86 CPU without AVX2 has none: XLA's own code is faster than SSE2's."""
    fast = [name for name in builds() if name != "baseline" or platform.machine() not in ("x86_64", "AMD64")]
    return fast[0] if fast else None


def _target(build: str) -> str:
    return f"multipatch_encoder_{build}"


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5))
def encoder(
    layers: Mapping[str, Any],
    x: Float[Array, "P D"],
    heads: int,
    epsilon: float,
    fallback: Callable[[Any, Array], Array],
    build: str | None = None,
) -> Float[Array, "P D"]:
    """All layers over the patches of one tile, in float32.

    Args:
      layers: their parameters, stacked in front, as `vision.Encoder` names them. Other dtypes are cast, as there.
      heads, epsilon: of the attention, and of the layer norms.
      fallback: the same function in JAX, (layers, x) -> y, which is run in its place where it is differentiated.
      build: one of `builds()`; None is the best.
    """

    def operand(name: str) -> Array:
        array: Any = functools.reduce(lambda tree, key: tree[key], name.split("/"), layers)
        return array.astype(x.dtype)

    call = jax.ffi.ffi_call(
        _target(build or best_build() or "baseline"), jax.ShapeDtypeStruct(x.shape, x.dtype), vmap_method="sequential"
    )
    return call(x, *map(operand, OF_LAYER), heads=np.int64(heads), epsilon=np.float32(epsilon))


@functools.partial(encoder.defjvp, symbolic_zeros=True)
def _encoder_jvp(heads, epsilon, fallback, build, primals, tangents):
    primals, tree = jax.tree.flatten(primals)
    tangents = tree.flatten_up_to(tangents)
    moved = [
        i for i, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero)
    ]  # frozen ones cost nothing

    def of_moved(*values):
        arrays = list(primals)
        for i, value in zip(moved, values, strict=True):
            arrays[i] = value
        return fallback(*tree.unflatten(arrays))

    return jax.jvp(of_moved, [primals[i] for i in moved], [tangents[i] for i in moved])
