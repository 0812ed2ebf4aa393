"""What answers to chats are made with: a model's params, arranged for it, its config and its processor."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from multipatch_jax.config import ModelConfig
from multipatch_jax.encode import compile_all, warmup
from multipatch_jax.generate.chunks import chunk_sizes
from multipatch_jax.generate.engine import Chunk, Engine, admit, fork, release, start, step
from multipatch_jax.generate.grammar import Grammars
from multipatch_jax.generate.sampling import all_ids
from multipatch_jax.generate.slots import NEUTRAL
from multipatch_jax.generate.visual_tokens import VisualTokens
from multipatch_jax.nn import Compute, can_step, pack_decoder, resolve_compute, split_layers
from multipatch_jax.params import Params
from multipatch_jax.text import Processor, frame_config

COLUMNS = 256  # a cache has a multiple of so many, so that sums in blocks of `nn.linear.BLOCK` columns need no padding
SHORT = 512  # columns of the smallest cache, if the largest has twice as many; each further one has 4 times as many


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that answers, without any chat.

    Attributes:
      config: the model's.
      processor: of the same checkpoint.
      compute: how to compute, as it was asked for.
      max_length: most tokens of a prompt and its answer together.
      cache_dtype: of keys and values; None is that of the computation.
      eos_ids: ids that end an answer.
      encoder: params of the tower and the connector.
      decoder: the other params; with "packed", as `nn.pack_decoder` returns it, where compiled code runs the decoder,
        and elsewhere with "text_model" as `nn.split_layers` returns it.
      visual_tokens: those of images that were encoded lately.
      grammars: compiles grammars for the model's tokens.
    """

    config: ModelConfig
    processor: Processor
    compute: Compute
    max_length: int
    cache_dtype: str | None
    eos_ids: frozenset[int]
    encoder: Params
    decoder: Params
    visual_tokens: VisualTokens
    grammars: Grammars

    @property
    def embeddings(self) -> Float[Array, "V D"]:
        """The table of token embeddings."""
        return self.decoder["text_model"]["embed_tokens"]["embedding"]

    def engines(self, batch_size: int) -> tuple[Engine, ...]:
        """Return the engines of so many slots, of a few capacities; the last holds `max_length` tokens.

        A step reads all columns of its slots, so a short chat is answered faster in short ones.
        """
        assert self.config.text is not None
        compute = resolve_compute(self.compute, self.embeddings.dtype.name)
        capacities = [-(-self.max_length // COLUMNS) * COLUMNS]
        while 2 * (smaller := SHORT * 4 ** (len(capacities) - 1)) <= capacities[-1]:
            capacities.insert(-1, smaller)
        fixed = self.config.text, self.config.image_token_id, compute, batch_size
        cache_dtype, is_packed = self.cache_dtype or str(compute.dtype), "packed" in self.decoder
        return tuple(Engine(*fixed, capacity, cache_dtype, is_packed) for capacity in capacities)


def make_model(
    params: Params,
    config: ModelConfig,
    processor: Processor,
    compute: Compute,
    max_length: int,
    cache_dtype: str | None,
    batch_size: int,
    eos_ids: frozenset[int],
) -> Model:
    """Arrange checked params for so many slots; the other arguments are as in `Model`."""
    assert config.text is not None
    encoder = {name: params[name] for name in ("vision_model", "connector")}
    text = {name: value for name, value in params.items() if name in ("text_model", "lm_head")}
    table = params["text_model"]["embed_tokens"]["embedding"]
    decided = resolve_compute(compute, table.dtype.name)
    on_one_device = not isinstance(table, jax.Array) or len(table.devices()) == 1
    if decided.encoder == "native" and on_one_device and can_step(config.text, str(decided.dtype), batch_size, COLUMNS):
        decoder = text | {"packed": pack_decoder(text, config.text, decided.dtype)}
    else:
        decoder = split_layers(text)
    tokens = VisualTokens(encoder, config, compute)
    grammars = Grammars(processor.tokenizer, config.text.vocab_size, eos_ids)
    return Model(config, processor, compute, max_length, cache_dtype, eos_ids, encoder, decoder, tokens, grammars)


def compile_programs(model: Model, engines: Sequence[Engine], progress: bool) -> None:
    """Compile the moves of engines, and all that encodes images and videos; no program is executed."""
    compile_all((program for engine in engines for program in _moves(model, engine)), progress=progress)
    for config in (model.config, frame_config(model.config)):
        warmup(model.encoder, config=config, compute=model.compute, progress=progress)


def _moves(model: Model, engine: Engine) -> Iterator[Any]:
    """Lower the moves of an engine, one after the other."""
    slots, zero = jax.eval_shape(lambda: start(engine=engine)), np.array(0, np.int32)
    allowed = np.tile(all_ids(engine.text.vocab_size), (engine.batch_size, 1))
    yield start.lower(engine=engine)
    yield step.lower(model.decoder, slots, allowed, engine=engine)
    for size in chunk_sizes(engine.capacity):
        tokens = np.zeros((size, model.embeddings.shape[1]), model.embeddings.dtype)
        seen = np.zeros(engine.text.vocab_size, bool)
        ids = np.zeros(size, np.int32)
        chunk = Chunk(zero, zero, zero, np.array(False), ids, tokens, seen, NEUTRAL, allowed[0])
        for first in (True, False):
            yield admit.lower(model.decoder, slots, chunk, first=first, engine=engine)
    yield release.lower(slots, zero)
    yield fork.lower(slots)
