"""Draw tiles and tokens: pictures with Pillow alone, and figures with matplotlib (the `demo` extra)."""

from multipatch_jax.plot.answers import plot_answers
from multipatch_jax.plot.figures import (
    plot_errors,
    plot_pca,
    plot_progress,
    plot_similarity,
    plot_tiles,
)
from multipatch_jax.plot.panels import require_matplotlib
from multipatch_jax.plot.pictures import describe, draw_tiles
from multipatch_jax.plot.pipeline import plot_pipeline
from multipatch_jax.plot.saliency import plot_saliency
from multipatch_jax.plot.tokens import cosine_similarity, pca_colors, token_at, token_map

__all__ = [
    "cosine_similarity",
    "describe",
    "draw_tiles",
    "pca_colors",
    "plot_answers",
    "plot_errors",
    "plot_pca",
    "plot_pipeline",
    "plot_progress",
    "plot_saliency",
    "plot_similarity",
    "plot_tiles",
    "require_matplotlib",
    "token_at",
    "token_map",
]
