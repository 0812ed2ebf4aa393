"""The SigLIP vision tower of Idefics3 / SmolVLM, for one tile at a time.

For several tiles, map a module over them with `jax.vmap`. Modules have Hugging Face's names, so that the params tree
reads like a checkpoint. Every module takes the whole `ModelConfig`. The functions of `encode` replace `dtype=None` and
`attention="auto"` in it by their choices first; a module that is called with `dtype=None` computes in float32.
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
    """Return which patches are valid: those with at least one valid pixel.

    Rows and columns of pixels at the end that do not fill a patch are ignored.
    """
    grid = pixel_attention_mask.shape[0] // patch_size
    pixels = pixel_attention_mask[: grid * patch_size, : grid * patch_size]
    return pixels.reshape(grid, patch_size, grid, patch_size).any(axis=(1, 3))


def position_ids(mask: Bool[Array, "g g"] | Bool[np.ndarray, "g g"], patches_per_side: int) -> Int[Array, " g*g"]:
    """Return the row of the position table that each patch of a g x g grid takes, in row-major order.

    The table has n * n rows, an n x n grid of learned positions. The valid patches are a rectangle in the top left
    corner, whose height and width are counted in the first column and row of `mask`. They are spread evenly over the
    table: patch (i, j) takes row floor(i * n / height) * n + floor(j * n / width). Invalid patches take row 0.

    The reference computes the same rows with float fractions and `torch.bucketize`. For every n of a published model
    this integer form gives equal rows, and it has no rounding.

    Args:
      mask: True for valid patches.
      patches_per_side: n, the side of the grid of learned positions.
    """
    n = patches_per_side

    def buckets(valid):
        return jnp.minimum(jnp.arange(len(valid)) * n // jnp.maximum(valid.sum(), 1), n - 1)

    ids = buckets(mask[:, 0])[:, None] * n + buckets(mask[0, :])
    return jnp.where(mask, ids, 0).reshape(-1)


def _dense(config: ModelConfig, features: int, name: str, product_in_dtype: bool = False) -> Dense:
    return Dense(features, dtype=config.dtype, precision=config.precision, product_in_dtype=product_in_dtype, name=name)


def _product_in_dtype(config: ModelConfig) -> bool:
    """Whether q_proj, k_proj, v_proj and fc1 take `Dense.product_in_dtype`: True for 16-bit dtypes on CUDA.

    Such a program is recognised by its attention kernel, cuDNN's. out_proj and fc2 never take it: their float32
    products are added to the residual before they are rounded. With one more rounding there, the tower of the 2.2B
    model was 1.102 times as far from float32 as the reference, and the bound is 1.1.
    """
    return choose_kernel(config.attention, config.dtype) == "cudnn"


def _layer_norm(config: ModelConfig, name: str) -> nn.LayerNorm:
    # Flax computes mean and variance in float32. For 16-bit inputs the fast variance, E[x^2] - E[x]^2 in one pass, is
    # exact enough; to equal the reference in float32, the variance needs a second pass.
    fast = config.dtype in ("bfloat16", "float16")
    return nn.LayerNorm(config.vision.layer_norm_eps, dtype=config.dtype, use_fast_variance=fast, name=name)


class PatchEmbedding(nn.Module):
    """Embeds the patches: a convolution whose stride is its window, computed as one matrix product.

    Its parameters have the shapes of the convolution's: kernel (p, p, 3, C) and bias (C,), for patches of p x p pixels.
    For 17 tiles on an H100 the convolution took 0.7 ms of 11 ms in all; the product takes 0.1 ms.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, pixel_values: Float[Array, "M M 3"]) -> Float[Array, "P C"]:
        p, width, dtype = self.config.vision.patch_size, self.config.vision.hidden_size, self.config.dtype
        grid = len(pixel_values) // p  # pixels at the end that do not fill a patch are ignored
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, 3, width)).astype(dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (width,))
        x = pixel_values[: grid * p, : grid * p].astype(dtype).reshape(grid, p, grid, p, 3)
        x = x.transpose(0, 2, 1, 3, 4).reshape(grid * grid, p * p * 3)
        return (matmul(x, kernel.reshape(-1, width), self.config.precision) + bias).astype(dtype)


class VisionEmbeddings(nn.Module):
    """Patch embeddings plus learned position embeddings."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "M M 3"], mask: Bool[Array, "g g"] | None = None
    ) -> Float[Array, "P C"]:
        vision = self.config.vision
        x = PatchEmbedding(self.config, name="patch_embedding")(pixel_values)
        grid, n = math.isqrt(len(x)), vision.patches_per_side
        table = nn.Embed(n * n, vision.hidden_size, dtype=self.config.dtype, name="position_embedding")
        ids = position_ids(np.ones((grid, grid), bool) if mask is None else mask, n)
        return x + table(ids)


class Attention(nn.Module):
    """Multi-head self-attention; its four projections have biases."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "P C"], mask: Bool[Array, " P"] | None = None) -> Float[Array, "P C"]:
        vision = self.config.vision
        dense = functools.partial(_dense, self.config, vision.hidden_size)
        heads = (x.shape[0], vision.num_attention_heads, vision.head_dim)
        product_in_dtype = _product_in_dtype(self.config)
        q, k, v = (dense(name, product_in_dtype)(x).reshape(heads) for name in ("q_proj", "k_proj", "v_proj"))
        kernel = choose_kernel(self.config.attention, self.config.dtype)
        x = attention(q, k, v, mask=mask, kernel=kernel, precision=self.config.precision)
        return dense("out_proj")(x.reshape(len(x), -1))


class MLP(nn.Module):
    """Two dense layers with GELU (its tanh approximation) between them.

    GELU runs in float32, because its input has been rounded to the dtype once already. With `_product_in_dtype` it runs
    in the dtype instead, so that cuBLAS can fuse it into the product of fc1.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "P C"]) -> Float[Array, "P C"]:
        product_in_dtype = _product_in_dtype(self.config)
        h = _dense(self.config, self.config.vision.intermediate_size, "fc1", product_in_dtype)(x)
        h = nn.gelu(h if product_in_dtype else h.astype(jnp.float32), approximate=True).astype(h.dtype)
        return _dense(self.config, x.shape[-1], "fc2")(h)


class EncoderLayer(nn.Module):
    """A pre-norm transformer block. Returns (x, None), the carry and the output that `nn.scan` expects."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "P C"], mask: Bool[Array, " P"] | None = None
    ) -> tuple[Float[Array, "P C"], None]:
        x = x + Attention(self.config, name="self_attn")(_layer_norm(self.config, "layer_norm1")(x), mask)
        x = x + MLP(self.config, name="mlp")(_layer_norm(self.config, "layer_norm2")(x))
        return x, None


class Encoder(nn.Module):
    """All `num_hidden_layers` blocks, as one `nn.scan`.

    The params of all layers are stacked along a new first axis, and XLA compiles the block once. With attention
    "native", our compiled encoder (`nn/native.py`) runs in place of the scan, except for inputs with a mask and under
    differentiation: they take the scan with "blocked" attention.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "P C"], mask: Bool[Array, " P"] | None = None) -> Float[Array, "P C"]:
        layers = nn.scan(
            nn.remat(EncoderLayer, prevent_cse=False) if self.config.remat else EncoderLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.config.vision.num_hidden_layers,
            check_constancy_invariants=False,  # the check would trace the block a second time
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
    """The vision tower: embeddings, encoder and a final layer norm."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "M M 3"], pixel_attention_mask: Bool[Array, "M M"] | None = None
    ) -> Float[Array, "P C"]:
        """Return the features of one tile, (P, C).

        Args:
          pixel_values: normalised pixels, about -1 to 1.
          pixel_attention_mask: True for real pixels. None means that all are real, as in every tile that
            `mp.tile_image` makes.
        """
        mask = None
        if pixel_attention_mask is not None:
            mask = patch_attention_mask(pixel_attention_mask, self.config.vision.patch_size)
        x = VisionEmbeddings(self.config, name="embeddings")(pixel_values, mask)
        x = Encoder(self.config, name="encoder")(x, None if mask is None else mask.reshape(-1))
        return _layer_norm(self.config, "post_layernorm")(x)
