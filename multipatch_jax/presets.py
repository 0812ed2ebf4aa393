"""Configs of the published models, by name: `PRESETS`.

They serve where no checkpoint is read: to plan tiles, to make fresh params, and as the default `config` of the `encode`
functions. `from_pretrained` reads the config from the checkpoint's own JSON files, with one exception: the config.json
of a SmolVLA policy only names the model that it started from, so the preset of that name is used.
"""

import dataclasses

from multipatch_jax.config import ConnectorConfig, ModelConfig, TextConfig, TilingConfig, VisionConfig

_SIGLIP_BASE = VisionConfig(hidden_size=768, num_attention_heads=12, image_size=512, patch_size=16)
_SO400M = VisionConfig(intermediate_size=4304, num_hidden_layers=27, image_size=384, patch_size=14)
_SMOLLM2_135M = TextConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49280,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    pad_token_id=2,
)
_SMOLLM2_360M = dataclasses.replace(
    _SMOLLM2_135M,
    hidden_size=960,
    intermediate_size=2560,
    num_hidden_layers=32,
    num_attention_heads=15,
    num_key_value_heads=5,
)
_SMOLLM2_1_7B = TextConfig(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    head_dim=64,
    vocab_size=49155,
    max_position_embeddings=16384,
    rms_norm_eps=1e-5,
    rope_theta=273768.0,
)
_GRANITE_165M = dataclasses.replace(_SMOLLM2_135M, vocab_size=100352, pad_token_id=100257, tie_word_embeddings=True)
_LLAMA3_8B = TextConfig(
    intermediate_size=14336, num_key_value_heads=8, vocab_size=128259, rms_norm_eps=1e-5, rope_theta=500000.0
)

SMOLVLM_256M = ModelConfig(
    vision=_SIGLIP_BASE,
    connector=ConnectorConfig(scale_factor=4, text_hidden_size=576),
    tiling=TilingConfig(),
    text=_SMOLLM2_135M,
    image_token_id=49190,
)
SMOLVLM_500M = dataclasses.replace(
    SMOLVLM_256M, connector=ConnectorConfig(scale_factor=4, text_hidden_size=960), text=_SMOLLM2_360M
)
SMOLVLM_2_2B = ModelConfig(
    vision=_SO400M,
    connector=ConnectorConfig(scale_factor=3, text_hidden_size=2048),
    tiling=TilingConfig(longest_edge=1536, tile_size=384, tokens_per_tile=81),
    text=_SMOLLM2_1_7B,
    image_token_id=49153,
)
IDEFICS3_8B = ModelConfig(
    vision=dataclasses.replace(_SO400M, image_size=364),
    connector=ConnectorConfig(scale_factor=2, text_hidden_size=4096),
    tiling=TilingConfig(longest_edge=1456, tile_size=364, tokens_per_tile=169),
    text=_LLAMA3_8B,
    image_token_id=128257,
)

_SMOLVLM2_1_7B = dataclasses.replace(_SMOLLM2_1_7B, vocab_size=49280, rope_theta=130000.0)

PRESETS = {
    "SmolVLM-256M-Instruct": SMOLVLM_256M,
    "SmolVLM-500M-Instruct": SMOLVLM_500M,
    "SmolVLM-Instruct": SMOLVLM_2_2B,
    "SmolVLM2-256M-Video-Instruct": dataclasses.replace(SMOLVLM_256M, model_type="smolvlm"),
    "SmolVLM2-500M-Video-Instruct": dataclasses.replace(SMOLVLM_500M, model_type="smolvlm"),
    "SmolVLM2-2.2B-Instruct": dataclasses.replace(
        SMOLVLM_2_2B, text=_SMOLVLM2_1_7B, image_token_id=49190, model_type="smolvlm"
    ),
    "Idefics3-8B-Llama3": IDEFICS3_8B,
    "SmolDocling-256M-preview": SMOLVLM_256M,
    "granite-docling-258M": dataclasses.replace(SMOLVLM_256M, text=_GRANITE_165M, image_token_id=100270),
    "colSmol-256M": dataclasses.replace(SMOLVLM_256M, embedding_size=128),
    "colSmol-500M": dataclasses.replace(SMOLVLM_500M, embedding_size=128),
}
"""The configs of the published models, by the last part of their hub id."""
UNVERIFIED = {
    "SmolVLM-500M-Instruct": "all: inferred from SmolVLM2-500M",
    "SmolVLM-Instruct": "tiling, text.max_position_embeddings, text.pad_token_id",
    "SmolVLM2-2.2B-Instruct": "tiling, text.max_position_embeddings, text.pad_token_id",
    "Idefics3-8B-Llama3": "text.rope_theta, text.max_position_embeddings",
    "SmolDocling-256M-preview": "text and image_token_id: SmolVLM-256M's",
    "granite-docling-258M": "tiling: SmolVLM-256M's",
    "colSmol-256M": "all: SmolVLM-256M's, and the 128 of ColIdefics3",
    "colSmol-500M": "all: SmolVLM-500M's, and the 128 of ColIdefics3",
}
"""Values that were never compared with the model's published JSON files.

Preset -> fields, and after a colon the model that the values were taken from instead.
"""
