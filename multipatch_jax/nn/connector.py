"""The Idefics3 connector: fold neighbouring patches into channels, then project to the text model's width."""

import math

from flax import linen as nn
from jaxtyping import Array, Float

from multipatch_jax.config import ModelConfig
from multipatch_jax.nn.linear import Dense


def pixel_unshuffle(x: Float[Array, "P D"], scale_factor: int) -> Float[Array, "T E"]:
    """Space to depth on a square, row-major grid of tokens: (P, D) -> (P / s^2, D * s^2).

    Channel dh * (s * D) + dw * D + d of an output token holds channel d of the patch at row offset dh and column
    offset dw of its s x s block. `torch.nn.functional.pixel_unshuffle` and `unfold` order channels (d, dh, dw); the
    projection was trained with this order, so theirs gives wrong tokens without any error.
    """
    patches, width = x.shape
    grid, s = math.isqrt(patches), scale_factor
    if grid * grid != patches or grid % s:
        raise ValueError(f"Expected a square grid of tokens with a side that {s} divides, got {patches} tokens.")
    x = x.reshape(grid // s, s, grid // s, s, width).transpose(0, 2, 1, 3, 4)
    return x.reshape(patches // s**2, width * s**2)


class ModalityProjection(nn.Module):
    """One projection without bias."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "T E"]) -> Float[Array, "T D"]:
        return Dense(
            self.config.connector.text_hidden_size,
            use_bias=False,
            dtype=self.config.dtype,
            precision=self.config.precision,
            name="proj",
        )(x)


class Idefics3Connector(nn.Module):
    """Features of one tile (P, D_vision) to its visual tokens (T, D_text)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "P D"]) -> Float[Array, "T E"]:
        x = pixel_unshuffle(x, self.config.connector.scale_factor)
        return ModalityProjection(self.config, name="modality_projection")(x)
