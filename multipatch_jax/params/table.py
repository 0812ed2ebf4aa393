"""ONE table: Hugging Face tensor name <-> parameter path + an invertible transform. Both directions derive from it.

A transform is a permutation of axes, and a stack over layers where the name has an `{i}`. So nothing is ever rounded,
and every tensor goes back bit for bit. The table also says every shape, so that it checks files and params alike.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from multipatch_jax.config import ModelConfig
from multipatch_jax.params.tree import flatten

PARTS = ("vision", "connector", "embeddings", "text")
# kind: (suffix in a checkpoint, suffix in params, axes of ours in terms of theirs)
_LINEAR = ("weight", "kernel", (1, 0))
_CONV = ("weight", "kernel", (2, 3, 1, 0))
_EMBED = ("weight", "embedding", (0, 1))
_SCALE = ("weight", "scale", (0,))
_BIAS = ("bias", "bias", (0,))
# (part, module name, {kind: shape in the checkpoint}); the letters are explained in `_dims`.
_TABLE = (
    ("vision", "vision_model.embeddings.patch_embedding", {_CONV: "D C p p", _BIAS: "D"}),
    ("vision", "vision_model.embeddings.position_embedding", {_EMBED: "N D"}),
    ("vision", "vision_model.encoder.layers.{i}.layer_norm1", {_SCALE: "D", _BIAS: "D"}),
    ("vision", "vision_model.encoder.layers.{i}.layer_norm2", {_SCALE: "D", _BIAS: "D"}),
    ("vision", "vision_model.encoder.layers.{i}.self_attn.q_proj", {_LINEAR: "D D", _BIAS: "D"}),
    ("vision", "vision_model.encoder.layers.{i}.self_attn.k_proj", {_LINEAR: "D D", _BIAS: "D"}),
    ("vision", "vision_model.encoder.layers.{i}.self_attn.v_proj", {_LINEAR: "D D", _BIAS: "D"}),
    ("vision", "vision_model.encoder.layers.{i}.self_attn.out_proj", {_LINEAR: "D D", _BIAS: "D"}),
    ("vision", "vision_model.encoder.layers.{i}.mlp.fc1", {_LINEAR: "F D", _BIAS: "F"}),
    ("vision", "vision_model.encoder.layers.{i}.mlp.fc2", {_LINEAR: "D F", _BIAS: "D"}),
    ("vision", "vision_model.post_layernorm", {_SCALE: "D", _BIAS: "D"}),
    ("connector", "connector.modality_projection.proj", {_LINEAR: "T E"}),
    ("embeddings", "text_model.embed_tokens", {_EMBED: "V T"}),
    ("text", "text_model.layers.{i}.input_layernorm", {_SCALE: "T"}),
    ("text", "text_model.layers.{i}.post_attention_layernorm", {_SCALE: "T"}),
    ("text", "text_model.layers.{i}.self_attn.q_proj", {_LINEAR: "Q T"}),
    ("text", "text_model.layers.{i}.self_attn.k_proj", {_LINEAR: "K T"}),
    ("text", "text_model.layers.{i}.self_attn.v_proj", {_LINEAR: "K T"}),
    ("text", "text_model.layers.{i}.self_attn.o_proj", {_LINEAR: "T Q"}),
    ("text", "text_model.layers.{i}.mlp.gate_proj", {_LINEAR: "I T"}),
    ("text", "text_model.layers.{i}.mlp.up_proj", {_LINEAR: "I T"}),
    ("text", "text_model.layers.{i}.mlp.down_proj", {_LINEAR: "T I"}),
    ("text", "text_model.norm", {_SCALE: "T"}),
    ("text", "lm_head", {_LINEAR: "V T"}),
    ("text", "linear", {_LINEAR: "R T", _BIAS: "R"}),  # ColIdefics3's, in place of the lm_head
)


def _dims(config: ModelConfig) -> dict[str, int]:
    vision, scale = config.vision, config.connector.scale_factor
    dims = {
        "C": vision.num_channels,
        "p": vision.patch_size,
        "N": vision.patches_per_side**2,  # positions
        "D": vision.hidden_size,
        "F": vision.intermediate_size,
        "E": vision.hidden_size * scale**2,  # width after pixel_unshuffle
        "T": config.connector.text_hidden_size,
    }
    if config.text is not None:
        text = config.text
        dims |= {
            "V": text.vocab_size,
            "Q": text.num_attention_heads * text.head_dim,
            "K": text.num_key_value_heads * text.head_dim,
            "I": text.intermediate_size,
            "R": config.embedding_size or 0,
        }
    return dims


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint: where it goes in params, and how."""

    name: str
    shape: tuple[int, ...]
    part: str
    path: str
    layer: int | None
    num_layers: int
    axes: tuple[int, ...]

    @property
    def param_shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter at `path`, the stack of layers included."""
        shape = tuple(self.shape[axis] for axis in self.axes)
        return shape if self.layer is None else (self.num_layers, *shape)


def check_parts(config: ModelConfig, parts: Iterable[str]) -> tuple[str, ...]:
    """The parts asked for, in the table's order; "text" includes "embeddings"."""
    asked = {parts} if isinstance(parts, str) else set(parts)
    if not asked or asked - set(PARTS):
        raise ValueError(f"parts must name some of {PARTS}, got {parts!r}.")
    if asked & {"embeddings", "text"} and config.text is None:
        raise ValueError("The language model's parts were asked for, but this config has text=None.")
    return tuple(part for part in PARTS if part in asked or (part == "embeddings" and "text" in asked))


@functools.lru_cache
def tensors(config: ModelConfig) -> Mapping[str, Tensor]:
    """Every tensor of `config`'s checkpoint by its Hugging Face name."""
    dims, text = _dims(config), config.text
    depths = {"vision": config.vision.num_hidden_layers, "text": text.num_hidden_layers if text else 0}
    found: dict[str, Tensor] = {}
    for part, module, kinds in _TABLE:
        if part in ("embeddings", "text") and text is None:
            continue
        if module == "linear" and config.embedding_size is None:
            continue
        if module == "lm_head" and (config.embedding_size is not None or (text and text.tie_word_embeddings)):
            continue
        num_layers = depths.get(part, 0)
        prefix = "" if module in ("lm_head", "linear") else "model."
        for (suffix, leaf, axes), letters in kinds.items():
            shape = tuple(dims[letter] for letter in letters.split())
            path = "/".join([*module.replace(".{i}", "").split("."), leaf])
            for layer in range(num_layers) if "{i}" in module else (None,):
                name = f"{prefix}{module.format(i=layer)}.{suffix}"
                if name in found:
                    raise AssertionError(f"Two rules match {name}.")
                found[name] = Tensor(name, shape, part, path, layer, num_layers, axes)
    return found


@functools.lru_cache
def param_shapes(config: ModelConfig, parts: tuple[str, ...] = ("vision", "connector")) -> Mapping[str, tuple]:
    """Path -> shape of every parameter in `parts`."""
    return {t.path: t.param_shape for t in tensors(config).values() if t.part in parts}


def to_params(
    config: ModelConfig, parts: tuple[str, ...], read: Callable[[str], np.ndarray], dtype: Any = None
) -> Iterable[tuple[str, np.ndarray]]:
    """Yields (path, array) of each parameter in `parts`, one at a time so that no more than one is held twice.

    Args:
      read: the tensor of a Hugging Face name. dtype: of the result; None keeps the file's.
    """
    by_path: dict[str, list[Tensor]] = {}
    for tensor in tensors(config).values():
        if tensor.part in parts:
            by_path.setdefault(tensor.path, []).append(tensor)
    for path, group in by_path.items():
        array = None
        for tensor in group:
            value = read(tensor.name)
            if array is None:
                array = np.empty(tensor.param_shape, dtype or value.dtype)
            array[... if tensor.layer is None else tensor.layer] = value.transpose(tensor.axes)
        assert array is not None
        yield path, array


def from_params(config: ModelConfig, params: Mapping[str, Any]) -> Iterable[tuple[str, np.ndarray]]:
    """Yields (Hugging Face name, array): the inverse of `to_params`, for whatever parts `params` has."""
    flat = flatten(params)
    for tensor in tensors(config).values():
        if tensor.path in flat:
            value = np.asarray(flat[tensor.path] if tensor.layer is None else flat[tensor.path][tensor.layer])
            yield tensor.name, np.ascontiguousarray(value.transpose(np.argsort(tensor.axes)))
