"""Make a batch for the language model's loss from chats and their images: ids, labels and tiles, of one shape."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from multipatch_jax.arguments import require_integer, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.image import tile_image_host
from multipatch_jax.text import Chat, Processor, TextInputs, frame_config, labels_for
from multipatch_jax.train.language import IGNORED

MOST_TOKENS, MOST_TILES = 2**20, 1024  # of a row


def chat_batch(
    chats: Sequence[Chat],
    images: Sequence[Any] = (),
    *,
    config: ModelConfig,
    processor: Processor,
    length: int | None = None,
    num_tiles: int | None = None,
) -> dict[str, np.ndarray]:
    """Make a batch for `language_model_loss`, whose labels are the assistant's answers.

    Answers are what stands in `{% generation %}` of the chat template or, of a template without it, what follows the
    prompt for an answer, up to the end of the turn. Give `length` and `num_tiles`, so that all batches have one shape
    and the step is compiled once.

    Args:
      chats: each ends with a message of the assistant.
      images: as in a call of `Processor`.
      config: the model's.
      processor: of the same checkpoint.
      length: tokens of a row, S; chats are padded on the right. None is the length of the longest chat. No chat is cut:
        an answer without its end would not teach the model to stop.
      num_tiles: tiles of a row, N. Rows with fewer tiles get blank ones, which are encoded for nothing. None is the
        largest number of a row.

    Returns:
      A dict of NumPy arrays, all with a row for each chat: "input_ids", "attention_mask" and "labels", (B, S) int32,
      and "tiles", (B, N, M, M, 3) uint8.

    Raises:
      ValueError: as `Processor`; or a chat has no answer, more than `length` tokens, or images of more than `num_tiles`
        tiles; or rows need padding and there is no pad token.
      ImageError, FileNotFoundError: as `Processor`.
    """
    require_type("processor", processor, Processor)
    require_type("config", config, ModelConfig)
    if length is not None:
        require_integer("length", length, 1, MOST_TOKENS)
    if num_tiles is not None:
        require_integer("num_tiles", num_tiles, 0, MOST_TILES)
    inputs = processor(chats, images, config=config, padding_side="right", add_generation_prompt=False)
    answers = np.zeros_like(inputs.input_ids) if inputs.assistant_mask is None else inputs.assistant_mask
    for index, (answer, real) in enumerate(zip(answers, inputs.attention_mask.sum(axis=1), strict=True)):
        if not answer.any():
            raise ValueError(
                f"Each chat must have an answer to learn, and chat {index} has none: end it with a message of the "
                f"assistant, and mark answers with {{% generation %}} if the template does not write a chat message by "
                f"message."
            )
        if length is not None and real > length:
            raise ValueError(f"A chat must have at most length={length} tokens, got {real} in chat {index}: raise it.")
    tiles = _tiles_of_rows(inputs, config, num_tiles)
    padding = 0 if length is None else length - inputs.input_ids.shape[1]
    if padding and processor.pad_token_id is None:
        raise ValueError(
            f"Rows of length={length} need padding, and this checkpoint has no pad token: use "
            f"dataclasses.replace(processor, pad_token_id=...)."
        )
    labels = labels_for(
        inputs.input_ids,
        image_token_id=config.image_token_id,
        attention_mask=inputs.attention_mask,
        assistant_mask=answers,
    )

    def padded(array, value):
        return np.pad(np.asarray(array), ((0, 0), (0, padding)), constant_values=value)

    return {
        "input_ids": padded(inputs.input_ids, processor.pad_token_id or 0),
        "attention_mask": padded(inputs.attention_mask, 0),
        "labels": padded(labels, IGNORED),
        "tiles": tiles,
    }


def _tiles_of_rows(inputs: TextInputs, config: ModelConfig, num_tiles: int | None) -> UInt8[np.ndarray, "B N M M 3"]:
    """Return the tiles of each row in the order of their places, and blank tiles behind them."""
    places = (inputs.input_ids == config.image_token_id).sum(axis=1) // config.tiling.tokens_per_tile
    most = int(places.max()) if num_tiles is None else num_tiles
    if places.max() > most:
        raise ValueError(
            f"The images of a chat must be at most num_tiles={num_tiles} tiles, got {places.max()} in chat "
            f"{places.argmax()}: raise it, or lower config.tiling.max_tiles."
        )
    side, of_frames = config.tiling.tile_size, frame_config(config).tiling
    images, videos = iter(inputs.images), iter(inputs.videos)
    rows = np.zeros((len(places), most, side, side, 3), np.uint8)
    free = (place for row, count in zip(rows, places, strict=True) for place in row[:count])
    for kind in inputs.order:
        pictures, tiling = ([next(images)], config.tiling) if kind == "image" else (next(videos), of_frames)
        for picture in pictures:
            for tile in tile_image_host(picture, tiling):
                next(free)[:] = tile
    return rows
