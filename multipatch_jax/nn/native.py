"""Our compiled encoder for CPUs: all layers of one tile, in float32 or bfloat16, as one custom call of XLA.

The C++ is in `native/`. setup.py builds it where it finds a compiler, once for each instruction set. Why it is fast:

* Matrix products are blocked for the caches. (The blocks also make their sums as exact as the reference's.)
* Bias, GELU and residual are applied to a small block of a product while it is in the L1 cache.
* Attention scores never leave the L1 cache.
* A parameter is passed as one array over all layers, and no layer's part of it is copied.
* In bfloat16, a CPU with AVX512_BF16 multiplies pairs of numbers, twice as many at a time. On others, the numbers of
  bfloat16 kernels become float32 where they are packed, and products are as fast and exact as those of float32.

Sums, norms, GELU, softmax and residual are float32 in any case.
"""

import ctypes
import functools
import importlib.util
import platform
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

# Best first. "baseline" uses what the compiler assumes without flags: SSE2 on x86-64, NEON on 64-bit ARM.
BUILDS = ("avx512_bf16", "avx512", "avx2", "baseline")
# (what, dtype of the kernels): the handler's symbol. "float32_bfloat16" is float32 with a cache of bfloat16.
SYMBOLS = {
    ("encoder", "float32"): "MultipatchEncoder",
    ("encoder", "bfloat16"): "MultipatchEncoderHalves",
    ("pack", "float32"): "MultipatchPack",
    ("pack", "bfloat16"): "MultipatchPackHalves",
    ("step", "float32"): "MultipatchStep",
    ("step", "float32_bfloat16"): "MultipatchStepHalfCache",
    ("step", "bfloat16"): "MultipatchStepHalves",
    ("prefill", "float32"): "MultipatchPrefill",
    ("prefill", "float32_bfloat16"): "MultipatchPrefillHalfCache",
    ("prefill", "bfloat16"): "MultipatchPrefillHalves",
}
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
        try:
            library = _library(name)
            if library is None or not library.MultipatchSupported():
                continue
            for (what, dtype), symbol in SYMBOLS.items():
                handler = jax.ffi.pycapsule(getattr(library, symbol))
                jax.ffi.register_ffi_target(target(name, what, dtype), handler, platform="cpu")
        except Exception as error:  # e.g. built for another jaxlib or system; XLA's own code runs instead
            warnings.warn(
                f"The compiled encoder {name} is left out ({error}); install multipatch_jax again.", stacklevel=2
            )
            continue
        found.append(name)
    return tuple(found)


def best_build() -> str | None:
    """Return the name of the build that runs by itself, or None if there is none worth running.

    On x86 "baseline" is not worth running: XLA's own code is faster than a build for SSE2.
    """
    fast = [name for name in builds() if name != "baseline" or platform.machine() not in ("x86_64", "AMD64")]
    return fast[0] if fast else None


def build_or_best(build: str | None) -> str:
    """Return `build`, or for None the best one; where none is worth running, that is "baseline"."""
    return build or best_build() or "baseline"


def has_pairs(build: str) -> bool:
    """Return whether a build multiplies pairs of bfloat16 numbers with one instruction."""
    return build.endswith("_bf16")


def vector_lanes(build: str) -> int:
    """Return how many float32 numbers a vector of a build has."""
    library = _library(build)
    assert library is not None
    return library.MultipatchLanes()


def panel_columns(build: str) -> int:
    """Return how many columns a panel of packed weights has."""
    library = _library(build)
    assert library is not None
    return library.MultipatchColumns()


def _library(build: str) -> ctypes.CDLL | None:
    """Load a build; None if it is not installed."""
    spec = importlib.util.find_spec(f"multipatch_jax.nn._encoder_{build}")
    return None if spec is None or spec.origin is None else ctypes.CDLL(spec.origin)


def target(build: str, what: str, dtype: str) -> str:
    """Return the name that XLA knows a handler of `SYMBOLS` by."""
    return f"multipatch_{what}_{dtype}_{build}"


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5, 6))
def encoder(
    layers: Mapping[str, Any],
    x: Float[Array, "P C"],
    heads: int,
    epsilon: float,
    fallback: Callable[[Any, Array], Array],
    build: str | None = None,
    pairs: bool | None = None,
) -> Float[Array, "P C"]:
    """Run all encoder layers over the patches of one tile; `jax.vmap` calls it for one tile after another.

    Args:
      layers: parameters of all layers, stacked along a first axis, under the names of `siglip.Encoder`. They are cast
        to the dtype of x.
      x: embeddings of the patches, float32 or bfloat16.
      heads: number of attention heads.
      epsilon: the constant that the layer norms add to the variance.
      fallback: the same function in JAX, (layers, x) -> y. It replaces the compiled code where JAX differentiates this
        function.
      build: one of `builds()`; None is `best_build()`.
      pairs: for bfloat16, whether to multiply pairs of bfloat16 numbers, or numbers of float32. None takes pairs where
        the build has an instruction for them. Heads of an odd width have no pairs.
    """
    build = build_or_best(build)
    pairs = has_pairs(build) if pairs is None else pairs

    def operand(name: str) -> Array:
        array: Any = functools.reduce(lambda tree, key: tree[key], name.split("/"), layers)
        # Scales and biases are few: they are rounded as the dtype says, and passed as float32.
        return array.astype(x.dtype) if name.endswith("kernel") else array.astype(x.dtype).astype(np.float32)

    call = jax.ffi.ffi_call(
        target(build, "encoder", x.dtype.name), jax.ShapeDtypeStruct(x.shape, np.float32), vmap_method="sequential"
    )
    has_even_heads = x.shape[1] // heads % 2 == 0
    pairs = x.dtype == jnp.bfloat16 and pairs and has_even_heads
    operands = x.astype(np.float32), *map(operand, OF_LAYER)
    return call(*operands, heads=np.int64(heads), epsilon=np.float32(epsilon), pairs=pairs).astype(x.dtype)


@functools.partial(encoder.defjvp, symbolic_zeros=True)
def _encoder_jvp(heads, epsilon, fallback, build, pairs, primals, tangents):
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
