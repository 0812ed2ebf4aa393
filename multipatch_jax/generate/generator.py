"""Answer chats: the host's loop over the engine's slots."""

import collections
import concurrent.futures
import os
import time
from collections.abc import Generator as Stream
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt32

from multipatch_jax.arguments import require_integer, require_positive, require_tree, require_type
from multipatch_jax.checkpoint import find_folder, from_pretrained
from multipatch_jax.config import ModelConfig
from multipatch_jax.encode import encode_images, warmup
from multipatch_jax.generate.answer import Answer
from multipatch_jax.generate.chunks import chunk_sizes, prompt_chunks
from multipatch_jax.generate.engine import Chunk, Engine, Token, admit, release, start, step
from multipatch_jax.generate.eos import read_eos_ids
from multipatch_jax.generate.grammar import Grammars
from multipatch_jax.generate.request import Request, read_requests
from multipatch_jax.generate.sampling import pack_ids
from multipatch_jax.generate.slots import NEUTRAL, Slots
from multipatch_jax.nn import Compute, resolve_compute, split_layers
from multipatch_jax.params import PARTS, Params, check_params, flatten, param_shapes
from multipatch_jax.text import Chat, Processor, encode_frames, frame_config

COLUMNS = 256  # a cache has a multiple of so many, so that sums in blocks of `nn.linear.BLOCK` columns need no padding


class Generator:
    """Answers chats about images, with a fixed number of slots, each of which holds a chat at a time.

    A chat that waits is admitted as soon as a slot is free. What is answered to a chat does not depend on the chats in
    the other slots.
    """

    def __init__(
        self,
        params: Params,
        *,
        config: ModelConfig,
        processor: Processor,
        max_length: int = 2048,
        batch_size: int = 1,
        compute: Compute = Compute(),
        eos_ids: Sequence[int] | None = None,
    ):
        """Check the model, and arrange its params.

        Args:
          params: of all parts, as `from_pretrained(name, parts="all")` loads them.
          config: the model's.
          processor: of the same checkpoint.
          max_length: most tokens of a prompt and its answer together.
          batch_size: number of slots, which is how many chats are answered at a time.
          compute: how to compute.
          eos_ids: ids that end an answer, such as those of a checkpoint's generation_config.json, which
            `Generator.from_pretrained` reads. None is the processor's "eos_token".

        Raises:
          ValueError: an argument does not fit, or `params` lack a part.
        """
        require_type("config", config, ModelConfig)
        require_type("processor", processor, Processor)
        self._max_length = require_positive("max_length", max_length, "tokens")
        batch_size = require_positive("batch_size", batch_size, "slots")
        if config.text is None or config.embedding_size is not None:
            raise ValueError("config must be that of a model that generates text, got one without a language model.")
        _require_parts(params, config)
        eos_ids = _own_eos(processor) if eos_ids is None else eos_ids
        if not isinstance(eos_ids, Sequence):
            raise ValueError(f"eos_ids must be a list of ids or None, got {eos_ids!r:.60}.")
        self._eos_ids = frozenset(require_integer("An id of eos_ids", one, 0) for one in eos_ids)
        dtype = params["text_model"]["embed_tokens"]["embedding"].dtype.name
        decided = resolve_compute(compute, dtype)
        capacity = -(-self._max_length // COLUMNS) * COLUMNS
        self._engine = Engine(config.text, config.image_token_id, decided, batch_size, capacity)
        self.config, self.processor = config, processor
        self._how = {"config": config, "compute": compute}
        self._encoder = {name: params[name] for name in ("vision_model", "connector")}
        decoder = {name: value for name, value in params.items() if name in ("text_model", "lm_head")}
        self._decoder = split_layers(decoder)
        self._grammars = Grammars(processor.tokenizer, config.text.vocab_size, self._eos_ids)
        self._all_ids = ~pack_ids((), config.text.vocab_size)
        self._free = jax.device_put(np.tile(self._all_ids, (batch_size, 1)))  # of a step without any grammar
        self._slots: Slots | None = None  # between two calls; a call takes them, so that two never share them

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        max_length: int = 2048,
        batch_size: int = 1,
        compute: Compute = Compute(),
        dtype: Any = None,
        progress: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> "Generator":
        """Load config, params and processor, and the ids that end an answer, of a folder or hub id.

        Args:
          name_or_path: a hub id, a folder in Hugging Face's layout, or one of `save_pretrained`.
          max_length, batch_size, compute: as in `Generator`.
          dtype, progress, revision, token, cache_dir, local_files_only: as in `mp.from_pretrained`.

        Raises:
          FileNotFoundError, CheckpointError, ValueError, ImportError: as `mp.from_pretrained` and
            `Processor.from_pretrained`.
        """
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        folder = find_folder(name_or_path, PARTS, **hub)
        processor = Processor.from_pretrained(folder)
        config, params = from_pretrained(folder, parts=PARTS, dtype=dtype, progress=progress)
        return cls(
            params,
            config=config,
            processor=processor,
            max_length=max_length,
            batch_size=batch_size,
            compute=compute,
            eos_ids=read_eos_ids(folder, processor),
        )

    def warmup(self) -> None:
        """Compile every program, so that nothing compiles later, whatever the chats, images, videos and settings.

        No program is executed. As in `encode.warmup`, JAX's persistent compilation cache may have the programs already.
        """
        engine, slots = self._engine, jax.eval_shape(lambda: start(engine=self._engine))
        table, programs = self._decoder["text_model"]["embed_tokens"]["embedding"], [start.lower(engine=engine)]
        zero = np.array(0, np.int32)
        for size in chunk_sizes(engine.capacity):
            tokens = np.zeros((size, table.shape[1]), table.dtype)
            chunk = Chunk(zero, zero, zero, np.array(False), np.zeros(size, np.int32), tokens, NEUTRAL, self._all_ids)
            for first in (True, False):
                programs.append(admit.lower(self._decoder, slots, chunk, first=first, engine=engine))
        programs += [step.lower(self._decoder, slots, self._free, engine=engine), release.lower(slots, zero)]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "multipatch") as pool:
            for compiling in [pool.submit(program.compile) for program in programs]:
                compiling.result()
        for config in (self.config, frame_config(self.config)):
            warmup(self._encoder, config=config, compute=self._how["compute"])

    def generate(
        self,
        chats: Sequence[str | Chat],
        images: Sequence[Any] = (),
        *,
        logprobs: bool = False,
        **settings: Any,
    ) -> list[Answer]:
        """Answer any number of chats.

        All images are loaded before the first is encoded.

        Args:
          chats: a list of texts, with one `<image>` for each of their images, and of chats.
          images: those of the chats, in the order of their places; a flat list, or a list for each chat.
          logprobs: whether answers have the logprobs of their tokens.
          settings: fields of `GenerationSettings`, which hold for every chat; `seed` and `grammar` may be lists, one
            for each chat. By default the most likely tokens are taken, 64 at most.

        Returns:
          An answer for each chat, in order.

        Raises:
          ValueError: an argument does not fit; or logits are not finite, or a grammar cannot go on.
          ImportError: there is a grammar, and its extra is not installed.
          ImageError, FileNotFoundError: as `Processor`.
        """
        requests = self._read(chats, images, settings)
        for _ in self._run(requests):
            pass
        return [request.answer(logprobs) for request in requests]

    def stream(
        self, chat: str | Chat, images: Sequence[Any] = (), *, logprobs: bool = False, **settings: Any
    ) -> Stream[str, None, Answer]:
        """Answer one chat, and yield the answer's text as it grows; the arguments are those of `generate`.

        The arguments are checked by the call itself.

        Yields:
          Whole characters, which add up to the text of the answer. What may become a stop is held back.

        Returns:
          The answer: the value of the `StopIteration` that ends the stream, or of `yield from`.
        """
        (request,) = self._read([chat], images, settings)

        def pieces() -> Stream[str, None, Answer]:
            for _, piece in self._run([request]):
                if piece:
                    yield piece
            return request.answer(logprobs)

        return pieces()

    def _read(self, chats: Any, images: Sequence[Any], settings: dict[str, Any]) -> list[Request]:
        return read_requests(
            chats,
            images,
            settings,
            config=self.config,
            processor=self.processor,
            max_length=self._max_length,
            eos_ids=self._eos_ids,
            grammars=self._grammars,
        )

    def _run(self, requests: Sequence[Request]) -> Iterator[tuple[Request, str]]:
        """Work through requests, and yield each with its new text, "" included, whenever it has a new token."""
        slots, self._slots = self._slots, None
        if slots is None:
            slots = start(engine=self._engine)
        waiting, running = collections.deque(requests), dict[int, Request]()  # running: by slot
        while waiting or running:
            free = next((row for row in range(self._engine.batch_size) if row not in running), None)
            if waiting and free is not None:
                request = running[free] = waiting.popleft()
                slots, token = self._admit(slots, free, request)
                arrived = [(free, request, 0)]
            else:
                slots, token = step(self._decoder, slots, self._allowed(running), engine=self._engine)
                arrived = [(row, request, row) for row, request in running.items()]
            ids, logprobs = jax.device_get(token)
            for row, request, place in arrived:
                yield request, request.take(int(ids[place]), float(logprobs[place]))
                if request.finish_reason is not None:
                    slots = release(slots, np.int32(row))
                    del running[row]
        self._slots = slots

    def _allowed(self, running: Mapping[int, Request]) -> UInt32[Any, "B words"]:
        """Return the ids that the next token of each slot may have."""
        matchers = {row: request.matcher for row, request in running.items() if request.matcher is not None}
        if not matchers:
            return self._free
        allowed = np.tile(self._all_ids, (self._engine.batch_size, 1))
        for row, matcher in matchers.items():
            allowed[row] = matcher.allowed
        return allowed

    def _admit(self, slots: Slots, row: int, request: Request) -> tuple[Slots, Token]:
        """Encode a request's images, and put its prompt into a slot."""
        began = time.perf_counter()
        visual_tokens = self._encode(request)
        encoded = time.perf_counter()
        places = request.prompt == self._engine.image_token_id
        sampling, sizes = request.settings.sampling(), chunk_sizes(self._engine.capacity)
        allowed = self._all_ids if request.matcher is None else request.matcher.allowed
        token = None
        for chunk in prompt_chunks(row, request.prompt, places, visual_tokens, sampling, allowed, sizes):
            first = bool(chunk.start == 0)
            slots, token = admit(self._decoder, slots, chunk, first=first, engine=self._engine)
        assert token is not None
        jax.block_until_ready(token)
        request.seconds |= {"encode": encoded - began, "prefill": time.perf_counter() - encoded}
        return slots, token

    def _encode(self, request: Request) -> Float[np.ndarray, "tokens D"]:
        """Return the visual tokens of a request, in the order of their places, and let go of its pixels."""
        table = self._decoder["text_model"]["embed_tokens"]["embedding"]
        sources, request.sources = request.sources, []
        of_images = iter(encode_images(self._encoder, [one for kind, one in sources if kind == "image"], **self._how))
        of_videos = (encode_frames(self._encoder, one, **self._how) for kind, one in sources if kind == "video")
        tokens = [next(of_images if kind == "image" else of_videos) for kind, _ in sources]
        rows = [one.reshape(-1, table.shape[1]) for one in tokens]
        return np.concatenate([np.zeros((0, table.shape[1]), table.dtype), *rows]).astype(table.dtype)


def _require_parts(params: Params, config: ModelConfig) -> None:
    """Raise a ValueError unless `params` are all parts of the model; the error names parts that are not there."""
    require_tree("params", params)
    paths = flatten(params).keys()
    missing = [part for part in PARTS if not paths & param_shapes(config, (part,)).keys()]
    if missing:
        raise ValueError(f'params must hold all parts of the model, got none of {missing}: load them with parts="all".')
    check_params(params, config, PARTS)


def _own_eos(processor: Processor) -> tuple[int, ...]:
    """Return the id of the processor's "eos_token", or nothing."""
    token_id = processor.tokenizer.token_to_id(processor.special_tokens.get("eos_token", ""))
    return () if token_id is None else (token_id,)
