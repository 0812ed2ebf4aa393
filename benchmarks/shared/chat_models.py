"""Models that answer chats, ours and transformers', of a folder that `whole_checkpoint` wrote; each is loaded once."""

import functools
from pathlib import Path
from typing import Any


@functools.cache
def our_generator(folder: Path, dtype: str) -> Any:
    """Our generator, compiled."""
    import multipatch_jax as mp

    config, params = mp.from_pretrained(folder, parts="all", dtype=dtype)
    processor = mp.Processor.from_pretrained(folder)
    generator = mp.Generator(params, config=config, processor=processor, eos_ids=())  # no id ends an answer
    generator.warmup()
    return generator


@functools.cache
def their_model(folder: Path, dtype: str) -> tuple[Any, Any]:
    """(model, processor) of transformers."""
    import torch
    from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    import multipatch_jax as mp
    import multipatch_reference as reference

    settings = {"attn_implementation": "sdpa", "dtype": getattr(torch, dtype)}
    model = AutoModelForImageTextToText.from_pretrained(folder, **settings)
    config, tokenizer = mp.presets.SMOLVLM_256M, PreTrainedTokenizerFast.from_pretrained(folder)
    tokens = config.tiling.tokens_per_tile
    return model, Idefics3Processor(reference.image_processor(config), tokenizer, image_seq_len=tokens)
