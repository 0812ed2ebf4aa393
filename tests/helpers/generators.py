"""A generator of the small model that the tests of answers share."""

from typing import Any

import multipatch_jax as mp


def make_generator(talker: Any, **options: Any) -> mp.Generator:
    """Three slots of 640 tokens, in which no id ends an answer; `talker` is the fixture."""
    choice = {"max_length": 640, "batch_size": 3, "eos_ids": ()} | options
    return mp.Generator(talker.params, config=talker.config, processor=talker.processor, **choice)
