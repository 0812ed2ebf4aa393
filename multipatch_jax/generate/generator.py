"""Answer chats: any number at a time, one as a stream, or one after another in a session."""

from collections.abc import Generator as Stream
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from multipatch_jax.arguments import require_integer, require_positive, require_tree, require_type
from multipatch_jax.checkpoint import find_folder, from_pretrained
from multipatch_jax.config import ModelConfig
from multipatch_jax.generate.answer import Answer
from multipatch_jax.generate.eos import eos_ids_of_tokenizer, read_eos_ids
from multipatch_jax.generate.explain import explain
from multipatch_jax.generate.model import compile_programs, make_model
from multipatch_jax.generate.request import Request, read_requests
from multipatch_jax.generate.run import HeldSlots, new_held_slots, run
from multipatch_jax.generate.session import Session, begin_session
from multipatch_jax.nn import Compute
from multipatch_jax.params import PARTS, Params, check_params, flatten, param_shapes
from multipatch_jax.text import Chat, Processor


class Generator:
    """Answers chats about images, with a fixed number of slots, each of which holds a chat at a time.

    A chat that waits is admitted as soon as a slot is free. An answer does not depend on the chats in the other slots.
    The longest chat of a call decides the size of the slots, and another size may round otherwise.
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
        cache_dtype: Literal["bfloat16"] | None = None,
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
          cache_dtype: of the keys and values that are kept of each token; None is that of the computation. "bfloat16"
            halves the memory that the chats of a float32 model take, and rounds what is kept to 8 bits.
          eos_ids: ids that end an answer, such as those of a checkpoint's generation_config.json, which
            `Generator.from_pretrained` reads. None is the processor's "eos_token".

        Raises:
          ValueError: an argument does not fit, or `params` lack a part.
        """
        require_type("config", config, ModelConfig)
        require_type("processor", processor, Processor)
        max_length = require_positive("max_length", max_length, "tokens")
        batch_size = require_positive("batch_size", batch_size, "slots")
        if cache_dtype not in (None, "bfloat16"):
            raise ValueError(f'cache_dtype must be None or "bfloat16", got {cache_dtype!r:.60}.')
        if config.text is None or config.embedding_size is not None:
            raise ValueError("config must be that of a model that generates text, got one without a language model.")
        _require_parts(params, config)
        eos_ids = eos_ids_of_tokenizer(processor) if eos_ids is None else eos_ids
        if not isinstance(eos_ids, Sequence):
            raise ValueError(f"eos_ids must be a list of ids or None, got {eos_ids!r:.60}.")
        eos = frozenset(require_integer("An id of eos_ids", one, 0) for one in eos_ids)
        self._model = make_model(params, config, processor, compute, max_length, cache_dtype, batch_size, eos)
        self._engines = self._model.engines(batch_size)
        self._held: dict[int, HeldSlots] = {}  # by capacity, between two calls; a call takes them, so none are shared

    @property
    def config(self) -> ModelConfig:
        """The model's config."""
        return self._model.config

    @property
    def processor(self) -> Processor:
        """The processor of the model's checkpoint."""
        return self._model.processor

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        max_length: int = 2048,
        batch_size: int = 1,
        compute: Compute = Compute(),
        cache_dtype: Literal["bfloat16"] | None = None,
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
          max_length, batch_size, compute, cache_dtype: as in `Generator`.
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
            cache_dtype=cache_dtype,
            eos_ids=read_eos_ids(folder, processor),
        )

    def warmup(self, *, progress: bool = False) -> None:
        """Compile every program of `generate` and `stream`, so that nothing compiles in them later.

        With one slot, sessions run the same programs; `explain` has programs of its own. No program is executed. As in
        `encode.warmup`, JAX's persistent compilation cache may have the programs already.

        Args:
          progress: whether to show bars that count programs.
        """
        compile_programs(self._model, self._engines, progress)

    def generate(
        self,
        chats: Sequence[str | Chat],
        images: Sequence[Any] = (),
        *,
        logprobs: bool = False,
        progress: bool = False,
        **settings: Any,
    ) -> list[Answer]:
        """Answer any number of chats.

        All images are loaded before the first is encoded.

        Args:
          chats: a list of texts, with one `<image>` for each of their images, and of chats.
          images: those of the chats, in the order of their places; a flat list, or a list for each chat.
          logprobs: whether answers have the logprobs of their tokens.
          progress: whether to show a bar that counts answers and tokens.
          settings: fields of `GenerationSettings`, which hold for every chat; `seed` and `grammar` may be lists, one
            for each chat. By default the most likely tokens are taken, 64 at most.

        Returns:
          An answer for each chat, in order.

        Raises:
          ValueError: an argument does not fit; or logits are not finite, or a grammar cannot go on.
          ImportError: there is a grammar, and its extra is not installed.
          MemoryError: the device has too little memory for the slots, or for the tiles of an image.
          ImageError, FileNotFoundError: as `Processor`.
        """
        requests = read_requests(self._model, chats, images, settings)
        # miniters=0 lets the bar show new tokens though no answer is finished.
        with tqdm(total=len(requests), desc="answering", unit=" chats", disable=not progress, miniters=0) as bar:
            for tokens, (request, _) in enumerate(self._run(requests), 1):
                bar.set_postfix_str(f"{tokens} tokens", refresh=False)
                bar.update(request.finish_reason is not None)
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
        (request,) = read_requests(self._model, [chat], images, settings)

        def pieces() -> Stream[str, None, Answer]:
            for _, piece in self._run([request]):
                if piece:
                    yield piece
            return request.answer(logprobs)

        return pieces()

    def session(self, images: Sequence[Any] = ()) -> Session:
        """Begin a chat about images, which are encoded and read once, here.

        A session has a cache of its own, for `max_length` tokens. Its programs are those of a generator with one
        slot; with more slots, the first session compiles them.

        Args:
          images: what the first question is about; anything that `load_image` takes.

        Raises:
          ValueError: the checkpoint has no chat template, or the images leave no room for a question.
          MemoryError: the device has too little memory for `max_length` tokens.
          ImageError, FileNotFoundError: as `load_image`, with a note of the image's index.
        """
        return begin_session(self._model, images)

    def explain(
        self, chat: str | Chat, images: Sequence[Any], answer: Answer, *, token: int | None = None
    ) -> list[Float32[np.ndarray, " tokens"]]:
        """Compute what an answer looked at: how strongly its log-probability depends on each visual token.

            (answer,) = generator.generate([chat], images)
            mp.plot.plot_saliency(images, generator.explain(chat, images, answer), generator.config)

        `token_saliency` says what the numbers are. The answer of a session is explained with `session.chat[:-1]` and
        all of its images. A program is compiled at the first call, and for chats that are more than twice as long.

        Args:
          chat, images: what was answered, as they were given to `generate`.
          answer: what this generator answered to them.
          token: the index of one of `answer.ids`; None is the whole answer.

        Returns:
          For each image or video, in the order of their places: a number of at least 0 for each of its visual tokens.

        Raises:
          ValueError: an argument does not fit, or the answer is not to this chat.
          ImageError, FileNotFoundError: as `Processor`.
        """
        return explain(self._model, chat, images, answer, token)

    def _run(self, requests: Sequence[Request]) -> Iterator[tuple[Request, str]]:
        longest = max(len(request.prompt) + request.limit for request in requests)
        engine = next(engine for engine in self._engines if engine.capacity >= longest)
        held = self._held.pop(engine.capacity, None) or new_held_slots(engine)
        yield from run(self._model, held, requests)
        self._held[engine.capacity] = held


def _require_parts(params: Params, config: ModelConfig) -> None:
    """Raise a ValueError unless `params` are all parts of the model; the error names parts that are not there."""
    require_tree("params", params)
    paths = flatten(params).keys()
    missing = [part for part in PARTS if not paths & param_shapes(config, (part,)).keys()]
    if missing:
        raise ValueError(f'params must hold all parts of the model, got none of {missing}: load them with parts="all".')
    check_params(params, config, PARTS)
