"""The stages of the training: what each learns, from which batches, with which of the params."""

import dataclasses
from collections.abc import Callable
from typing import Any

from examples.reader import reading, tower


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of the training.

    Attributes:
      loss: as `mp.train.make_train_step` takes it, with `config`.
      batch: (step, seed, config, processor) -> the arrays of a step.
      trainable: the params that it trains.
      peak: the highest learning rate.
      num_steps: of the recipe.
      after: the stage that it starts from.
    """

    loss: Callable[..., Any]
    batch: Callable[..., Any]
    trainable: str
    peak: float
    num_steps: int
    after: str | None = None


STAGES = {
    "tower": Stage(tower.loss, tower.batch, "^(vision_model|connector|digit_head)/", 4e-3, 1000),
    "decoder": Stage(reading.loss, reading.small_batch, "^text_model/", 4e-3, 1200, after="tower"),
    "whole": Stage(reading.loss, reading.batch, "^(vision_model|connector|text_model)/", 1.5e-3, 1200, after="decoder"),
    # A control, not a stage of the recipe: how much can be read from the global tile alone by weights that learned it?
    "global": Stage(reading.loss, reading.global_batch, "^(vision_model|connector|text_model)/", 4e-3, 500, "tower"),
}
