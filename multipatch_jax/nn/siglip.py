"""The SigLIP vision tower of Idefics3 / SmolVLM, for one tile at a time.

Modules hold shapes and names (HF's own, so that params read like a checkpoint); whoever wants many tiles maps over one.
Every module takes the whole `ModelConfig`; the functions of `encode` resolve its `dtype` and `attention` first.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from multipatch_jax.config import ModelConfig
from multipatch_jax.nn import native
from multipatch_jax.nn.attention import attention, choose_kernel
from multipatch_jax.nn.linear import Dense, matmul


def patch_attention_mask(pixel_attention_mask: Bool[Array, "M M"], patch_size: int) -> Bool[Array, "g g"]:
    """A patch is valid if any of its pixels is; pixels at the end that fill no patch are left out."""
    grid = pixel_attention_mask.shape[0] // patch_size
    pixels = pixel_attention_mask[: grid * patch_size, : grid * patch_size]
    return pixels.reshape(grid, patch_size, grid, patch_size).any(axis=(1, 3))


def position_ids(mask: Bool[Array, "g g"] | Bool[np.ndarray, "g g"], patches_per_side: int) -> Int[Array, " g*g"]:
    """Rows of the position table for a g x g grid of patches of which `mask` are valid.

    The valid region's nb_h x nb_w patches (counted in the first column and row) are spread over the n x n table:
    floor(i * n / nb_h) * n + floor(j * n / nb_w), and 0 for invalid patches. This is what the reference's float
    fractions and bucketize come to for every shipped n, without their rounding.
    """
    n = patches_per_side

    def buckets(valid):
        return jnp.minimum(jnp.arange(len(valid)) * n // jnp.maximum(valid.sum(), 1), n - 1)

    ids = buckets(mask[:, 0])[:, None] * n + buckets(mask[0, :])
    return jnp.where(mask, ids, 0).reshape(-1)


def _dense(config: ModelConfig, features: int, name: str, product_in_dtype: bool = False) -> Dense:
    return Dense(features, dtype=config.dtype, precision=config.precision, product_in_dtype=product_in_dtype, name=name)


def _product_in_dtype(config: ModelConfig) -> bool:
    """For a program in 16 bits on CUDA, which cuDNN's attention tells: see `Dense`.

    Not for out_proj and fc2, whose float32 results are added to the residual before they are rounded: with a rounding
    more there, the 2.2B's tower was 1.102 times as far from float32 as the reference, and the bound is 1.1.
    """
    return choose_kernel(config.attention, config.dtype) == "cudnn"


def _layer_norm(config: ModelConfig, name: str) -> nn.LayerNorm:
    # Float32 inside. One pass over the input will do for inputs rounded to bfloat16; float32 parity wants two.
    fast = config.dtype in ("bfloat16", "float16")
    return nn.LayerNorm(config.vision.layer_norm_eps, dtype=config.dtype, use_fast_variance=fast, name=name)


class PatchEmbedding(nn.Module):
    """A convolution whose windows do not overlap, with its parameters, as the one matrix product that it is.

    For 17 tiles on an H100 the convolution took 0.7 ms of 11, and this takes 0.1.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, pixel_values: Float[Array, "M M 3"]) -> Float[Array, "P D"]:
        p, width, dtype = self.config.vision.patch_size, self.config.vision.hidden_size, self.config.dtype
        grid = len(pixel_values) // p  # pixels at the end that fill no patch are left out
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, 3, width)).astype(dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (width,))
        x = pixel_values[: grid * p, : grid * p].astype(dtype).reshape(grid, p, grid, p, 3)
        x = x.transpose(0, 2, 1, 3, 4).reshape(grid * grid, p * p * 3)
        return (matmul(x, kernel.reshape(-1, width), self.config.precision) + bias).astype(dtype)


class VisionEmbeddings(nn.Module):
    """Patches to vectors, plus learned positions."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "M M 3"], mask: Bool[Array, "g g"] | None = None
    ) -> Float[Array, "P D"]:
        vision = self.config.vision
        x = PatchEmbedding(self.config, name="patch_embedding")(pixel_values)
        grid, n = math.isqrt(len(x)), vision.patches_per_side
        table = nn.Embed(n * n, vision.hidden_size, dtype=self.config.dtype, name="position_embedding")
        ids = position_ids(np.ones((grid, grid), bool) if mask is None else mask, n)
        return x + table(ids)


class Attention(nn.Module):
    """Multi-head self-attention with biases."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "P D"], mask: Bool[Array, " P"] | None = None) -> Float[Array, "P D"]:
        vision = self.config.vision
        dense = functools.partial(_dense, self.config, vision.hidden_size)
        heads = (x.shape[0], vision.num_attention_heads, vision.head_dim)
        product_in_dtype = _product_in_dtype(self.config)
        q, k, v = (dense(name, product_in_dtype)(x).reshape(heads) for name in ("q_proj", "k_proj", "v_proj"))
        kernel = choose_kernel(self.config.attention, self.config.dtype)
        x = attention(q, k, v, mask=mask, kernel=kernel, precision=self.config.precision)
        return dense("out_proj")(x.reshape(len(x), -1))


class MLP(nn.Module):
    """Two layers with the tanh form of GELU between, computed in float32 as its input is rounded already.

    With `_product_in_dtype` it has no float32 of its own, so that cuBLAS can take it into the product before it.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "P D"]) -> Float[Array, "P D"]:
        product_in_dtype = _product_in_dtype(self.config)
        h = _dense(self.config, self.config.vision.intermediate_size, "fc1", product_in_dtype)(x)
        h = nn.gelu(h if product_in_dtype else h.astype(jnp.float32), approximate=True).astype(h.dtype)
        return _dense(self.config, x.shape[-1], "fc2")(h)


class EncoderLayer(nn.Module):
    """Pre-norm transformer block. Returns a pair, as `nn.scan` wants it."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "P D"], mask: Bool[Array, " P"] | None = None
    ) -> tuple[Float[Array, "P D"], None]:
        x = x + Attention(self.config, name="self_attn")(_layer_norm(self.config, "layer_norm1")(x), mask)
        x = x + MLP(self.config, name="mlp")(_layer_norm(self.config, "layer_norm2")(x))
        return x, None


class Encoder(nn.Module):
    """`num_hidden_layers` blocks, scanned: their params are stacked in front, and one block is compiled.

    With "native" attention, full tiles go through compiled code of ours instead.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "P D"], mask: Bool[Array, " P"] | None = None) -> Float[Array, "P D"]:
        layers = nn.scan(
            nn.remat(EncoderLayer, prevent_cse=False) if self.config.remat else EncoderLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.config.vision.num_hidden_layers,
            check_constancy_invariants=False,  # a second trace of the block, for what we don't use
        )
        layers = layers(self.config, name="layers")
        kernel = choose_kernel(self.config.attention, self.config.dtype)
        if kernel != "native" or mask is not None or self.is_initializing():
            return layers(x, mask)[0]
        in_jax = Encoder(dataclasses.replace(self.config, attention="blocked"), parent=None)
        return native.encoder(
            self.variables["params"]["layers"],
            x,
            self.config.vision.num_attention_heads,
            self.config.vision.layer_norm_eps,
            lambda params, x: in_jax.apply({"params": {"layers": params}}, x),
        )


class VisionTransformer(nn.Module):
    """Tile to features: embeddings, encoder, and the last layer norm."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "M M 3"], pixel_attention_mask: Bool[Array, "M M"] | None = None
    ) -> Float[Array, "P D"]:
        """Features of one tile.

        Args:
          pixel_values: normalised pixels, about -1 to 1.
          pixel_attention_mask: True for real pixels; None when all are, as in every tile that tiling makes.
        """
        mask = None
        if pixel_attention_mask is not None:
            mask = patch_attention_mask(pixel_attention_mask, self.config.vision.patch_size)
        x = VisionEmbeddings(self.config, name="embeddings")(pixel_values, mask)
        x = Encoder(self.config, name="encoder")(x, None if mask is None else mask.reshape(-1))
        return _layer_norm(self.config, "post_layernorm")(x)
