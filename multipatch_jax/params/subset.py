"""Which params are trained: a name or a regex over their paths, and params split into two trees and put together."""

import re

import jax

from multipatch_jax.params.tree import Params, flatten, unflatten

SUBTREES = {"connector": "^connector/", "vision": "^vision_model/", "lora": "^lora/", "all": ""}


def split_params(params: Params, trainable: str) -> tuple[Params, Params]:
    """(trained, frozen): two nested dicts that together have every parameter once.

    Args:
      trainable: "connector", "vision", "lora" (see `add_lora`), "all", or a regex; a parameter is trained if the regex
        is found anywhere in its path ("vision_model/encoder/layers/self_attn/q_proj/kernel").

    Raises:
      ValueError: nothing would be trained.
    """
    pattern, flat = SUBTREES.get(trainable, trainable), flatten(params)
    trained = {path: value for path, value in flat.items() if re.search(pattern, path)}
    if not trained:
        paths = ", ".join(sorted(flat))
        raise ValueError(f"trainable={trainable!r} is found in no path of {paths}, so nothing would be trained.")
    return unflatten(trained), unflatten({path: value for path, value in flat.items() if path not in trained})


def merge_params(a: Params, b: Params) -> Params:
    """The inverse of `split_params`."""
    return unflatten(flatten(a) | flatten(b))


def kernel_mask(params: Params) -> Params:
    """True for kernels, False for biases, norms and positions: for `optax.adamw(..., mask=mp.params.kernel_mask)`.

    By name, as layers are stacked: a bias has two axes here, so the usual test of the rank would decay it.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
