"""The layouts of weights that `from_pretrained` reads, each with a function that writes the tiny model in it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.helpers.checkpoints import ALL

Tensors = dict[str, np.ndarray]
VISION = ("vision", "connector")


class Layout(NamedTuple):
    """How the tensors of a layout are named and stored, and the parts that it holds.

    Attributes:
      what: one line for a reader.
      relay: changes today's tensors into the layout's.
      parts: the parts of the model that can be loaded from it.
      shards: how many files the tensors are written to; more than one have an index.
    """

    what: str
    relay: Callable[[Tensors], Tensors]
    parts: tuple[str, ...] = ALL
    shards: int = 1


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {f"{prefix}{name}": value for name, value in tensors.items()}


def without_head(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): value for name, value in tensors.items() if name != "lm_head.weight"}


def first_training_code(tensors: Tensors) -> Tensors:
    old = {}
    for name, value in tensors.items():
        name = name.replace("model.connector.modality_projection", "model.modality_projection")
        old[name.replace("model.text_model.", "model.")] = value
    table, head = old.pop("model.embed_tokens.weight"), old.pop("lm_head.weight")
    old |= {"model.embed_tokens.weight": table[:150], "lm_head.weight": head[:150]}
    old |= {"model.embed_tokens.additional_embedding.weight": table[150:]}
    old |= {"lm_head.additional_fc.weight": head[150:]}
    return old | {"model.vision_model.head.probe": np.zeros((1, 1, 96), np.float32)}


def inside_a_policy(tensors: Tensors) -> Tensors:
    others = {
        "model.vlm_with_expert.lm_expert.norm.weight": np.ones(7, np.float32),
        "model.state_proj.weight": np.ones((9, 3), np.float32),
    }
    return prefixed("model.vlm_with_expert.vlm.")(tensors) | others


LAYOUTS = {
    "transformers": Layout("as transformers saves the whole model: `model.` and `lm_head.`", dict),
    "shards": Layout("several files with model.safetensors.index.json", dict, shards=3),
    "without its head": Layout("as transformers saves it without `lm_head`", without_head, (*VISION, "embeddings")),
    "first training code": Layout(
        "the names of the models' training code, with the rows of new vocabulary ids as tensors of their own",
        first_training_code,
    ),
    "wrapped": Layout("a prefix before every name, such as `module.` of DistributedDataParallel", prefixed("module.")),
    "compiled": Layout("a prefix before every name, `_orig_mod.` of torch.compile", prefixed("_orig_mod.")),
    "inside a policy": Layout("inside a larger model, whose other tensors are left out (SmolVLA)", inside_a_policy),
}


def write_layout(source: Path, folder: Path, layout: Layout) -> Path:
    """Writes the Hugging Face folder `source` to `folder` in another layout, and returns `folder`."""
    folder.mkdir()
    for file in source.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    relaid = layout.relay(load_file(source / "model.safetensors"))
    tensors = {name: np.ascontiguousarray(value) for name, value in relaid.items()}
    if layout.shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    files = [f"model-{i + 1:05}-of-{layout.shards:05}.safetensors" for i in range(layout.shards)]
    weight_map = {name: files[i % layout.shards] for i, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({name: tensors[name] for name, place in weight_map.items() if place == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
