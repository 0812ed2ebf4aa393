"""Run a model over a corpus of images with Ray Data (extra `corpus`): on this machine, or on a cluster."""

import importlib.util

if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
    raise ImportError('A corpus needs Ray Data and pyarrow: pip install "multipatch_jax[corpus]".')

from multipatch_jax.corpus.columns import to_numpy
from multipatch_jax.corpus.error import CorpusError
from multipatch_jax.corpus.manifest import make_manifest
from multipatch_jax.corpus.run import Summary, run
from multipatch_jax.corpus.tasks import TASKS

__all__ = ["TASKS", "CorpusError", "Summary", "make_manifest", "run", "to_numpy"]
