"""Convert a Hugging Face folder's config.json and preprocessor_config.json to a `ModelConfig`, and back.

Each key of the two files falls into one of four groups:
  read: its value goes into the `ModelConfig`.
  fixed: only one value is supported; another value is an error.
  ignored: it does not affect what we compute.
  unknown: an error unless its value is null, because a key that we do not know may change the visual tokens.

A key that is absent or null takes the reference's class default (transformers 5.23).
"""

import dataclasses
from pathlib import Path
from typing import Any

from multipatch_jax.config import ConnectorConfig, ModelConfig, TextConfig, TilingConfig, VisionConfig
from multipatch_jax.files import read_json
from multipatch_jax.presets import PRESETS
from multipatch_jax.resamplers import FILTERS

# Ignored in every section. transformers 4 wrote these keys into all configs, nested ones too: bookkeeping, and defaults
# of text generation.
_EVERYWHERE = """_attn_implementation_autoset _flash_attn_2_enabled _name_or_path add_cross_attention architectures
    attention_dropout bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id id2label initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length
    min_length model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_cache""".split()
_IGNORED = {
    "config.json": """_pad_token_id vocab_size transformers.js_config use_reentrant_checkpointing""".split(),
    "config.json: vision_config": "size max_image_size use_base_siglip".split(),
    "config.json: text_config": """attention_bias hidden_act is_llama_config mlp_bias neftune_noise_alpha
        perceiver_config pixel_shuffle_factor pretraining_tp qk_layer_norms rope_interleaved rope_parameters
        rope_scaling transformers.js_config use_resampler""".split(),
    "preprocessor_config.json": """image_processor_type feature_extractor_type processor_class do_pad do_convert_rgb
        return_row_col_info image_seq_len video_sampling data_format default_to_square""".split(),
}
_FIXED = {
    "preprocessor_config.json": {
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    },
}


def _read_section(raw: Any, where: str, known: set[str]) -> dict[str, Any]:
    """Return the `known` keys of one JSON object, without those whose value is null.

    Args:
      where: the section's name, a key of `_IGNORED`; errors quote it.

    Raises:
      ValueError: `raw` is not an object, a fixed key has another value, or a key is unknown and not null.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(raw).__name__}.")
    fixed = _FIXED.get(where, {})
    for key, value in fixed.items():
        if raw.get(key) is not None and raw[key] != value:
            raise ValueError(f"{where}: {key} must be {value!r}, the only value supported, got {raw[key]!r}.")
    ignored = {*_EVERYWHERE, *_IGNORED[where]}
    unknown = sorted(key for key in raw.keys() - known - ignored - fixed.keys() if raw[key] is not None)
    if unknown:
        raise ValueError(
            f"{where} has keys that this version does not know and that may change the result: {', '.join(unknown)}. "
            f"Known keys: {', '.join(sorted(known | fixed.keys()))}."
        )
    return {key: raw[key] for key in known & raw.keys() if raw[key] is not None}


def _fields(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _longest_edge(section: dict[str, Any], key: str, default: int) -> int:
    size = section.get(key, {"longest_edge": default})
    if not isinstance(size, dict) or set(size) != {"longest_edge"}:
        raise ValueError(f'preprocessor_config.json: {key} must be {{"longest_edge": pixels}}, got {size!r}.')
    return size["longest_edge"]


def config_from_hf(config: dict[str, Any], preprocessor: dict[str, Any]) -> ModelConfig:
    """Return the `ModelConfig` that a checkpoint's two JSON files describe.

    Args:
      config: the content of config.json.
      preprocessor: the content of preprocessor_config.json.

    Raises:
      ValueError: a key is unknown, or its value is not supported.
    """
    top = _read_section(
        config,
        "config.json",
        {"image_token_id", "model_type", "scale_factor", "text_config", "vision_config", "tie_word_embeddings"},
    )
    if top.get("model_type") not in ("idefics3", "smolvlm"):
        raise ValueError(f"config.json: model_type must be idefics3 or smolvlm, got {config.get('model_type')!r}.")
    vision = VisionConfig(
        **_read_section(top.get("vision_config", {}), "config.json: vision_config", _fields(VisionConfig))
    )
    # The reference's eps is 1e-5 without a text_config, and Llama's default 1e-6 in a text_config that leaves it out.
    text_json = top.get("text_config", {"rms_norm_eps": 1e-5})
    text = _read_section(text_json, "config.json: text_config", _fields(TextConfig))
    text.setdefault("num_key_value_heads", text.get("num_attention_heads", 32))
    text.setdefault("head_dim", text.get("hidden_size", 4096) // text.get("num_attention_heads", 32))
    # transformers 5 moved rope_theta into rope_parameters.
    text.setdefault("rope_theta", (text_json.get("rope_parameters") or {}).get("rope_theta", 10000.0))
    text["tie_word_embeddings"] = top.get("tie_word_embeddings", False)  # transformers 5 reads only the top level

    image = _read_section(
        preprocessor,
        "preprocessor_config.json",
        {"do_resize", "do_image_splitting", "size", "max_image_size", "resample"},
    )
    filters = {row.pillow_code: name for name, row in FILTERS.items()}
    if image.get("resample", 1) not in filters:
        raise ValueError(f"preprocessor_config.json: resample must be one of {filters}, got {image['resample']!r}.")
    scale_factor = top.get("scale_factor", 2)
    tile_size = _longest_edge(image, "max_image_size", 364)
    return ModelConfig(
        vision=vision,
        connector=ConnectorConfig(scale_factor=scale_factor, text_hidden_size=text.get("hidden_size", 4096)),
        tiling=TilingConfig(
            longest_edge=_longest_edge(image, "size", 4 * 364),
            tile_size=tile_size,
            tokens_per_tile=max((tile_size // vision.patch_size // scale_factor) ** 2, 1),
            do_resize=image.get("do_resize", True),
            do_image_splitting=image.get("do_image_splitting", True),
            filter=filters[image.get("resample", 1)],
        ),
        text=TextConfig(**text),
        image_token_id=top.get("image_token_id", 128257),
        model_type=top["model_type"],
        embedding_size=128 if "ColIdefics3" in (config.get("architectures") or ()) else None,
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
        raise ValueError(f"config.json: vlm_model_name must be one of {', '.join(PRESETS)}, got {name!r}.")
    return dataclasses.replace(PRESETS[name], text=None)


def config_to_hf(config: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (config.json, preprocessor_config.json) for `config`: the inverse of `config_from_hf`.

    Raises:
      ValueError: a tiling setting that only we have (`resampler`, `global_tile`, `upscale`, `max_tiles`) differs from
        what the reference does, or the connector is not the reference's, so the files cannot express it.
    """
    if config.connector.kind != ConnectorConfig.kind:
        raise ValueError(
            f'config.json cannot say ConnectorConfig.kind="{config.connector.kind}": the reference only has '
            f'"{ConnectorConfig.kind}". Use save_pretrained.'
        )
    tiling, text = config.tiling, config.text
    ours = {"resampler": "pillow", "global_tile": True, "upscale": True, "max_tiles": None}
    said = {name: getattr(tiling, name) for name in ours}
    if said != ours:
        raise ValueError(f"preprocessor_config.json cannot say {said}: export with tiling set back to {ours}.")
    names = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[config.model_type]
    top: dict[str, Any] = {
        "architectures": ["ColIdefics3" if config.embedding_size else f"{names}ForConditionalGeneration"],
        "model_type": config.model_type,
        "image_token_id": config.image_token_id,
        "scale_factor": config.connector.scale_factor,
        "vision_config": {**dataclasses.asdict(config.vision), "model_type": f"{config.model_type}_vision"},
        "text_config": {"hidden_size": config.connector.text_hidden_size, "model_type": "llama"},
    }
    if text is not None:
        top["text_config"] |= {**dataclasses.asdict(text), "attention_bias": False, "mlp_bias": False}
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
        **_FIXED["preprocessor_config.json"],
    }
    return top, preprocessor


def read_hf_config(folder: Path) -> ModelConfig:
    """Read the `ModelConfig` of a folder in Hugging Face's layout, or of a SmolVLA policy.

    The image settings come from preprocessor_config.json. Without that file they come from processor_config.json, where
    transformers 5 may nest them under "image_processor".

    Raises:
      FileNotFoundError: config.json is missing, or both of the files with image settings are.
      ValueError: as in `config_from_hf`, or a file is not valid JSON.
    """
    config = read_json(folder / "config.json")
    if config.get("type") == "smolvla":
        return _smolvla(config)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            preprocessor = read_json(folder / name)
            preprocessor = preprocessor.get("image_processor", preprocessor)
            return config_from_hf(config, preprocessor)
    raise FileNotFoundError(f"{folder} has no preprocessor_config.json, which says how images are tiled.")
