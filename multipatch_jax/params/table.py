"""One table of every tensor: its Hugging Face name, the path of its parameter, its shape, and the change of layout.

Loading (`to_params`) and saving (`from_params`) both follow this table, so that they cannot disagree. The change of
layout is a permutation of axes; tensors with a layer's number in their name are also stacked along a new first axis.
No number is rounded, so a tensor that is loaded in its own dtype is saved again bit for bit. The shapes serve to check
both checkpoint files and params.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from multipatch_jax.arguments import require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.nn import connector_of
from multipatch_jax.params.tree import flatten

PARTS = ("vision", "connector", "embeddings", "text")
"""The parts of a model that `from_pretrained` can load by themselves; "text" includes "embeddings"."""
# Kinds of tensors: (suffix in a checkpoint, suffix in params, axes), where param = tensor.transpose(axes).
_LINEAR = ("weight", "kernel", (1, 0))
_CONV = ("weight", "kernel", (2, 3, 1, 0))
_EMBED = ("weight", "embedding", (0, 1))
_SCALE = ("weight", "scale", (0,))
_BIAS = ("bias", "bias", (0,))
# (part, module's name in a checkpoint, {kind: shape in a checkpoint}). In front of the name comes "model.", except for
# lm_head and linear; "{i}" stands for a layer's number. `_dims` explains the letters and words of shapes. The rows of
# the connector are in `nn/connectors.py`.
_TABLE = (
    ("vision", "vision_model.embeddings.patch_embedding", {_CONV: "C rgb patch patch", _BIAS: "C"}),
    ("vision", "vision_model.embeddings.position_embedding", {_EMBED: "positions C"}),
    ("vision", "vision_model.encoder.layers.{i}.layer_norm1", {_SCALE: "C", _BIAS: "C"}),
    ("vision", "vision_model.encoder.layers.{i}.layer_norm2", {_SCALE: "C", _BIAS: "C"}),
    ("vision", "vision_model.encoder.layers.{i}.self_attn.q_proj", {_LINEAR: "C C", _BIAS: "C"}),
    ("vision", "vision_model.encoder.layers.{i}.self_attn.k_proj", {_LINEAR: "C C", _BIAS: "C"}),
    ("vision", "vision_model.encoder.layers.{i}.self_attn.v_proj", {_LINEAR: "C C", _BIAS: "C"}),
    ("vision", "vision_model.encoder.layers.{i}.self_attn.out_proj", {_LINEAR: "C C", _BIAS: "C"}),
    ("vision", "vision_model.encoder.layers.{i}.mlp.fc1", {_LINEAR: "F C", _BIAS: "F"}),
    ("vision", "vision_model.encoder.layers.{i}.mlp.fc2", {_LINEAR: "C F", _BIAS: "C"}),
    ("vision", "vision_model.post_layernorm", {_SCALE: "C", _BIAS: "C"}),
    ("embeddings", "text_model.embed_tokens", {_EMBED: "V D"}),
    ("text", "text_model.layers.{i}.input_layernorm", {_SCALE: "D"}),
    ("text", "text_model.layers.{i}.post_attention_layernorm", {_SCALE: "D"}),
    ("text", "text_model.layers.{i}.self_attn.q_proj", {_LINEAR: "query_width D"}),
    ("text", "text_model.layers.{i}.self_attn.k_proj", {_LINEAR: "key_width D"}),
    ("text", "text_model.layers.{i}.self_attn.v_proj", {_LINEAR: "key_width D"}),
    ("text", "text_model.layers.{i}.self_attn.o_proj", {_LINEAR: "D query_width"}),
    ("text", "text_model.layers.{i}.mlp.gate_proj", {_LINEAR: "mlp_width D"}),
    ("text", "text_model.layers.{i}.mlp.up_proj", {_LINEAR: "mlp_width D"}),
    ("text", "text_model.layers.{i}.mlp.down_proj", {_LINEAR: "D mlp_width"}),
    ("text", "text_model.norm", {_SCALE: "D"}),
    ("text", "lm_head", {_LINEAR: "V D"}),
    ("text", "linear", {_LINEAR: "R D", _BIAS: "R"}),  # a ColIdefics3 retriever has it in place of lm_head
)


def _rows(config: ModelConfig) -> Iterable[tuple[str, str, dict]]:
    """Return the rows of the table that a model has."""
    linears = connector_of(config.connector).linears.items()
    rows = [*_TABLE, *(("connector", f"connector.{name}", {_LINEAR: shape}) for name, shape in linears)]
    return sorted(rows, key=lambda row: PARTS.index(row[0]))


def _dims(config: ModelConfig) -> dict[str, int]:
    vision, scale = config.vision, config.connector.scale_factor
    dims = {
        "rgb": vision.num_channels,  # colour channels of a pixel
        "patch": vision.patch_size,  # side of a patch, in pixels
        "positions": vision.patches_per_side**2,  # rows of the position table
        "C": vision.hidden_size,  # width of the vision tower
        "F": vision.intermediate_size,  # width of the tower's MLP
        "merged_width": vision.hidden_size * scale**2,  # width after pixel_unshuffle
        "D": config.connector.text_hidden_size,  # width of the language model
    }
    if config.text is not None:
        text = config.text
        dims |= {
            "V": text.vocab_size,  # ids in the vocabulary
            "query_width": text.num_attention_heads * text.head_dim,  # of all query heads together
            "key_width": text.num_key_value_heads * text.head_dim,  # of all key heads together, or all value heads
            "mlp_width": text.intermediate_size,  # width of the language model's MLP
            "R": config.embedding_size or 0,  # width of a retriever's vectors
        }
    return dims


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, and where and how it is stored in params.

    Attributes:
      name: its Hugging Face name.
      shape: its shape in the checkpoint.
      part: the part of the model that it belongs to, one of `PARTS`.
      path: the path of its parameter, such as "vision_model/post_layernorm/scale".
      layer: its index in the parameter's stack of layers, or None where the parameter is not stacked.
      num_layers: the size of that stack, which is how many layers its part has; 0 where it is not stacked.
      axes: the permutation of axes; `tensor.transpose(axes)` is the parameter, or one layer of it.
    """

    name: str
    shape: tuple[int, ...]
    part: str
    path: str
    layer: int | None
    num_layers: int
    axes: tuple[int, ...]

    @property
    def param_shape(self) -> tuple[int, ...]:
        """The shape of the whole parameter at `path`, including the axis of layers."""
        shape = tuple(self.shape[axis] for axis in self.axes)
        return shape if self.layer is None else (self.num_layers, *shape)


def check_part_names(parts: str | Iterable[str]) -> tuple[str, ...]:
    """Return one name or several of `PARTS` as a tuple; "all" stands for all of them.

    Raises:
      ValueError: no names, or an unknown name.
    """
    names = (parts,) if isinstance(parts, str) or not isinstance(parts, Iterable) else tuple(parts)
    if names == ("all",):
        return PARTS
    if not names or any(name not in PARTS for name in names):
        raise ValueError(f'parts must name some of {PARTS}, or be "all", got {names!r:.200}.')
    return names


def check_parts(config: ModelConfig, parts: str | Iterable[str]) -> tuple[str, ...]:
    """Return `parts` in the order of `PARTS`, with "embeddings" added where "text" is among them.

    Args:
      parts: one name or several of `PARTS`, or "all".

    Raises:
      ValueError: no names, an unknown name, or a part of the language model where `config.text` is None.
    """
    require_type("config", config, ModelConfig)
    asked = set(check_part_names(parts))
    if asked & {"embeddings", "text"} and config.text is None:
        raise ValueError("The language model's parts were asked for, but this config has text=None.")
    return tuple(part for part in PARTS if part in asked or (part == "embeddings" and "text" in asked))


class _Row(NamedTuple):
    """The tensors of one parameter: one, or one for each layer (`num_layers` is not None, and `name` has "{i}")."""

    name: str
    shape: tuple[int, ...]
    part: str
    path: str
    num_layers: int | None
    axes: tuple[int, ...]


@functools.lru_cache
def _model_rows(config: ModelConfig) -> tuple[_Row, ...]:
    """Return the rows of the table that a model has, with its sizes."""
    dims, text = _dims(config), config.text
    depths = {"vision": config.vision.num_hidden_layers, "text": text.num_hidden_layers if text else 0}
    found = []
    for part, module, kinds in _rows(config):
        if part in ("embeddings", "text") and text is None:
            continue
        if module == "linear" and config.embedding_size is None:
            continue
        if module == "lm_head" and (config.embedding_size is not None or (text and text.tie_word_embeddings)):
            continue
        prefix = "" if module in ("lm_head", "linear") else "model."
        for (suffix, leaf, axes), letters in kinds.items():
            shape = tuple(dims[letter] for letter in letters.split())
            path = "/".join([*module.replace(".{i}", "").split("."), leaf])
            depth = depths[part] if "{i}" in module else None
            found.append(_Row(f"{prefix}{module}.{suffix}", shape, part, path, depth, axes))
    return tuple(found)


def count_tensors(config: ModelConfig, parts: Iterable[str]) -> int:
    """Return how many tensors a checkpoint of this config has in `parts`, without listing them."""
    require_type("config", config, ModelConfig)
    return sum(row.num_layers or 1 for row in _model_rows(config) if row.part in parts)


def _tensors_of(row: _Row) -> Iterable[Tensor]:
    for layer in (None,) if row.num_layers is None else range(row.num_layers):
        name = row.name.format(i=layer)
        yield Tensor(name, row.shape, row.part, row.path, layer, row.num_layers or 0, row.axes)


@functools.lru_cache
def _by_name(config: ModelConfig) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for row in _model_rows(config):
        for tensor in _tensors_of(row):
            if tensor.name in found:
                raise AssertionError(f"Two rules match {tensor.name}.")
            found[tensor.name] = tensor
    return found


def tensors(config: ModelConfig) -> Mapping[str, Tensor]:
    """Return every tensor of a checkpoint of this config, by its Hugging Face name.

    The language model is left out where `config.text` is None, and `lm_head` where it is tied to the embeddings. A
    retriever (`config.embedding_size` is set) has `linear` in place of `lm_head`.

    Raises:
      ValueError: `config` is no `ModelConfig`.
    """
    require_type("config", config, ModelConfig)
    return _by_name(config)


def param_shapes(config: ModelConfig, parts: Iterable[str] = ("vision", "connector")) -> Mapping[str, tuple]:
    """Return path -> shape of every parameter in `parts`; a language model is left out where `config.text` is None.

    Raises:
      ValueError: `config` is no `ModelConfig`, or `parts` are no names of `PARTS`.
    """
    require_type("config", config, ModelConfig)
    names, shapes = check_part_names(parts), {}
    for row in _model_rows(config):
        if row.part in names:
            shape = tuple(row.shape[axis] for axis in row.axes)
            shapes[row.path] = shape if row.num_layers is None else (row.num_layers, *shape)
    return shapes


def to_params(
    config: ModelConfig, parts: tuple[str, ...], read: Callable[[str], np.ndarray], dtype: Any = None
) -> Iterable[tuple[str, np.ndarray]]:
    """Yield (path, array) for each parameter in `parts`, read from a checkpoint.

    It reads one parameter at a time, so that no more than one is in memory both as tensors and as a parameter.

    Args:
      read: returns the tensor with a given Hugging Face name.
      dtype: of the arrays; None keeps that of the tensors.
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
    """Yield (Hugging Face name, array) for each tensor whose parameter `params` have: the inverse of `to_params`."""
    flat = flatten(params)
    for row in _model_rows(config):
        for tensor in _tensors_of(row) if row.path in flat else ():
            value = np.asarray(flat[tensor.path] if tensor.layer is None else flat[tensor.path][tensor.layer])
            yield tensor.name, np.ascontiguousarray(value.transpose(np.argsort(tensor.axes)))
