"""Batches for the language model's loss without a tokenizer: random texts with images and answers."""

import functools
from typing import Any

import numpy as np

import multipatch_jax as mp


def language_batch(
    config: mp.ModelConfig, rows: int, length: int, num_tiles: int, seed: int = 0, side: str = "right"
) -> dict[str, np.ndarray]:
    """Rows of random ids, each with other numbers of images, of padding and of labelled tokens than the others."""
    assert config.text is not None
    assert config.text.pad_token_id is not None
    chance, size = np.random.default_rng(seed), config.tiling.tile_size
    ids = chance.integers(3, config.image_token_id, (rows, length), dtype=np.int32)
    mask, answers = np.ones_like(ids), np.zeros_like(ids)
    for row in range(rows):
        padding, tokens = row % 3, (row % num_tiles + 1) * config.tiling.tokens_per_tile
        ids[row, 2 : 2 + tokens] = config.image_token_id
        ids[row, length - padding :], mask[row, length - padding :] = config.text.pad_token_id, 0
        answers[row, length - padding - 3 - row :] = 1
        if side == "left":
            ids[row], mask[row], answers[row] = (np.roll(x, padding) for x in (ids[row], mask[row], answers[row]))
    labels = mp.text.labels_for(ids, image_token_id=config.image_token_id, attention_mask=mask, assistant_mask=answers)
    tiles = chance.integers(0, 256, (rows, num_tiles, size, size, 3), np.uint8)
    return {"input_ids": ids, "attention_mask": mask, "labels": np.array(labels), "tiles": tiles}


def language_loss(config: mp.ModelConfig, **options: Any) -> Any:
    """The loss as `make_train_step` takes it."""
    return functools.partial(mp.train.language_model_loss, config=config, **options)
