"""Run the text decoder: features and logits of embeddings, and generation."""

from multipatch_jax.generate.answer import Answer
from multipatch_jax.generate.chunks import round_length
from multipatch_jax.generate.engine import Chunk, Engine, admit, release, start, step
from multipatch_jax.generate.features import text_features, text_logits
from multipatch_jax.generate.generator import Generator
from multipatch_jax.generate.saliency import token_saliency
from multipatch_jax.generate.session import Session
from multipatch_jax.generate.settings import SETTINGS, GenerationSettings, settings_of_chats
from multipatch_jax.generate.slots import Slots

__all__ = [
    "SETTINGS",
    "Answer",
    "Chunk",
    "Engine",
    "GenerationSettings",
    "Generator",
    "Session",
    "Slots",
    "admit",
    "release",
    "round_length",
    "settings_of_chats",
    "start",
    "step",
    "text_features",
    "text_logits",
    "token_saliency",
]
