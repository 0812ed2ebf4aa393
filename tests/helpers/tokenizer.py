"""A byte-level tokenizer with SmolVLM's special tokens at their real ids, in place of the published one."""

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from examples.reader.model import CHAT_TEMPLATE  # SmolVLM's

IMAGE = 49190  # the id of <image>


def special_tokens() -> dict[str, int]:
    tokens = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<global-img>": 49152}
    tokens |= {f"<row_{r}_col_{c}>": 49152 + (r - 1) * 6 + c for r in range(1, 7) for c in range(1, 7)}
    return tokens | {"<fake_token_around_image>": 49189, "<image>": IMAGE, "<end_of_utterance>": 49279}


SETTINGS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}


def _make() -> Tokenizer:
    special = special_tokens()
    by_id = {index: token for token, index in special.items()}
    ordinary = iter([*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"])  # Ċ is the line break
    vocabulary = [by_id.get(index) or next(ordinary, f"<filler_{index}>") for index in range(49280)]
    model = models.BPE({token: index for index, token in enumerate(vocabulary)}, [("Ċ", "Ċ")])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    for token, index in special.items():
        assert tokenizer.token_to_id(token) == index
    return tokenizer


def make_tokenizer() -> Any:
    """transformers' object; its `save_pretrained` writes the files that `mp.Processor` reads."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=_make(), chat_template=CHAT_TEMPLATE, **SETTINGS)


def save_tokenizer(folder: Path) -> None:
    """Writes the files that `mp.Processor` reads, without transformers."""
    _make().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


cached_tokenizer = functools.cache(make_tokenizer)  # one object for all tests that do not change it
