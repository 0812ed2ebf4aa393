"""The keys of config.json and preprocessor_config.json that we know, and the strict reading of one JSON object.

Each key falls into one of five groups:
  read: its value goes into the `ModelConfig`.
  fixed: only one value is supported; another value is an error.
  ignored: it does not affect what we compute.
  refused: it changes the weights or the result in a way that we do not compute.
  unknown: an error unless its value is null, because a key that we do not know may change the visual tokens. The
    caller may name it in `ignore_keys`.
"""

import dataclasses
import reprlib
from collections.abc import Collection
from typing import Any, NamedTuple

from multipatch_jax.config import TextConfig, VisionConfig

MARK = "multipatch_jax"  # our own key of config.json, for what Hugging Face's keys cannot say


class Keys(NamedTuple):
    """The keys of one section: those that are read, key -> the only value supported, and those that are ignored."""

    read: tuple[str, ...]
    fixed: dict[str, Any]
    ignored: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _fields(cls: type) -> tuple[str, ...]:
    """Return a config's fields, without `tie_word_embeddings`: transformers 5 reads only the one at the top."""
    return tuple(field.name for field in dataclasses.fields(cls) if field.name != "tie_word_embeddings")


# Ignored in every section: bookkeeping, settings of training, and defaults of text generation. transformers 4 wrote
# most of them into all configs, nested ones too; a row names the tool where it is another one.
IGNORED_EVERYWHERE = (
    *_words("""_attn_implementation_autoset _flash_attn_2_enabled _name_or_path add_cross_attention architectures
    attention_dropout bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id id2label initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length
    min_length model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_cache"""),
    # transformers, of some versions or where a config came from remote code
    *_words("""_attn_implementation _attn_implementation_internal _auto_class _commit_hash _experts_implementation
    _pre_quantization_dtype attn_implementation auto_map custom_pipelines gradient_checkpointing is_composition
    keys_to_ignore_at_inference loss_type processor_class use_reentrant_checkpointing"""),
    *_words("neftune_noise_alpha"),  # trl, and transformers' Trainer
    *_words("model_name unsloth_fixed unsloth_version"),  # unsloth
    "transformers.js_config",  # exports for browsers
)
# Sizes of the language model that trainers and servers (DeepSpeed, vLLM, unsloth) look for at the top of a config. The
# text_config decides.
_COPIES = _words("""hidden_size intermediate_size num_attention_heads num_hidden_layers num_key_value_heads
    max_position_embeddings vocab_size""")
KEYS = {
    "config.json": Keys(
        read=(
            *_words(
                "image_token_id model_type scale_factor text_config vision_config tie_word_embeddings architectures"
            ),
            MARK,
        ),
        fixed={},
        ignored=("_pad_token_id", *_COPIES),
    ),
    "config.json: vision_config": Keys(
        read=_fields(VisionConfig), fixed={}, ignored=_words("size max_image_size use_base_siglip")
    ),
    "config.json: text_config": Keys(
        read=(*_fields(TextConfig), "rope_parameters"),
        fixed={"attention_bias": False, "mlp_bias": False},
        ignored=_words("""is_llama_config perceiver_config pixel_shuffle_factor pretraining_tp qk_layer_norms
        rope_interleaved use_resampler"""),
    ),
    "preprocessor_config.json": Keys(
        read=_words("do_resize do_image_splitting size max_image_size resample"),
        fixed={
            "do_rescale": True,
            "do_normalize": True,
            "rescale_factor": 1 / 255,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "do_center_crop": False,
        },
        ignored=_words("""_processor_class _valid_processor_keys crop_size data_format default_to_square device
        disable_grouping do_convert_rgb do_pad feature_extractor_type image_processor_type image_seq_len
        input_data_format return_row_col_info return_tensors video_sampling"""),
    ),
}
REFUSED = {
    "quantization_config": "quantised weights are not read: dequantise the model and save it without this key",
}


def short(value: Any) -> str:
    """Return `repr(value)`, cut to a length that an error message can hold."""
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = 100
    return writer.repr(value)


def check_ignore_keys(ignore_keys: Collection[str]) -> None:
    """Raise a ValueError unless `ignore_keys` are a collection of keys that are neither read nor fixed."""
    is_collection = isinstance(ignore_keys, Collection) and not isinstance(ignore_keys, str)
    if not is_collection or not all(isinstance(key, str) for key in ignore_keys):
        raise ValueError(f'ignore_keys must be a tuple of keys such as ("key",), got {short(ignore_keys)}.')
    needed = {key for keys in KEYS.values() for key in (*keys.read, *keys.fixed)}
    if needed & set(ignore_keys):
        raise ValueError(f"ignore_keys has {', '.join(sorted(needed & set(ignore_keys)))}, which cannot be ignored.")


def read_section(raw: Any, section: str, ignore_keys: Collection[str] = (), where: str = "") -> dict[str, Any]:
    """Return the keys of one JSON object that are read, without those whose value is null.

    Args:
      section: a key of `KEYS`.
      ignore_keys: unknown keys that are ignored.
      where: name of the section in errors, if it is not `section`.

    Raises:
      ValueError: `raw` is not an object, a fixed key has another value, or a key is unknown and not null.
    """
    where, keys = where or section, KEYS[section]
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be a JSON object, got {short(raw)}.")
    for key, value in keys.fixed.items():
        if raw.get(key) is not None and raw[key] != value:
            raise ValueError(f"{where}: {key} must be {value!r}, the only value supported, got {short(raw[key])}.")
    known = {*keys.read, *keys.fixed, *keys.ignored, *IGNORED_EVERYWHERE, *ignore_keys}
    unknown = sorted(key for key in raw.keys() - known if raw[key] is not None)
    for key in unknown:
        if key in REFUSED:
            raise ValueError(f"{where} has {key}: {REFUSED[key]}.")
    if unknown:
        names = ", ".join(short(key)[1:-1] for key in unknown[:20]) + (", ..." if len(unknown) > 20 else "")
        raise ValueError(
            f"{where} has keys that this version does not know and that may change the result: {names}. If they do "
            f"not matter, load all the same with mp.from_pretrained(name, ignore_keys=({short(unknown[0])},))."
        )
    return {key: raw[key] for key in keys.read if raw.get(key) is not None}
