"""Measures what a grammar costs a generation: `python -m benchmarks.grammar`, in half a minute.

Needs the `text` and `grammar` extras. Makes a vocabulary as large as SmolVLM's, 49,280 tokens, of the sources of
Python's standard library. Three tables:

* what comes once: the tokenizer of a model, and each grammar
* a token: `Matcher.accept`, which finds the mask of the next token; along random answers
* a step: `sample` of the masked logits beside `sample` that knows of no masks
"""

import gc
import itertools
import re
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.shared.options import parser
from multipatch_jax.generate.grammar import Grammars
from multipatch_jax.generate.sampling import WORD, all_ids, pack_ids, sample
from multipatch_jax.generate.settings import GenerationSettings

VOCABULARY = 49280
RECORD = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "year": {"type": "integer", "minimum": 1000, "maximum": 2100},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 9},
        "kind": {"enum": ["letter", "invoice", "receipt", "drawing"]},
        "lines": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"text": {"type": "string"}, "price": {"type": ["number", "null"]}},
                "required": ["text", "price"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["title", "year", "tags", "kind", "lines"],
}
LARK = """start: expression
expression: product (("+" | "-") product)*
product: value (("*" | "/") value)*
value: NUMBER | NAME | "(" expression ")"
NUMBER: /[0-9]+(\\.[0-9]+)?/
NAME: /[a-z_]+/
"""
GRAMMARS: dict[str, Any] = {
    "JSON schema": RECORD,
    "any JSON": {},
    "regex, a date": re.compile(r"(19|20)\d\d-[01]\d-[0-3]\d"),
    "regex, any text": re.compile(r"(?s).*"),
    "Lark, arithmetic": LARK,
}


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = Path(sysconfig.get_paths()["stdlib"])
    sources = [path for path in sorted(folder.rglob("*.py")) if "-packages" not in str(path.relative_to(folder))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((path.read_text(encoding="utf-8", errors="replace") for path in sources), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def token_times(grammars: Grammars, grammar: Any, tokens: int) -> list[float]:
    """Seconds of each token of random answers, of 100 tokens at most; every token that is allowed is as likely."""
    chance, times = np.random.default_rng(0), list[float]()
    while len(times) < tokens:
        matcher = grammars.matcher(grammar)
        for _ in range(100):
            bits = np.unpackbits(matcher.allowed.view(np.uint8), bitorder="little")
            bits[:2] = 0  # what ends an answer
            if not bits.any():
                break
            token_id = int(chance.choice(np.flatnonzero(bits)))
            times.append(seconds(lambda matcher=matcher, token_id=token_id: matcher.accept(token_id)))
    return times


def step_times(rows: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of `sample`, greedy, without a mask and with masks; they take turns."""
    chance = np.random.default_rng(0)
    logits = jax.numpy.asarray(chance.normal(size=(rows, VOCABULARY)), "float32")
    one = GenerationSettings().sampling()
    sampling = type(one)(*(jax.numpy.full(rows, value) for value in one))
    positions, seen = jax.numpy.zeros(rows, "int32"), jax.numpy.zeros((rows, VOCABULARY), bool)
    some = pack_ids(np.flatnonzero(chance.random(VOCABULARY) < 0.5), VOCABULARY)
    assert VOCABULARY % WORD == 0
    every = jax.device_put(np.tile(all_ids(VOCABULARY), (rows, 1)))
    masks = {"no masks": None, "no row has a grammar": every, "every row has one": np.tile(some, (rows, 1))}
    times = {name: list[float]() for name in masks}
    for turn, (name, allowed) in itertools.product(range(rounds + 3), masks.items()):
        taken = seconds(
            lambda allowed=allowed: jax.block_until_ready(sample(logits, sampling, positions, seen, allowed))
        )
        if turn >= 3:
            times[name].append(taken)
    return times


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=2000, help="of each grammar")
    options.add_argument("--rounds", type=int, default=300, help="samples of each kind")
    args = options.parse_args()
    grammars = Grammars(make_tokenizer(), VOCABULARY, (0, 1))
    for name, grammar in {"the tokenizer, and a first grammar": re.compile("a"), **GRAMMARS}.items():
        print(f"{name:<36} {seconds(lambda grammar=grammar: grammars.matcher(grammar)) * 1e3:8.1f} ms")
    print(f"\n{'a token':<36} {'median':>8} {'99 %':>8} {'most':>8}")
    gc.disable()
    for name, grammar in GRAMMARS.items():
        times = np.array(token_times(grammars, grammar, args.tokens)) * 1e3
        print(f"{name:<36} {np.median(times):8.3f} {np.quantile(times, 0.99):8.3f} {times.max():8.3f} ms")
    print(f"\n{'a step: sample':<36} {'median':>8}")
    for rows in (1, 8):
        for name, times in step_times(rows, args.rounds).items():
            print(f"{f'{rows} rows, {name}':<36} {statistics.median(times) * 1e3:8.3f} ms")


if __name__ == "__main__":
    main()
