"""The encoders: what runs the tower's stack of layers. A row of `ENCODERS` for each."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from multipatch_jax.config import VisionConfig
from multipatch_jax.nn import native
from multipatch_jax.nn.platforms import Choice, Target

FLAX = "flax"  # the modules of `siglip.py`, which run everywhere


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderChoice(Choice):
    """What a program must know of an encoder.

    Attributes:
      run: (layers, x, config, in_flax) -> features (P, C). `layers` are the stacked params of all layers, `x` the
        embeddings (P, C) of one tile without masked patches, `in_flax` the same function (layers, x) in Flax, which
        gradients use. None means the Flax modules. They also run in the place of any other encoder for masked tiles,
        and when the outputs of layers are asked for.
    """

    run: Callable[[Any, Array, VisionConfig, Callable[[Any, Array], Array]], Array] | None = None


def _native(
    layers: Any, x: Float[Array, "P C"], config: VisionConfig, in_flax: Callable[[Any, Array], Array]
) -> Float[Array, "P C"]:
    return native.encoder(layers, x, config.num_attention_heads, config.layer_norm_eps, in_flax)


def _native_is_built(target: Target) -> bool:
    return not target.exported and native.best_build() is not None


ENCODERS = {
    "native": EncoderChoice(
        run=_native,
        platforms=("cpu",),
        dtypes=("float32", "bfloat16"),
        is_available=_native_is_built,
        needs="a program for this machine and the compiled encoder (pip install it again, with a C++ compiler)",
    ),
    FLAX: EncoderChoice(),
}
"""The encoders by name. "auto" takes the first that can be had."""
