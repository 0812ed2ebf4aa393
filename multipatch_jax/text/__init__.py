"""Make a language model's inputs from texts, images and videos: prompts, token ids, embeddings with visual tokens."""

from multipatch_jax.text.messages import Chat
from multipatch_jax.text.packing import embed_tokens, labels_for, pack
from multipatch_jax.text.prepare import prepare_inputs
from multipatch_jax.text.processor import Processor, TextInputs
from multipatch_jax.text.prompt import expand_prompt, expanded_length
from multipatch_jax.text.video import VideoPlan, encode_frames, expand_video_prompt, frame_config, sample_frames

__all__ = [
    "Chat",
    "Processor",
    "TextInputs",
    "VideoPlan",
    "embed_tokens",
    "encode_frames",
    "expand_prompt",
    "expand_video_prompt",
    "expanded_length",
    "frame_config",
    "labels_for",
    "pack",
    "prepare_inputs",
    "sample_frames",
]
