"""The table of tasks: what each reads of a checkpoint, and which function prepares it in an actor.

A new task is a function that returns a `Loaded`, in a file of its own, and a row here.
"""

import dataclasses
from collections.abc import Callable

from multipatch_jax.corpus.asking import load_answers
from multipatch_jax.corpus.encoding import load_pooled, load_tokens
from multipatch_jax.corpus.job import Job, Loaded
from multipatch_jax.params import PARTS


@dataclasses.dataclass(frozen=True)
class Task:
    """A row of `TASKS`.

    Attributes:
      load: prepares the task in an actor.
      parts: of the checkpoint that it reads.
      asks: whether it needs a prompt, a processor and a language model.
      rows_per_file: most rows of a file of results, unless the user says.
    """

    load: Callable[[Job], Loaded]
    parts: tuple[str, ...]
    asks: bool
    rows_per_file: int


TASKS = {
    "tokens": Task(load_tokens, ("vision", "connector"), False, 64),  # 60 MB of SmolVLM-256M's, in float16
    "pooled": Task(load_pooled, ("vision", "connector"), False, 512),
    "ask": Task(load_answers, PARTS, True, 64),
}
"""The tasks of a run by name: what each reads of a checkpoint, and how it is prepared."""
