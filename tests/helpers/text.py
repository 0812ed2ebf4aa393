"""A model with its tokenizer, the reference's processor and ours; plans of any grid; texts with images."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import multipatch_jax as mp
from tests.helpers.models import TINY_SMOLVLM, make_model
from tests.helpers.tokenizer import make_tokenizer

# Three samples of several lengths and numbers of images: their texts, and the names of their photographs.
UNEVEN = (["No picture here.", "<image>", "A <image> and a <image>, what?"], [[], ["cat"], ["rocket", "coffee"]])


class TextModel(NamedTuple):
    """A reference model, its folder as the hub has it, and what our loaders make of it."""

    config: mp.ModelConfig
    params: dict[str, Any]
    reference: Any
    folder: Path
    tokenizer: Any
    theirs: Any  # the reference's processor of texts and images
    ours: mp.Processor


def make_text_model(folder: Path) -> TextModel:
    """Writes weights, configs, tokenizer and chat template to `folder`, and loads them."""
    model = make_model(TINY_SMOLVLM, folder, seed=0)  # a seed with which greedy decoding has no close choices
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    config, params = mp.from_pretrained(folder, parts=("vision", "connector", "embeddings"))
    theirs, _ = reference_processor(tokenizer, config)
    ours = mp.Processor.from_pretrained(folder)
    return TextModel(config, params, model.reference, folder, tokenizer, theirs, ours)


def reference_processor(tokenizer: Any, config: mp.ModelConfig, **tiling: Any) -> tuple[Any, mp.ModelConfig]:
    """The reference's processor for `config` with changes to its tiling, and that changed config."""
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    import multipatch_reference as reference

    config = dataclasses.replace(config, tiling=dataclasses.replace(config.tiling, **tiling))
    image_processor = reference.image_processor(config)
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=config.tiling.tokens_per_tile)
    return processor, config


def their_inputs(model: TextModel, texts: list[str], images: list[list[Any]], side: str = "left") -> dict[str, Any]:
    """The reference's inputs for a batch, padded on the given side."""
    model.tokenizer.padding_side = side
    nested = images if any(images) else None
    return model.theirs(text=texts, images=nested, padding=True, return_tensors="pt")


def their_assistant_mask(model: TextModel, chat: Any, template: str, images: list[Any]) -> tuple[Any, Any]:
    """The reference's ids of a chat, (S,), and its mask of what stands in `{% generation %}` of a template."""
    found = model.theirs.apply_chat_template(
        chat,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"images": images} if images else {},
    )
    return np.ravel(found["input_ids"]), np.ravel(found["assistant_masks"])


def a_plan(rows: int, cols: int, config: mp.ModelConfig = TINY_SMOLVLM, global_tile: bool = True) -> mp.image.TilePlan:
    """The plan of an image in a grid of tiles; 0 x 0 is an image of one tile."""
    tiles = rows * cols + global_tile if rows else 1
    return mp.image.TilePlan(9, 9, (9, 9), (9, 9), rows, cols, tiles, tiles * config.tiling.tokens_per_tile)
