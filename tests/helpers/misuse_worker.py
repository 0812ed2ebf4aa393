"""Calls public functions with one wrong argument at a time, and prints each error that is not ours.

Run as a process of its own, because the tests' own type checks would refuse most of these arguments first.
"""

import inspect
import tempfile
import traceback
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import multipatch_jax as mp
from tests.helpers.language import language_batch
from tests.helpers.models import TINY, TINY_SMOLVLM, random_params
from tests.helpers.tokenizer import save_tokenizer

JUNK: list[Any] = [
    None, -1, 0, 2.5, float("nan"), 10**9, True, "junk", "(", b"junk", [], [1], {}, {"a": 1}, object(), np.zeros(3),
    np.zeros((2, 3, 3), np.int64), np.float32(1), TINY, mp.Compute, jax.ShapeDtypeStruct((3,), np.float32),
]  # fmt: skip
OURS = (ValueError, FileNotFoundError, FileExistsError, ImportError)


def cases(folder: Path) -> list[tuple[Any, dict[str, Any]]]:
    """(function, arguments that are right)."""
    params = mp.init_params(jax.random.key(0), TINY)
    image = np.zeros((40, 60, 3), np.uint8)
    tiles = mp.tile_image_host(image, TINY.tiling)
    plan = mp.plan_tiles(40, 60, TINY.tiling)
    ids, embeddings = np.array([[1, 190]]), np.zeros((1, 2, 48), np.float32)
    tokens = np.zeros((1, 48), np.float32)
    table, video = {"text_model": {"embed_tokens": {"embedding": tokens}}}, mp.text.VideoPlan((0,), 1.0, 1.0)
    optimizer = optax.sgd(0.1)
    rng = jax.random.key(0)
    save_tokenizer(folder)
    model = {"params": params, "config": TINY}
    decoder = {"params": random_params(TINY), "config": TINY}
    talker = {"params": random_params(TINY_SMOLVLM), "config": TINY_SMOLVLM, "max_length": 128, "batch_size": 1}
    talker |= {"processor": mp.Processor.from_pretrained(folder)}
    generator = mp.Generator(**talker)
    settings = {
        "max_new_tokens": 1,
        "temperature": 0.0,
        "top_k": None,
        "top_p": None,
        "min_p": None,
        "seed": 0,
        "repetition_penalty": 1.0,
        "stop": (),
        "should_stop": None,
        "logprobs": False,
    }
    chat = [{"role": "assistant", "content": "A cat."}]
    compute = model | {"compute": mp.Compute(), "batch_size": None}
    return [
        (mp.load_image, {"source": image, "exif_transpose": False}),
        (mp.plan_tiles, {"height": 40, "width": 60, "tiling": TINY.tiling}),
        (mp.tile_image, {"image": image, "tiling": TINY.tiling, "implementation": None}),
        (mp.tile_image_host, {"image": image, "tiling": TINY.tiling}),
        (mp.image.bucket_side, {"plan": plan, "tiling": TINY.tiling}),
        (mp.image.prepare_image, {"image": image, "tiling": TINY.tiling}),
        (mp.encode_image, compute | {"image": image}),
        (mp.encode_images, compute | {"images": [image], "on_error": "raise", "tile_on": None, "cache": None}),
        (mp.encode_tiles, compute | {"tiles": tiles}),
        (mp.vision_features, model | {"pixel_values": np.zeros((1, 64, 64, 3), np.float32), "layers": (0,),
                                      "pixel_attention_mask": None}),
        (mp.warmup, compute | {"tile_on": "host"}),
        (mp.TileCache, {"max_tiles": 4}),
        (mp.init_params, {"rng": rng, "config": TINY}),
        (mp.text.encode_frames, compute | {"frames": [image], "video_size": None}),
        (mp.text.sample_frames, {"num_frames": 9, "fps": 3.0, "target_fps": 1, "max_frames": 4, "skip_seconds": 0}),
        (mp.text.expand_prompt, {"text": "<image>", "plans": [plan], "config": TINY}),
        (mp.text.expand_video_prompt, {"text": "<video>", "videos": [video], "config": TINY}),
        (mp.text.embed_tokens, {"params": table, "input_ids": ids * 0}),
        (mp.text.pack, {"input_ids": ids, "text_embeddings": embeddings, "visual_tokens": tokens,
                        "image_token_id": 190, "num_tokens": None}),
        (mp.text.labels_for, {"input_ids": ids, "image_token_id": 190, "attention_mask": None, "ignore_index": -100}),
        *((function, decoder | {"inputs_embeds": embeddings, "attention_mask": None, "position_ids": None,
                                "compute": mp.Compute()}) for function in (mp.text_features, mp.text_logits)),
        (mp.nn.retrieval_embeddings, {"params": {"linear": {"kernel": tokens.T, "bias": tokens[0, :1]}},
                                      "hidden_states": embeddings, "attention_mask": ids}),
        (mp.Processor.from_pretrained, {"name_or_path": folder}),
        (mp.params.add_lora, {"rng": rng, "params": params, "rank": 2, "kernels": ".*"}),
        (mp.params.merge_lora, {"params": params}),
        (mp.params.split_params, {"params": params, "trainable": "connector"}),
        (mp.params.check_params, {"params": params, "config": TINY, "parts": ("vision",)}),
        (mp.params.param_shapes, {"config": TINY, "parts": ("vision",)}),
        (mp.train.batch_indices, {"step": 0, "num_examples": 8, "batch_size": 2, "seed": 0}),
        (mp.train.init_train_state, {"params": params, "optimizer": optimizer, "rng": rng, "trainable": "connector"}),
        (mp.train.make_train_step, {"loss_fn": lambda *_: 0.0, "optimizer": optimizer, "config": TINY,
                                    "trainable": "connector", "accumulate": 1, "max_norm": None}),
        (mp.train.distillation_loss, {"tokens": embeddings, "teacher": embeddings}),
        (mp.train.pool_tokens, {"tokens": embeddings}),
        (mp.train.sigmoid_contrastive_loss, {"a": tokens, "b": tokens, "log_scale": 1.0, "bias": 0.0,
                                             "positives": None}),
        (mp.train.chat_batch, {"chats": [chat], "images": (), "config": TINY_SMOLVLM, "processor": talker["processor"],
                               "length": None, "num_tiles": None}),
        (mp.train.language_model_loss, decoder | {"batch": language_batch(TINY, 1, 12, 1), "rng": None,
                                                  "compute": mp.Compute()}),
        (mp.Compute, {"dtype": None, "attention": "auto", "encoder": "auto", "precision": None, "remat": False}),
        (mp.plot.token_at, {"plan": plan, "y": 3, "x": 4, "config": TINY}),
        (mp.plot.token_map, {"tokens": np.zeros((plan.num_tokens, 3), np.float32), "plan": plan, "config": TINY}),
        (mp.plot.pca_colors, {"tokens": tokens.repeat(4, 0)}),
        (mp.plot.cosine_similarity, {"tokens": tokens, "token": 0}),
        (mp.plot.draw_tiles, {"image": image, "plan": plan}),
        (mp.plot.describe, {"plan": plan}),
        (mp.Generator, talker | {"compute": mp.Compute(), "eos_ids": None}),
        (generator.generate, settings | {"chats": ["a"], "images": ()}),
        (generator.stream, settings | {"chat": "a", "images": ()}),
    ]  # fmt: skip


def call(function: Any, arguments: dict[str, Any]) -> str | None:
    """The error of a call that is not ours, as one line."""
    try:
        result = function(**arguments)
        jax.block_until_ready(result)
    except OURS as error:
        if not str(error).strip() or len(str(error)) > 5000:  # a report on params has up to 40 lines
            return f"an error of {len(str(error))} characters"
        return None
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:120]!r} ({Path(frame.filename).name}:{frame.lineno})"
    return None


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for function, arguments in cases(Path(name)):
            label = getattr(function, "__qualname__", str(function))
            known = inspect.signature(function).parameters
            kind = inspect.Parameter.VAR_KEYWORD
            assert known.keys() >= arguments.keys() or any(one.kind == kind for one in known.values()), label
            if error := call(function, arguments):
                print(f"{label} fails with right arguments: {error}")
            for argument in arguments:
                for junk in JUNK:
                    if (argument, junk if isinstance(junk, int) else 0) == ("num_examples", 10**9):
                        continue  # is no misuse, and takes 8 GB
                    if error := call(function, arguments | {argument: junk}):
                        print(f"{label}({argument}={str(junk)[:40]!r}): {error}", flush=True)


if __name__ == "__main__":
    main()
