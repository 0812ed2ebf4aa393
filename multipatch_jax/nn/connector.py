"""The Idefics3 connector: fold neighbouring patches into channels, then project to the language model's width."""

import math

from flax import linen as nn
from jaxtyping import Array, Float

from multipatch_jax.config import ConnectorConfig
from multipatch_jax.nn.compute import Compute, compute_in
from multipatch_jax.nn.linear import Dense


def pixel_unshuffle(x: Float[Array, "P C"], scale_factor: int) -> Float[Array, "T channels"]:
    """Space to depth: merges each s x s block of patches into one token, (P, C) -> (P / s^2, s^2 * C).

    s is `scale_factor`. Patches and tokens are square grids in row-major order. The channels of a token are ordered
    (row in the block, column in the block, channel of the patch): channel dh * (s * C) + dw * C + c of the token is
    channel c of the patch in row dh and column dw of its block. The projection that follows was trained with this
    order. `torch.nn.functional.pixel_unshuffle` and `unfold` order channels (c, dh, dw), which gives wrong tokens
    without any error.

    Raises:
      ValueError: the patches do not form a square grid, or s does not divide its side.
    """
    patches, width = x.shape
    grid, s = math.isqrt(patches), scale_factor
    if grid * grid != patches or grid % s:
        raise ValueError(f"Expected a square grid of tokens with a side that {s} divides, got {patches} tokens.")
    x = x.reshape(grid // s, s, grid // s, s, width).transpose(0, 2, 1, 3, 4)
    return x.reshape(patches // s**2, width * s**2)


class ModalityProjection(nn.Module):
    """Projects merged patches to the language model's width, without a bias."""

    config: ConnectorConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "T channels"]) -> Float[Array, "T D"]:
        return Dense(
            self.config.text_hidden_size,
            use_bias=False,
            dtype=self.compute.dtype,
            precision=self.compute.precision,
            name="proj",
        )(x)


class Idefics3Connector(nn.Module):
    """Maps the tower's features of one tile, (P, C), to its visual tokens, (T, D).

    It computes in `compute.dtype`, or in the dtype of its params if that is None.
    """

    config: ConnectorConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "P C"]) -> Float[Array, "T D"]:
        compute = compute_in(self, self.compute)
        x = pixel_unshuffle(x, self.config.scale_factor)
        return ModalityProjection(self.config, compute, name="modality_projection")(x)
