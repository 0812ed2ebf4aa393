"""Make random params, to train from scratch or to try things out without a checkpoint."""

import zlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from multipatch_jax.arguments import require_key, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.nn import MultiPatchVisionProcessor
from multipatch_jax.params.table import check_parts, param_shapes
from multipatch_jax.params.tree import Params, flatten, unflatten

EMBEDDING_STD = 0.02  # the reference's `initializer_range`
LANGUAGE = ("text_model/", "lm_head/", "linear/")  # the paths that `MultiPatchVisionProcessor` does not have


def init_params(rng: jax.Array, config: ModelConfig, *, parts: Iterable[str] = ("vision", "connector")) -> Params:
    """Initialise random float32 params.

    Args:
      rng: a random key, from `jax.random.key`.
      config: the model's.
      parts: which of "vision", "connector", "embeddings" and "text" to make, or "all". Those of a part are the same
        whichever others are made.

    Returns:
      A nested dict whose arrays have the shapes that `config` asks for.

    Raises:
      ValueError: `rng` is no random key, `config` no `ModelConfig`, or a part is unknown or not in `config`.
    """
    require_key("rng", rng)
    require_type("config", config, ModelConfig)
    shapes = param_shapes(config, check_parts(config, parts))
    made: dict[str, jax.Array] = {}  # by path
    if any(not path.startswith(LANGUAGE) for path in shapes):
        tile = jnp.zeros((config.tiling.tile_size, config.tiling.tile_size, 3), jnp.float32)
        made = flatten(jax.jit(MultiPatchVisionProcessor(config).init)(rng, tile)["params"])
    return unflatten(
        {path: made[path] if path in made else _init_language(rng, path, shape) for path, shape in shapes.items()}
    )


def _init_language(rng: jax.Array, path: str, shape: tuple[int, ...]) -> jax.Array:
    """Return scales of 1, biases of 0, small embeddings, and kernels (with or without layers) that keep the variance.

    The key depends on the path alone, so that it does not matter which other params are made.
    """
    key, kind = jax.random.fold_in(rng, zlib.crc32(path.encode())), path.rsplit("/", 1)[-1]
    if kind in ("scale", "bias"):
        return jnp.full(shape, 1.0 if kind == "scale" else 0.0, jnp.float32)
    return jax.random.normal(key, shape) * (EMBEDDING_STD if kind == "embedding" else shape[-2] ** -0.5)
