"""Convert a Hugging Face folder's config.json and preprocessor_config.json to a `ModelConfig`, and back.

`hf_keys` has the keys. A key that is absent or null takes the reference's class default (transformers 5.23).
"""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from multipatch_jax.arguments import require_type
from multipatch_jax.checkpoint.hf_keys import KEYS, MARK, check_ignore_keys, read_section, short
from multipatch_jax.config import ConnectorConfig, ModelConfig, RopeConfig, TextConfig, TilingConfig, VisionConfig
from multipatch_jax.files import read_json, require_path
from multipatch_jax.presets import PRESETS
from multipatch_jax.resamplers import FILTERS

RETRIEVER, EMBEDDING_SIZE = "ColIdefics3", 128  # this class of the reference has only this size
CONFIG, PREPROCESSOR, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
OTHERS = ("do_center_crop",)  # keys of other image processors, which the reference's do not write
ROPE_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
NO_TEXT = {"text": None}  # what `MARK` says of a model whose language model is unknown
T = TypeVar("T")


def _build(cls: type[T], where: str, values: dict[str, Any]) -> T:
    """Return a config of these fields; an error names the file."""
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _longest_edge(section: dict[str, Any], key: str, default: int, where: str) -> int:
    size = section.get(key, {"longest_edge": default})
    pixels = size.get("longest_edge") if isinstance(size, dict) and len(size) == 1 else None
    if not isinstance(pixels, int) or isinstance(pixels, bool) or pixels < 1:
        raise ValueError(f'{where}: {key} must be {{"longest_edge": pixels}}, got {short(size)}.')
    return pixels


def _rope(scaling: Any, parameters: Any, where: str) -> dict[str, Any]:
    """Return `rope_theta` and the fields of `rope_scaling`, as far as the keys of rotary positions say them.

    Args:
      scaling: value of `rope_scaling`, where transformers 4 has the scaling. As in the reference, it goes first.
      parameters: value of `rope_parameters`, where transformers 5 has scaling and theta.
    """
    for name, value in {"rope_scaling": scaling, "rope_parameters": parameters}.items():
        if not isinstance(value, dict | None):
            raise ValueError(f"{where}: {name} must be a JSON object, got {short(value)}.")
    name, rope = ("rope_scaling", scaling) if scaling else ("rope_parameters", parameters or {})
    rope = {key: value for key, value in rope.items() if value is not None}
    kind, known = rope.get("rope_type", rope.get("type", "default")), {*ROPE_KEYS, *LLAMA3_KEYS}
    if kind not in ("default", "llama3") or rope.keys() - known or rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError(
            f"{where}: {name} must be of rope_type default or llama3, turn all channels and have no keys but "
            f"{', '.join(sorted(known))}, got {short(rope)}."
        )
    found = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if kind == "default":
        return found
    missing = {*LLAMA3_KEYS[:3]} - rope.keys()  # the fourth has a default
    if missing:
        raise ValueError(f"{where}: {name} of rope_type llama3 lacks {', '.join(sorted(missing))}: {short(rope)}.")
    return found | {"rope_scaling": {key: rope[key] for key in LLAMA3_KEYS if key in rope}}


def _text(config: Any, tied: Any, is_known: bool, ignore_keys: Collection[str]) -> TextConfig:
    """Return the config of the language model, from the value of `text_config` and of the top `tie_word_embeddings`.

    Where the language model is unknown (`MARK`), only its width is meant.
    """
    where = "config.json: text_config"
    # The reference's eps is 1e-5 without a text_config, and Llama's default 1e-6 in a text_config that leaves it out.
    text = read_section({"rms_norm_eps": 1e-5} if config is None else config, where, ignore_keys)
    if not is_known:
        return _build(TextConfig, where, {name: text[name] for name in text if name == "hidden_size"})
    text |= _rope(text.pop("rope_scaling", None), text.pop("rope_parameters", None), where)
    scaling = text.get("rope_scaling")
    if scaling is not None:
        scaling.setdefault("original_max_position_embeddings", text.get("max_position_embeddings", 2048))
        text["rope_scaling"] = _build(RopeConfig, where, scaling)
    text["tie_word_embeddings"] = tied
    heads, width = text.get("num_attention_heads", 32), text.get("hidden_size", 4096)
    if isinstance(heads, int) and isinstance(width, int) and 0 < heads <= width:  # otherwise TextConfig refuses them
        text.setdefault("num_key_value_heads", heads)
        text.setdefault("head_dim", width // heads)
    return _build(TextConfig, where, text)


def config_from_hf(
    config: dict[str, Any],
    preprocessor: dict[str, Any],
    ignore_keys: Collection[str] = (),
    image_file: str = PREPROCESSOR,
) -> ModelConfig:
    """Return the `ModelConfig` that a checkpoint's two JSON files describe.

    Args:
      config: the content of config.json.
      preprocessor: the content of preprocessor_config.json.
      ignore_keys: keys of any section that are unknown to this version and are to be ignored.
      image_file: name of the file that `preprocessor` came from, for errors.

    Raises:
      ValueError: a key is unknown, or its value is not supported.
    """
    check_ignore_keys(ignore_keys)
    top = read_section(config, "config.json", ignore_keys)
    if top.get("model_type") not in ("idefics3", "smolvlm"):
        raise ValueError(f"config.json: model_type must be idefics3 or smolvlm, got {short(config.get('model_type'))}.")
    architectures = top.get("architectures", [])
    if not isinstance(architectures, list):
        raise ValueError(f"config.json: architectures must be a list of names, got {short(architectures)}.")
    where = "config.json: vision_config"
    vision = _build(VisionConfig, where, read_section(top.get("vision_config", {}), where, ignore_keys))
    text = _text(top.get("text_config"), top.get("tie_word_embeddings", False), MARK not in top, ignore_keys)
    connector = _build(
        ConnectorConfig,
        "config.json",
        {"scale_factor": top.get("scale_factor", 2), "text_hidden_size": text.hidden_size},
    )
    if top.get(MARK, NO_TEXT) != NO_TEXT:
        raise ValueError(f"config.json: {MARK} must be {NO_TEXT}, got {short(top[MARK])}.")
    image = read_section(preprocessor, PREPROCESSOR, ignore_keys, image_file)
    filters = {row.pillow_code: name for name, row in FILTERS.items()}
    code = image.get("resample", 1)
    if not isinstance(code, int) or code not in filters:
        raise ValueError(f"{image_file}: resample must be one of {filters}, got {short(code)}.")
    tile_size = _longest_edge(image, "max_image_size", 364, image_file)
    tiling = _build(
        TilingConfig,
        image_file,
        {
            "longest_edge": _longest_edge(image, "size", 4 * 364, image_file),
            "tile_size": tile_size,
            "tokens_per_tile": max((tile_size // vision.patch_size // connector.scale_factor) ** 2, 1),
            "do_resize": image.get("do_resize", True),
            "do_image_splitting": image.get("do_image_splitting", True),
            "filter": filters[code],
        },
    )
    return _build(
        ModelConfig,
        f"config.json and {image_file}",
        {
            "vision": vision,
            "connector": connector,
            "tiling": tiling,
            "text": None if MARK in top else text,
            "image_token_id": top.get("image_token_id", 128257),
            "model_type": top["model_type"],
            "embedding_size": EMBEDDING_SIZE if RETRIEVER in architectures else None,
        },
    )


def _smolvla(config: dict[str, Any]) -> ModelConfig:
    """Return the config of the vision tower and connector inside a SmolVLA policy.

    LeRobot's config.json of such a policy does not describe the model: it only names the checkpoint that training
    started from (`vlm_model_name`), so that checkpoint's preset is used. `text` is None.

    Raises:
      ValueError: no preset has that name.
    """
    name = str(config.get("vlm_model_name", "")).split("/")[-1]
    if name not in PRESETS:
        raise ValueError(f"config.json: vlm_model_name must be one of {', '.join(PRESETS)}, got {short(name)}.")
    return dataclasses.replace(PRESETS[name], text=None)


def config_to_hf(config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (config.json, preprocessor_config.json) for `config`: the inverse of `config_from_hf`.

    Raises:
      ValueError: a tiling setting that only we have (`resampler`, `global_tile`, `upscale`, `max_tiles`) differs from
        what the reference does, the connector is not the reference's, or a retriever has another embedding size than
        the reference's, so the files cannot express it.
    """
    require_type("config", config, ModelConfig)
    if config.connector.kind != ConnectorConfig.kind:
        raise ValueError(
            f'config.json cannot say ConnectorConfig.kind="{config.connector.kind}": the reference only has '
            f'"{ConnectorConfig.kind}". Use save_pretrained.'
        )
    if config.embedding_size not in (None, EMBEDDING_SIZE):
        raise ValueError(
            f"config.json cannot say ModelConfig.embedding_size={config.embedding_size}: {RETRIEVER} has "
            f"{EMBEDDING_SIZE}. Use save_pretrained."
        )
    tiling, text = config.tiling, config.text
    ours = {"resampler": "pillow", "global_tile": True, "upscale": True, "max_tiles": None}
    said = {name: getattr(tiling, name) for name in ours}
    if said != ours:
        raise ValueError(f"preprocessor_config.json cannot say {said}: export with tiling set back to {ours}.")
    names = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[config.model_type]
    top: dict[str, Any] = {
        "architectures": [RETRIEVER if config.embedding_size else f"{names}ForConditionalGeneration"],
        "model_type": config.model_type,
        "image_token_id": config.image_token_id,
        "scale_factor": config.connector.scale_factor,
        "vision_config": {**dataclasses.asdict(config.vision), "model_type": f"{config.model_type}_vision"},
        "text_config": {"hidden_size": config.connector.text_hidden_size, "model_type": "llama"},
    }
    if text is None:
        top[MARK] = NO_TEXT
    else:
        top["text_config"] |= {**dataclasses.asdict(text), **KEYS["config.json: text_config"].fixed}
        top["tie_word_embeddings"] = text.tie_word_embeddings
    preprocessor = {
        "image_processor_type": f"{names}ImageProcessor",
        "do_resize": tiling.do_resize,
        "do_image_splitting": tiling.do_image_splitting,
        "size": {"longest_edge": tiling.longest_edge},
        "max_image_size": {"longest_edge": tiling.tile_size},
        "resample": FILTERS[tiling.filter].pillow_code,
        "do_convert_rgb": True,
        "do_pad": True,
        **{key: value for key, value in KEYS[PREPROCESSOR].fixed.items() if key not in OTHERS},
    }
    return top, preprocessor


def read_hf_config(folder: str | Path, ignore_keys: Collection[str] = ()) -> ModelConfig:
    """Read the `ModelConfig` of a folder in Hugging Face's layout, or of a SmolVLA policy.

    The image settings come from preprocessor_config.json. Without that file they come from "image_processor" in
    processor_config.json, where transformers 5 may write them.

    Args:
      ignore_keys: as in `config_from_hf`.

    Raises:
      FileNotFoundError: config.json is missing, or both of the files with image settings are.
      ValueError: as in `config_from_hf`, or a file is not valid JSON.
    """
    folder = require_path("folder", folder)
    config = read_json(folder / CONFIG)
    if config.get("type") == "smolvla":
        return _smolvla(config)
    if (folder / PREPROCESSOR).is_file():
        image, name = read_json(folder / PREPROCESSOR), PREPROCESSOR
    elif (folder / PROCESSOR).is_file() and "image_processor" in (processor := read_json(folder / PROCESSOR)):
        image, name = processor["image_processor"], PROCESSOR
    else:
        raise FileNotFoundError(f"{folder} has no {PREPROCESSOR}, which says how images are tiled.")
    try:
        return config_from_hf(config, image, ignore_keys, name)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
