"""The text decoder of Idefics3 / SmolVLM, a Llama: input embeddings -> hidden states -> logits.

Modules have Hugging Face's names, so that the params tree reads like a checkpoint. Each takes the `TextConfig` and a
`Compute`. `LlamaModel` decides what is automatic in the `Compute`; the modules inside it expect a decided one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Float32, Int

from multipatch_jax.config import TextConfig
from multipatch_jax.nn.causal import Past, attend
from multipatch_jax.nn.compute import Compute, compute_in, resolve_compute
from multipatch_jax.nn.kv_cache import KVCache, write_cache
from multipatch_jax.nn.linear import Dense, matmul
from multipatch_jax.nn.rotary import rotary_angles, rotate


class Places(NamedTuple):
    """Where the tokens of a call stand: the same for all layers.

    Attributes:
      cos, sin: of the angles of each token's position.
      columns: the column of each token, by which `attend` knows what it sees.
      real: False for padding; None if there is none.
      past: True for columns of the cache that hold earlier tokens; None without a cache.
    """

    cos: Float32[Array, "B S d//2"]
    sin: Float32[Array, "B S d//2"]
    columns: Int[Array, "B S"]
    real: Bool[Array, "B S"] | None
    past: Bool[Array, "B C"] | None


def _project(compute: Compute, features: int, name: str, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
    dense = Dense(features, use_bias=False, dtype=compute.dtype, precision=compute.precision, name=name)
    return dense(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], features)


class RMSNorm(nn.Module):
    """Divides by the root of the mean square, which is computed in float32, and multiplies by a scale."""

    config: TextConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:], jnp.float32)
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normalised = (wide * jax.lax.rsqrt(mean_square + self.config.rms_norm_eps)).astype(self.compute.dtype)
        return scale.astype(self.compute.dtype)[None, None] * normalised


class Attention(nn.Module):
    """Causal self-attention, with fewer key and value heads than query heads; no projection has a bias.

    Takes one layer of the cache. Returns the result, and the keys and values of these tokens.
    """

    config: TextConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], cache: KVCache | None, places: Places
    ) -> tuple[Float[Array, "B S D"], tuple[Float[Array, "B S kv_heads d"], Float[Array, "B S kv_heads d"]]]:
        width, kv_heads = self.config.head_dim, self.config.num_key_value_heads

        def heads(number, name):
            return _project(self.compute, number * width, name, x).reshape(*x.shape[:2], number, width)

        q = rotate(heads(self.config.num_attention_heads, "q_proj"), places.cos, places.sin)
        k = rotate(heads(kv_heads, "k_proj"), places.cos, places.sin)
        v = heads(kv_heads, "v_proj")
        past = None
        if cache is not None and places.past is not None:
            past = Past(cache.k.astype(k.dtype), cache.v.astype(v.dtype), places.past)
        out = attend(q, k, v, places.columns, places.real, past, self.compute.precision)
        return _project(self.compute, x.shape[-1], "o_proj", out.reshape(*x.shape[:2], -1)), (k, v)


class MLP(nn.Module):
    """SwiGLU: down_proj(silu(gate_proj(x)) * up_proj(x)). The activation and the product are float32."""

    config: TextConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        width = self.config.intermediate_size
        gate, up = (_project(self.compute, width, name, x).astype(jnp.float32) for name in ("gate_proj", "up_proj"))
        return _project(self.compute, x.shape[-1], "down_proj", (jax.nn.silu(gate) * up).astype(x.dtype))


class DecoderLayer(nn.Module):
    """A pre-norm transformer block.

    Returns (x, (k, v)), the carry and the output of one step of `nn.scan`: keys and values are those of these tokens.
    """

    config: TextConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], cache: KVCache | None, places: Places
    ) -> tuple[Float[Array, "B S D"], tuple[Float[Array, "B S kv_heads d"], Float[Array, "B S kv_heads d"]] | None]:
        h = RMSNorm(self.config, self.compute, name="input_layernorm")(x)
        h, new = Attention(self.config, self.compute, name="self_attn")(h, cache, places)
        x = x + h
        h = RMSNorm(self.config, self.compute, name="post_attention_layernorm")(x)
        return x + MLP(self.config, self.compute, name="mlp")(h), None if cache is None else new


class LlamaModel(nn.Module):
    """The decoder: all layers and the final norm. Its params are those of "text_model" without "embed_tokens".

    It computes in `compute.dtype`, or in the dtype of its params if that is None. The layers are stacked along a new
    first axis, as in files, and run as one `nn.scan`; or they are split (`split_layers`) and run one after another.
    """

    config: TextConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        position_ids: Int[Array, "B S"],
        attention_mask: Bool[Array, "B S"] | None = None,
        cache: tuple[KVCache, ...] | None = None,
    ) -> tuple[Float[Array, "B S D"], tuple[KVCache, ...] | None]:
        """Return the hidden states after the final norm, and the cache with these tokens in it.

        Args:
          x: input embeddings.
          position_ids: the position of each token in the text of its row, at least 0.
          attention_mask: False for padding, on either side. No token sees padding, and its own result is meaningless.
            None means that all tokens are real.
          cache: None means that the tokens of a row see those before them in this call. With a cache, a token sees
            all columns before that of its position, those of this call's tokens and those of earlier calls; so the
            length of a row's text is data. Columns behind it may hold anything finite. Keys and values are written to
            the column of the position; those of padding and of positions outside the capacity are dropped. No two
            tokens of a row that are written may have one position.
        """
        compute = compute_in(self, self.compute)
        split = {} if self.is_initializing() else self.variables["params"]["layers"]
        is_split = "0" in split
        if cache is not None and not is_split:
            raise ValueError("With a cache, params must be those of split_layers(params), got stacked layers.")
        past, capacity = None, 0
        if cache is None:
            columns = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32)[None], x.shape[:2])
        else:
            capacity = jax.tree.leaves(cache)[0].shape[-1]
            columns = position_ids if attention_mask is None else jnp.where(attention_mask, position_ids, capacity)
            rows = jnp.arange(len(columns), dtype=columns.dtype)[:, None]
            past = jnp.ones((len(columns), capacity), bool).at[rows, columns].set(False, mode="drop")
        places = Places(*rotary_angles(position_ids, self.config), columns, attention_mask, past)
        layer = nn.remat(DecoderLayer, prevent_cse=False) if compute.remat else DecoderLayer
        x = x.astype(compute.dtype)
        if is_split:
            new = []
            for index in range(self.config.num_hidden_layers):
                one, params = layer(self.config, compute, parent=None), {"params": split[str(index)]}
                x, of_layer = one.apply(params, x, None if cache is None else cache[index], places)
                new.append(of_layer)
        else:
            layers: Any = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
                length=self.config.num_hidden_layers,
                check_constancy_invariants=False,  # the check would trace the block a second time
            )(self.config, compute, name="layers")
            x, new = layers(x, None, places)
        if cache is not None:
            # What is not written stays finite, as `attend` expects. It also makes the write depend on every read of
            # the cache; otherwise XLA copies the cache to be safe.
            columns = jnp.where(jnp.isfinite(x).all(axis=-1), columns, capacity)
            cache = tuple(write_cache(layer, columns, *kv) for layer, kv in zip(cache, new, strict=True))
        return RMSNorm(self.config, compute, name="norm")(x), cache


def resolve_decoder_compute(params: dict[str, Any], compute: Compute) -> Compute:
    """Return `resolve_compute`'s settings for the decoder, whose dtype is that of the first projection.

    Args:
      params: with "text_model", whose layers are stacked.
    """
    return resolve_compute(compute, params["text_model"]["layers"]["self_attn"]["q_proj"]["kernel"].dtype.name)


def logits(
    params: dict[str, Any], hidden: Float[Array, "*axes D"], config: TextConfig, compute: Compute
) -> Float32[Array, "*axes V"]:
    """Return the logits of hidden states: their product with lm_head, or with the embeddings where they are tied.

    Args:
      params: with "lm_head", or with "text_model" where `config.tie_word_embeddings`.
      hidden: after the final norm.
      compute: with nothing left automatic, as `resolve_decoder_compute` returns it.
    """
    rows = hidden.reshape(-1, hidden.shape[-1]).astype(compute.dtype)
    if config.tie_word_embeddings:
        # A product along the rows of the table as they lie: a transposed copy would be as large as the table.
        table = jnp.asarray(params["text_model"]["embed_tokens"]["embedding"]).astype(compute.dtype)
        out = jnp.einsum("rd,vd->rv", rows, table, precision=compute.precision, preferred_element_type=jnp.float32)
    else:
        out = matmul(rows, jnp.asarray(params["lm_head"]["kernel"]).astype(compute.dtype), compute.precision)
    return out.reshape(*hidden.shape[:-1], -1)
