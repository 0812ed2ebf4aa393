"""Measures how fast multipatch_jax and its peers read and write text on this CPU: `python -m benchmarks.decode`.

Needs the `bench` extra; without `xllamacpp` and `gguf` llama.cpp is left out. All systems run SmolVLM-256M's language
model on the same random weights, one chat at a time, and take the most likely token each time. The measures:

* prefill: 900 tokens in, 1 token out
* text: 900 tokens in, 65 tokens out; "decode" is what this takes more than "prefill", which is 64 tokens

Each system has its own process and they take turns. Writing a token reads all weights and what the cache holds, so its
ceiling is the machine's memory bandwidth, which is measured before every system's turns: it may double or halve within
a minute. "of memory" is the rate at which a system reads weights and cache, divided by that bandwidth. Prints a table
of medians and writes benchmarks/records/decode.json.
"""

import functools
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.shared import bandwidth, turns
from benchmarks.shared.chat_models import our_generator, their_model
from benchmarks.shared.gguf_file import write_gguf
from benchmarks.shared.options import turns_parser
from benchmarks.shared.records import write_record
from benchmarks.shared.turns import Turn
from benchmarks.shared.whole_checkpoint import make_whole_checkpoint

PROMPT = 900
MEASURES = {"prefill": 1, "text": 65}  # new tokens
WRITTEN = MEASURES["text"] - MEASURES["prefill"]
PACKAGES = "jax jaxlib flax torch transformers numpy xllamacpp gguf".split()

# ---------------------------------------------------------------------------------------------------------------------
# The systems. Each reads the checkpoint from a folder, and its turn gives one answer.


def ours(measure: str, folder: Path, dtype: str) -> Turn:
    generator, new = our_generator(folder, dtype), MEASURES[measure]

    def turn() -> None:
        (answer,) = generator.generate(["a" * PROMPT], max_new_tokens=new)
        assert (answer.num_prompt_tokens, len(answer.ids)) == (PROMPT, new)

    return turn


def transformers(measure: str, folder: Path, dtype: str) -> Turn:
    import torch

    (model, processor), new = their_model(folder, dtype), MEASURES[measure]

    def turn() -> None:
        inputs = processor.tokenizer("a" * PROMPT, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        assert ids.shape[1] == PROMPT + new

    return turn


def llama_cpp(measure: str, folder: Path, dtype: str) -> Turn:
    server, new = llama_cpp_server(folder, dtype), MEASURES[measure]
    asked = {"prompt": "a" * PROMPT, "max_tokens": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}

    def turn() -> None:
        used = server.handle_completions(asked)["usage"]
        assert (used["prompt_tokens"], used["completion_tokens"]) == (PROMPT, new)

    return turn


@functools.cache
def llama_cpp_server(folder: Path, dtype: str) -> Any:
    import xllamacpp  # pyright: ignore[reportMissingImports]  # only the `bench` extra installs it

    settings = xllamacpp.CommonParams()
    settings.model.path = str(folder / f"{dtype}.gguf")
    write_gguf(folder, Path(settings.model.path), dtype)
    settings.n_ctx, settings.n_parallel, settings.verbosity = 2048, 1, 0
    return xllamacpp.Server(settings)


SYSTEMS: dict[tuple[str, str], Callable[[str, Path], Turn]] = {  # by name, and how the weights are stored
    (name, dtype): functools.partial(start, dtype=dtype)
    for dtype in ("float32", "bfloat16", "int8")
    for name, start in {"multipatch_jax": ours, "llama.cpp": llama_cpp, "transformers": transformers}.items()
    if name == "llama.cpp" or dtype != "int8"
    if name != "llama.cpp" or all(map(importlib.util.find_spec, ("xllamacpp", "gguf")))
}
BYTES = {"float32": 4, "bfloat16": 2, "int8": 34 / 32}  # of a weight; 32 of llama.cpp's 8-bit weights share a scale
PROBES: dict[str, turns.System] = {name: functools.cache(start) for name, start in bandwidth.MEMORY.items()}
TURNS: dict[str, turns.System] = {}
for (name, dtype), system in SYSTEMS.items():
    TURNS |= {f"{probe}, {name}, {dtype}": start for probe, start in PROBES.items()}
    TURNS |= {f"{measure}, {name}, {dtype}": functools.partial(system, measure) for measure in MEASURES}

# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    args = turns_parser(__doc__, rounds=7).parse_args()
    if args.worker:
        return turns.work(TURNS, *args.worker)
    if ("llama.cpp", "float32") not in SYSTEMS:
        print("llama.cpp: not installed (pip install xllamacpp gguf)")
    together = [[f"{measure}, {name}, {dtype}" for measure in MEASURES] for name, dtype in SYSTEMS]
    together += [[turn for turn in TURNS if turn.startswith(probe)] for probe in PROBES]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_whole_checkpoint(folder)
        times = turns.take_turns("benchmarks.decode", TURNS, folder, args.rounds, together)
    report(times)
    write_record("decode", filter(importlib.util.find_spec, PACKAGES), seconds=times)


def report(times: Mapping[str, list[float]]) -> None:
    """Prints the table."""
    rounds = {system: _rounds(times, *system) for system in SYSTEMS}
    heads = "prefill", "decode", "memory", "of", "prefill", "decode", "prefill", "decode"
    units = "tok/s", "tok/s", "GB/s", "memory", *["x transf."] * 2, *["x llama"] * 2
    for line in (heads, units):
        print(" " * 24, *(f"{word:>9}" for word in line))
    for (name, dtype), own in rounds.items():
        prefill, decode, memory = (statistics.median(values) for values in zip(*own, strict=True))
        of_memory = statistics.median(_bytes_of_a_token(name, dtype) * written / rate for _, written, rate in own)
        cells = [f"{prefill:9.0f}", f"{decode:9.1f}", f"{memory / 1e9:9.1f}", f"{of_memory:9.2f}"]
        for peer in ("transformers", "llama.cpp"):
            pairs = list(zip(own, rounds.get((peer, dtype), ()), strict=False))
            cells += [f"{statistics.median(a[i] / b[i] for a, b in pairs):9.2f}" if pairs else " " * 9 for i in (0, 1)]
        print(f"{name:<14} {dtype:<9}", *cells)


def _rounds(times: Mapping[str, list[float]], name: str, dtype: str) -> list[tuple[float, float, float]]:
    """Tokens a second of prefill and of decoding, and bytes a second of the memory, in each round."""
    prefill, text, *probes = (times[f"{measure}, {name}, {dtype}"] for measure in (*MEASURES, *PROBES))
    memory = [bandwidth.rate(min(seconds)) for seconds in zip(*probes, strict=True)]
    return [
        (PROMPT / first, WRITTEN / (whole - first), rate)
        for first, whole, rate in zip(prefill, text, memory, strict=True)
    ]


def _bytes_of_a_token(name: str, dtype: str) -> float:
    """What one token reads: the layers' and the head's weights, and the cache, of which llama.cpp's is float16."""
    import multipatch_jax as mp

    text = mp.presets.SMOLVLM_256M.text
    assert text is not None
    queries, keys = (count * text.head_dim for count in (text.num_attention_heads, text.num_key_value_heads))
    layer = text.hidden_size * (2 * queries + 2 * keys + 3 * text.intermediate_size)
    weights = text.num_hidden_layers * layer + text.vocab_size * text.hidden_size
    cached = text.num_hidden_layers * 2 * keys * (PROMPT + WRITTEN / 2)
    return BYTES[dtype] * weights + (4 if dtype == "float32" and name != "llama.cpp" else 2) * cached


if __name__ == "__main__":
    main()
