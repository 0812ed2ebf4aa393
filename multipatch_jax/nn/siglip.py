"""The SigLIP vision tower of Idefics3 / SmolVLM, for one tile at a time.

For several tiles, map a module over them with `jax.vmap`. Modules have Hugging Face's names, so that the params tree
reads like a checkpoint. Each takes the `VisionConfig` and a `Compute`. `VisionTransformer` decides what is automatic in
the `Compute`; the modules inside it expect a decided one.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from multipatch_jax.config import VisionConfig
from multipatch_jax.nn.attention import KERNELS, attention, rows_suit_cublas
from multipatch_jax.nn.compute import Compute, compute_in
from multipatch_jax.nn.encoders import ENCODERS, FLAX
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

    ids = buckets(mask[:, 0])[:, None] * n + buckets(mask[0, :])[None]
    return jnp.where(mask, ids, 0).reshape(-1)


def _dense(compute: Compute, features: int, name: str, product_in_dtype: bool) -> Dense:
    return Dense(
        features, dtype=compute.dtype, precision=compute.precision, product_in_dtype=product_in_dtype, name=name
    )


def _fuses_bias(compute: Compute) -> bool:
    """Whether q_proj, k_proj, v_proj and fc1 take `Dense.product_in_dtype`."""
    return KERNELS[compute.attention].fuses_products


def _fuses_residual(compute: Compute, patches: int) -> bool:
    """Whether out_proj and fc2 take it, whose results are added to the residual.

    Only where cuBLAS adds the residual too, before it rounds. With one more rounding there, the tower of the 2.2B model
    was 1.102 times as far from float32 as the reference, and the bound is 1.1.
    """
    return _fuses_bias(compute) and rows_suit_cublas(patches)


def _layer_norm(config: VisionConfig, compute: Compute, name: str, x: Float[Array, "P C"]) -> Float[Array, "P C"]:
    # Flax computes mean and variance in float32. For 16-bit inputs the fast variance, E[x^2] - E[x]^2 in one pass, is
    # exact enough; to equal the reference in float32, the variance needs a second pass. On CUDA, XLA makes one kernel
    # of the whole layer norm with two passes, and three with one.
    fast = compute.dtype in ("bfloat16", "float16") and not _fuses_bias(compute)
    norm = nn.LayerNorm(config.layer_norm_eps, dtype=compute.dtype, use_fast_variance=fast, name=name)
    with jax.numpy_dtype_promotion("standard"):  # Flax promotes 16-bit inputs to float32, which "strict" forbids
        return norm(x)


class PatchEmbedding(nn.Module):
    """Embeds the patches: a convolution whose stride is its window, computed as one matrix product.

    Its parameters have the shapes of the convolution's: kernel (p, p, 3, C) and bias (C,), for patches of p x p pixels.
    For 17 tiles on an H100 the convolution took 0.7 ms of 11 ms in all; the product takes 0.1 ms.
    """

    config: VisionConfig
    compute: Compute

    @nn.compact
    def __call__(self, pixel_values: Float[Array, "M M 3"]) -> Float[Array, "P C"]:
        p, width, dtype = self.config.patch_size, self.config.hidden_size, self.compute.dtype
        grid = len(pixel_values) // p  # pixels at the end that do not fill a patch are ignored
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, 3, width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (width,), jnp.float32)
        x = pixel_values[: grid * p, : grid * p].astype(dtype).reshape(grid, p, grid, p, 3)
        x = x.transpose(0, 2, 1, 3, 4).reshape(grid * grid, p * p * 3)
        y = matmul(x, kernel.astype(dtype).reshape(-1, width), self.compute.precision)
        return (y + bias.astype(y.dtype)[None]).astype(dtype)


class VisionEmbeddings(nn.Module):
    """Patch embeddings plus learned position embeddings."""

    config: VisionConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "M M 3"], mask: Bool[Array, "g g"] | None = None
    ) -> Float[Array, "P C"]:
        x = PatchEmbedding(self.config, self.compute, name="patch_embedding")(pixel_values)
        grid, n = math.isqrt(len(x)), self.config.patches_per_side
        table = nn.Embed(n * n, self.config.hidden_size, dtype=self.compute.dtype, name="position_embedding")
        ids = position_ids(np.ones((grid, grid), bool) if mask is None else mask, n)
        return x + table(ids)


class Attention(nn.Module):
    """Multi-head self-attention; its four projections have biases."""

    config: VisionConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "P C"], mask: Bool[Array, " P"] | None = None) -> Float[Array, "P C"]:
        dense = functools.partial(_dense, self.compute, self.config.hidden_size)
        heads = (x.shape[0], self.config.num_attention_heads, self.config.head_dim)
        fuses = _fuses_bias(self.compute)
        q, k, v = (dense(name, fuses)(x).reshape(heads) for name in ("q_proj", "k_proj", "v_proj"))
        x = attention(q, k, v, mask=mask, kernel=self.compute.attention, precision=self.compute.precision)
        return dense("out_proj", _fuses_residual(self.compute, len(x)))(x.reshape(len(x), -1))


class MLP(nn.Module):
    """Two dense layers with GELU (its tanh approximation) between them.

    GELU runs in float32, because its input has been rounded to the dtype once already. Beside cuBLAS's products it
    runs in the dtype instead, and becomes part of the product of fc1.
    """

    config: VisionConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "P C"]) -> Float[Array, "P C"]:
        fuses = _fuses_bias(self.compute)
        h = _dense(self.compute, self.config.intermediate_size, "fc1", fuses)(x)
        h = nn.gelu(h if fuses else h.astype(jnp.float32), approximate=True).astype(h.dtype)
        return _dense(self.compute, x.shape[-1], "fc2", _fuses_residual(self.compute, len(x)))(h)


class EncoderLayer(nn.Module):
    """A pre-norm transformer block.

    Returns (x, output), the carry and the output of one step of `nn.scan`.

    Attributes:
      outputs: whether `output` is x; otherwise it is None.
    """

    config: VisionConfig
    compute: Compute
    outputs: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "P C"], mask: Bool[Array, " P"] | None = None
    ) -> tuple[Float[Array, "P C"], Float[Array, "P C"] | None]:
        norm = functools.partial(_layer_norm, self.config, self.compute)
        x = x + Attention(self.config, self.compute, name="self_attn")(norm("layer_norm1", x), mask)
        x = x + MLP(self.config, self.compute, name="mlp")(norm("layer_norm2", x))
        return x, x if self.outputs else None


class Encoder(nn.Module):
    """All `num_hidden_layers` blocks, as one `nn.scan`, or another encoder in its place (`encoders.py`).

    The params of all layers are stacked along a new first axis, and XLA compiles the block once. Returns the result of
    the last layer, and the results of all layers (layers, P, C) if `outputs` is True.
    """

    config: VisionConfig
    compute: Compute
    outputs: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "P C"], mask: Bool[Array, " P"] | None = None
    ) -> tuple[Float[Array, "P C"], Float[Array, "layers P C"] | None]:
        layers = nn.scan(
            nn.remat(EncoderLayer, prevent_cse=False) if self.compute.remat else EncoderLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=self.config.num_hidden_layers,
            check_constancy_invariants=False,  # the check would trace the block a second time
        )
        layers = layers(self.config, self.compute, self.outputs, name="layers")
        run = ENCODERS[self.compute.encoder].run
        if run is None or mask is not None or self.outputs or self.is_initializing():
            return layers(x, mask)
        in_flax = Encoder(self.config, dataclasses.replace(self.compute, encoder=FLAX), parent=None)
        return run(
            self.variables["params"]["layers"],
            x,
            self.config,
            lambda params, x: in_flax.apply({"params": {"layers": params}}, x)[0],
        ), None


class VisionTransformer(nn.Module):
    """The vision tower: embeddings, encoder and a final layer norm.

    It computes in `compute.dtype`, or in the dtype of its params if that is None.
    """

    config: VisionConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        pixel_values: Float[Array, "M M 3"],
        pixel_attention_mask: Bool[Array, "M M"] | None = None,
        layers: tuple[int, ...] = (),
    ) -> tuple[Float[Array, "P C"], tuple[Float[Array, "P C"], ...]]:
        """Return the features of one tile, (P, C), and its inner features.

        Args:
          pixel_values: normalised pixels, about -1 to 1.
          pixel_attention_mask: True for real pixels. None means that all are real, as in every tile that
            `mp.tile_image` makes.
          layers: which inner features to return, each (P, C), in this order. They are numbered as in the reference's
            `hidden_states`: 0 is the embeddings, i the result of layer i, and -1 that of the last layer, before the
            final layer norm. All layers run in Flax then, whatever `compute.encoder` is.

        Raises:
          IndexError: there is no such layer.
        """
        compute = compute_in(self, self.compute)
        mask = None
        if pixel_attention_mask is not None:
            mask = patch_attention_mask(pixel_attention_mask, self.config.patch_size)
        embeddings = VisionEmbeddings(self.config, compute, name="embeddings")(pixel_values, mask)
        encoder = Encoder(self.config, compute, outputs=bool(layers), name="encoder")
        x, outputs = encoder(embeddings, None if mask is None else mask.reshape(-1))
        features = _layer_norm(self.config, compute, "post_layernorm", x)
        numbers = [range(self.config.num_hidden_layers + 1)[number] for number in layers]
        every = [embeddings] if outputs is None else [embeddings, *outputs]
        return features, tuple(every[number] for number in numbers)
