"""The systems of `benchmarks.gpu` that write: our Generator and transformers, some chats at a time.

A turn of "prefill" reads each chat's prompt and writes one token; a turn of "answer" writes `Case.written` tokens.
"""

import functools
from pathlib import Path
from typing import Any

from benchmarks.shared.gpu_case import BATCHES, case_of, torch_device, wait_for_torch
from benchmarks.shared.turns import System, Turn

MEASURES = ("prefill", "answer")
OURS, SDPA, COMPILED = "multipatch_jax", "transformers, sdpa", "transformers, torch.compile"


def _written(measure: str, folder: Path) -> int:
    return 1 if measure == "prefill" else case_of(folder).written


@functools.cache
def _generator(folder: Path, batch_size: int) -> Any:
    import multipatch_jax as mp

    case = case_of(folder)
    config, params = mp.from_pretrained(folder, parts="all", dtype="bfloat16")
    processor, length = mp.Processor.from_pretrained(folder), case.prompt + case.written
    return mp.Generator(  # no id ends an answer
        params, config=config, processor=processor, max_length=length, batch_size=batch_size, eos_ids=()
    )


def ours(folder: Path, measure: str, batch_size: int) -> Turn:
    generator, prompt, written = _generator(folder, batch_size), case_of(folder).prompt, _written(measure, folder)

    def turn() -> None:
        answers = generator.generate(["a" * prompt] * batch_size, max_new_tokens=written)
        assert [(answer.num_prompt_tokens, len(answer.ids)) for answer in answers] == [(prompt, written)] * batch_size

    return turn


@functools.cache
def _model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    settings = {"attn_implementation": "sdpa", "dtype": torch.bfloat16}
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, **settings)
    return model.to(torch_device()).eval()


def transformers(folder: Path, measure: str, batch_size: int, compiled: bool) -> Turn:
    import torch
    from tokenizers import Tokenizer

    model, written = _model(folder), _written(measure, folder)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a" * case_of(folder).prompt).ids
    inputs = torch.tensor([ids] * batch_size, device=torch_device())
    # With a static cache, transformers compiles the step of a token by itself where there is a GPU.
    how = {"cache_implementation": "static"} if compiled else {}

    def turn() -> None:
        with torch.inference_mode():
            out = model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=written,
                min_new_tokens=written,
                do_sample=False,
                **how,
            )
        wait_for_torch()
        assert out.shape == (batch_size, len(ids) + written)

    return turn


_START = {
    OURS: ours,
    SDPA: functools.partial(transformers, compiled=False),
    COMPILED: functools.partial(transformers, compiled=True),
}


def turn_of(measure: str, batch_size: int, name: str) -> str:
    """The name of a system's turn."""
    return f"{measure}, {batch_size} chats, {name}"


SYSTEMS: dict[str, System] = {
    turn_of(measure, batch_size, name): functools.partial(start, measure=measure, batch_size=batch_size)
    for name, start in _START.items()
    for batch_size in BATCHES
    for measure in MEASURES
}
# Ours compiles for each number of slots, and transformers' step for each batch: so each has a process for itself.
PROCESSES = [[turn_of(measure, batch, name) for measure in MEASURES] for name in (OURS, COMPILED) for batch in BATCHES]
PROCESSES.append([turn_of(measure, batch, SDPA) for batch in BATCHES for measure in MEASURES])
