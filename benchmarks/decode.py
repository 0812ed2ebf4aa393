"""Measures how fast multipatch_jax and its peers answer on this CPU: `python -m benchmarks.decode`.

Needs the `bench` extra; without `xllamacpp` and `gguf` llama.cpp is left out. All systems run SmolVLM-256M's shapes on
the same random weights, in float32, one chat at a time, and take the most likely token each time. llama.cpp also runs
with its matrices in 8 bits. The measures:

* prefill: 512 tokens in, 1 token out
* first: 8 tokens in, 1 token out
* text: 8 tokens in, 64 tokens out; "decode" is what this takes more than "first", which is 63 tokens
* answer: a 12-megapixel JPEG and a question in, 32 tokens out

Each system has its own process and they take turns, with the machine's memory bandwidth measured in the same turns;
medians and ratios are compared. Prints a table and writes benchmarks/records/decode.json.
"""

import functools
import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.shared import bandwidth, turns
from benchmarks.shared.gguf_file import write_gguf
from benchmarks.shared.options import turns_parser
from benchmarks.shared.photo import photograph
from benchmarks.shared.records import write_record
from benchmarks.shared.turns import Turn
from benchmarks.shared.whole_checkpoint import make_whole_checkpoint

# Tokens (in, out); None is the photograph's.
MEASURES = {"prefill": (512, 1), "first": (8, 1), "text": (8, 64), "answer": (None, 32)}
QUESTION, PHOTO = "What is in this picture?", "photo.jpg"
PACKAGES = "jax jaxlib flax torch transformers numpy xllamacpp gguf".split()

# ---------------------------------------------------------------------------------------------------------------------
# The systems. Each reads the checkpoint from a folder, and its turn gives one answer.


def ours(measure: str, folder: Path) -> Turn:
    size, new = MEASURES[measure]
    generator = our_generator(folder)
    image = {"type": "image", "path": str(folder / PHOTO)}
    chat = [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]

    def turn() -> None:
        (answer,) = generator.generate([chat if size is None else "a" * size], max_new_tokens=new)
        assert len(answer.ids) == new
        assert size in (None, answer.num_prompt_tokens)

    return turn


@functools.cache
def our_generator(folder: Path) -> Any:
    import multipatch_jax as mp

    config, params = mp.from_pretrained(folder, parts="all")
    processor = mp.Processor.from_pretrained(folder)
    generator = mp.Generator(params, config=config, processor=processor, eos_ids=())  # no id ends an answer
    generator.warmup()
    return generator


def transformers(measure: str, folder: Path) -> Turn:
    import torch
    from PIL import Image

    size, new = MEASURES[measure]
    model, processor = their_model(folder)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]

    def turn() -> None:
        if size is None:
            text = processor.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            inputs = processor(text=text, images=[Image.open(folder / PHOTO)], return_tensors="pt")
        else:
            inputs = processor.tokenizer("a" * size, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        assert ids.shape[1] == inputs["input_ids"].shape[1] + new
        assert size in (None, inputs["input_ids"].shape[1])

    return turn


@functools.cache
def their_model(folder: Path) -> tuple[Any, Any]:
    """(model, processor)."""
    import torch
    from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    import multipatch_jax as mp
    import multipatch_reference as reference

    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)
    config, tokenizer = mp.presets.SMOLVLM_256M, PreTrainedTokenizerFast.from_pretrained(folder)
    tokens = config.tiling.tokens_per_tile
    return model, Idefics3Processor(reference.image_processor(config), tokenizer, image_seq_len=tokens)


def llama_cpp(measure: str, folder: Path, quantized: bool) -> Turn:
    size, new = MEASURES[measure]
    server = llama_cpp_server(folder, quantized)
    asked = {"prompt": "a" * size, "max_tokens": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}

    def turn() -> None:
        used = server.handle_completions(asked)["usage"]
        assert (used["prompt_tokens"], used["completion_tokens"]) == (size, new)

    return turn


@functools.cache
def llama_cpp_server(folder: Path, quantized: bool) -> Any:
    import xllamacpp  # pyright: ignore[reportMissingImports]  # only the `bench` extra installs it

    settings = xllamacpp.CommonParams()
    settings.model.path = str(folder / f"{'int8' if quantized else 'float32'}.gguf")
    write_gguf(folder, Path(settings.model.path), quantized)
    settings.n_ctx, settings.n_parallel, settings.verbosity = 2048, 1, 0
    return xllamacpp.Server(settings)


THEIRS = "transformers, sdpa"
SYSTEMS: dict[str, Callable[[str, Path], Turn]] = {"multipatch_jax": ours, THEIRS: transformers}
if all(map(importlib.util.find_spec, ("xllamacpp", "gguf"))):
    SYSTEMS["llama.cpp"] = functools.partial(llama_cpp, quantized=False)
    SYSTEMS["llama.cpp, 8 bits"] = functools.partial(llama_cpp, quantized=True)
TURNS = {
    f"{measure}, {system}": functools.partial(start, measure)
    for measure in MEASURES
    for system, start in SYSTEMS.items()
    if measure != "answer" or not system.startswith("llama.cpp")  # its file has no vision tower
}

# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    args = turns_parser(__doc__, rounds=7).parse_args()
    if args.worker:
        return turns.work(TURNS | bandwidth.MEMORY, *args.worker)
    if "llama.cpp" not in SYSTEMS:
        print("llama.cpp: not installed (pip install xllamacpp gguf)")
    together = [[name for name in TURNS if name.endswith(f", {system}")] for system in SYSTEMS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_whole_checkpoint(folder)
        photograph(3000, 4000).save(folder / PHOTO, quality=92)
        times = turns.take_turns("benchmarks.decode", [*TURNS, *bandwidth.MEMORY], folder, args.rounds, together)
    report(times)
    write_record("decode", filter(importlib.util.find_spec, PACKAGES), seconds=times)


def report(times: dict[str, list[float]]) -> None:
    """Prints the table."""
    print(f"{'':<34} {'seconds':>8} {'tokens/s':>9} {'x transformers':>15}")
    medians = {name: statistics.median(values) for name, values in times.items()}
    for system in SYSTEMS:
        medians[f"decode, {system}"] = medians[f"text, {system}"] - medians[f"first, {system}"]
    for name, median in medians.items():
        if name in bandwidth.MEMORY:
            print(f"{name:<34} {median:8.3f} {bandwidth.rate(median) / 1e9:9.1f} GB/s")
            continue
        measure = name.partition(", ")[0]
        size, new = MEASURES.get(measure, (0, MEASURES["text"][1] - 1))
        tokens = size if measure == "prefill" and size else new
        speed = medians[f"{measure}, {THEIRS}"] / median
        print(f"{name:<34} {median:8.3f} {tokens / median:9.1f} {speed:15.2f}")


if __name__ == "__main__":
    main()
