"""Our compiled encoder for CPUs: all layers of one tile, in float32, as one custom call of XLA.

The C++ is in `native/`. setup.py builds it where it finds a compiler, once for each instruction set. Why it is fast:

* Matrix products are blocked for the caches. (The blocks also make their sums as exact as the reference's.)
* Bias, GELU and residual are applied to a small block of a product while it is in the L1 cache.
* Attention scores never leave the L1 cache.
* A parameter is passed as one array over all layers, and no layer's part of it is copied.
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

# Best first. "baseline" uses what the compiler assumes without flags: SSE2 on x86-64, NEON on 64-bit ARM.
BUILDS = ("avx512", "avx2", "baseline")
# Parameters of a layer, in the order of the custom call's operands.
OF_LAYER = (
    "layer_norm1/scale layer_norm1/bias "
    "self_attn/q_proj/kernel self_attn/q_proj/bias self_attn/k_proj/kernel self_attn/k_proj/bias "
    "self_attn/v_proj/kernel self_attn/v_proj/bias self_attn/out_proj/kernel self_attn/out_proj/bias "
    "layer_norm2/scale layer_norm2/bias mlp/fc1/kernel mlp/fc1/bias mlp/fc2/kernel mlp/fc2/bias"
).split()


@functools.cache
def builds() -> tuple[str, ...]:
    """Return the names of the builds that are installed and that this CPU can run, best first.

    The first call registers them with XLA. A build that does not load is left out, with a warning.
    """
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
        except Exception as error:  # e.g. built for another jaxlib or system; XLA's own code runs instead
            warnings.warn(
                f"The compiled encoder {name} is left out ({error}); install multipatch_jax again.", stacklevel=2
            )
            continue
        found.append(name)
    return tuple(found)


def best_build() -> str | None:
    """Return the name of the build that attention "native" runs, or None if there is none worth running.

    On x86 "baseline" is not worth running: XLA's own code is faster than a build for SSE2.
    """
    fast = [name for name in builds() if name != "baseline" or platform.machine() not in ("x86_64", "AMD64")]
    return fast[0] if fast else None


def _target(build: str) -> str:
    return f"multipatch_encoder_{build}"


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5))
def encoder(
    layers: Mapping[str, Any],
    x: Float[Array, "P C"],
    heads: int,
    epsilon: float,
    fallback: Callable[[Any, Array], Array],
    build: str | None = None,
) -> Float[Array, "P C"]:
    """Run all encoder layers over the patches of one tile, in float32; `jax.vmap` calls it for one tile after another.

    Args:
      layers: parameters of all layers, stacked along a first axis, under the names of `siglip.Encoder`. They are cast
        to the dtype of x.
      x: embeddings of the patches, float32.
      heads: number of attention heads.
      epsilon: the constant that the layer norms add to the variance.
      fallback: the same function in JAX, (layers, x) -> y. It replaces the compiled code where JAX differentiates this
        function.
      build: one of `builds()`; None is `best_build()`.
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
    # Only inputs with a tangent are differentiated, so that frozen parameters cost nothing.
    moved = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero)]

    def of_moved(*values):
        arrays = list(primals)
        for i, value in zip(moved, values, strict=True):
            arrays[i] = value
        return fallback(*tree.unflatten(arrays))

    return jax.jvp(of_moved, [primals[i] for i in moved], [tangents[i] for i in moved])
