"""What is computed for every image of a corpus: the driver checks it, and every actor carries it out."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

Source = bytes | Exception  # the file of an image, or why it cannot be read
Answers = Callable[[Iterable[Source]], Iterator[dict[str, Any] | Exception]]


@dataclasses.dataclass(frozen=True)
class Job:
    """What is computed for every image of a corpus.

    Attributes:
      model: a folder or hub id, which every actor must reach under this name.
      task: a key of `TASKS`.
      revision: of a hub id; None is the main branch.
      dtype: of the params; None is `checkpoint.default_dtype()` of the actor.
      token_dtype: of the tokens that are stored; None is their own.
      prompt: the question that is asked about each image, or None.
      settings: fields of `GenerationSettings` for the answers.
      max_length: most tokens of a prompt and its answer together.
      batch_size: tiles in flight on a device, or chats that are answered at a time; None chooses.
    """

    model: str
    task: str
    revision: str | None = None
    dtype: str | None = None
    token_dtype: str | None = None
    prompt: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_length: int = 2048
    batch_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A task that is ready: its model is loaded, and its programs are compiled.

    Attributes:
      fields: of the columns that the task adds to the results.
      answer: takes the sources of some rows. It yields for each, in order, a dict with a value for each field, or the
        error of an image that cannot be used.
      count: takes such a dict and returns the number of tokens in it, for the progress bar.
    """

    fields: Sequence[pa.Field]
    answer: Answers
    count: Callable[[Mapping[str, Any]], int]
