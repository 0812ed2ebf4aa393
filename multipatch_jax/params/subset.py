"""Splits params into those that are trained and those that are frozen, by a name or a regex, and merges them again."""

import jax

from multipatch_jax.arguments import require_pattern, require_tree, require_type
from multipatch_jax.params.tree import Params, flatten, unflatten

SUBTREES = {
    "connector": "^connector/",
    "vision": "^vision_model/",
    "text": "^(text_model|lm_head|linear)/",
    "lora": "^lora/",
    "all": "",
}


def split_params(params: Params, trainable: str) -> tuple[Params, Params]:
    """Split params into (trained, frozen), two nested dicts that together have every parameter once.

    Args:
      trainable: "connector", "vision", "text" (the language model with its embeddings and its head), "lora" (see
        `add_lora`), "all", or a regex. A parameter is trained if the regex is found anywhere in its path, such as
        "vision_model/encoder/layers/self_attn/q_proj/kernel".

    Raises:
      ValueError: the regex is found in no path, so nothing would be trained.
    """
    require_tree("params", params)
    require_type("trainable", trainable, str)
    pattern, flat = require_pattern("trainable", SUBTREES.get(trainable, trainable)), flatten(params)
    trained = {path: value for path, value in flat.items() if pattern.search(path)}
    if not trained:
        paths = ", ".join(sorted(flat))
        raise ValueError(f"trainable={trainable!r} is found in no path of {paths}, so nothing would be trained.")
    return unflatten(trained), unflatten({path: value for path, value in flat.items() if path not in trained})


def merge_params(a: Params, b: Params) -> Params:
    """Merge two trees into one: the inverse of `split_params`. Where both have a path, that of `b` counts."""
    return unflatten(flatten(a) | flatten(b))


def kernel_mask(params: Params) -> Params:
    """Return a tree of bools: True for kernels, False for biases, norms and embeddings.

    Use it to decay kernels only: `optax.adamw(..., mask=mp.params.kernel_mask)`. It goes by the name "kernel", because
    layers are stacked: a bias has two axes here, so the usual test for more than one axis would decay it too.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
