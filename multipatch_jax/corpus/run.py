"""Run a job over a corpus with Ray Data: manifest, actors, results; and go on where a run was stopped."""

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from multipatch_jax.arguments import require_positive_or_none
from multipatch_jax.checkpoint import find_folder, is_saved, local_folder, read_config, saved_parts
from multipatch_jax.config import DTYPES, ModelConfig
from multipatch_jax.corpus.asking import chat_about_an_image, chats_of_a_call
from multipatch_jax.corpus.cluster import ray_session, share_of_each
from multipatch_jax.corpus.error import CorpusError
from multipatch_jax.corpus.job import Job
from multipatch_jax.corpus.manifest import Manifest, is_manifest, make_manifest, read_manifest
from multipatch_jax.corpus.progress import Counter, bar_of
from multipatch_jax.corpus.run_folder import (
    DONE,
    MADE,
    RESULTS,
    check_complete,
    claim_device,
    claim_folder,
    count_errors,
    digest_of,
    ids_in,
    locked_folder,
    recover,
)
from multipatch_jax.corpus.tasks import TASKS
from multipatch_jax.corpus.worker import Worker
from multipatch_jax.files import require_path
from multipatch_jax.generate import round_length, settings_of_chats
from multipatch_jax.image import MAX_IMAGE_SIZE
from multipatch_jax.text import Processor

BATCH = 64  # rows that an actor is given at a time, unless its generator answers more
FILTER_MEMORY = 2**26  # bytes that Ray keeps for the ids that are done; it takes more where they need it


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run has done.

    Attributes:
      images: rows of the manifest, each of which has a row in the results.
      errors: rows whose image cannot be used; the column `error` says why.
      before: rows that an earlier run had done.
      seconds: of this run.
      results: the folder of Parquet files.
    """

    images: int
    errors: int
    before: int
    seconds: float
    results: Path


def run(
    source: str | Path,
    out: str | Path,
    *,
    model: str | Path,
    task: Literal["tokens", "pooled", "ask"] = "tokens",
    prompt: str | None = None,
    settings: Mapping[str, Any] | None = None,
    revision: str | None = None,
    dtype: str | None = None,
    token_dtype: str | None = None,
    batch_size: int | None = None,
    actors: int | None = None,
    rows_per_file: int | None = None,
    address: str | None = None,
    progress: bool = False,
    say: Callable[[str], object] | None = None,
) -> Summary:
    """Compute tokens or answers for every image of a corpus, and write them as Parquet (extra `corpus`).

    The same call goes on where an earlier one was stopped, by whatever, and each id comes out once. An image that
    cannot be used has its reason in the column `error`, and stops nothing.

        mp.corpus.run("photos", "tokens", model="HuggingFaceTB/SmolVLM-256M-Instruct", token_dtype="float16")

    | task | columns beside `id`, `path`, `member` and `error` |
    |---|---|
    | "tokens" | `rows`, `cols` (the grid of tiles, 0 if there is one tile), `tokens`: lists of D numbers |
    | "pooled" | `num_tokens`, `pooled`: the mean of the tokens, D numbers |
    | "ask" | `answer`, `finish_reason`, `num_tokens` |

    Args:
      source: a manifest (`corpus.manifest`): a Parquet file or a folder of them; or a folder of images or of
        WebDataset's tar files, or one tar file, of which `out/manifest.parquet` is made.
      out: the folder of the run; a new one, or that of the run that goes on. Every actor must reach it under this name.
      model: a model's folder or hub id, which every actor must reach under this name.
      task: what is computed; a key of `corpus.TASKS`.
      prompt: for "ask", the question about each image.
      settings: for "ask", fields of `GenerationSettings` as JSON has them, such as {"max_new_tokens": 100}.
      revision: of a hub id.
      dtype: of the params; None is float32 on a CPU and the checkpoint's elsewhere.
      token_dtype: of the numbers that are stored: "float16", "float32" or "bfloat16". None is the tokens' own dtype,
        and float32 for "pooled".
      batch_size: tiles in flight on a device, or for "ask" chats at a time; None chooses.
      actors: processes with a model each; None is one for each GPU or TPU host, or one on a CPU.
      rows_per_file: most rows of a file of results. A kill loses the files that are not written. None chooses by task.
      address: of a Ray cluster; None starts Ray on this machine.
      progress: whether to show a bar with images/s, tokens/s and the time left.
      say: called with lines about where files are; None says nothing.

    Raises:
      FileNotFoundError: the source or the model does not exist.
      ValueError: an argument does not fit, the manifest is wrong, the model cannot do the task, or `out` holds the
        results of another run. Nothing is written then; a new folder is deleted again.
      CorpusError: an actor failed, for example without memory. What was written stays.
    """
    started = time.monotonic()
    source, out = require_path("source", source), require_path("out", out, "the folder of a run")
    job, folder = _check(model, task, prompt, settings, revision, dtype, token_dtype, batch_size)
    rows_per_file = require_positive_or_none("rows_per_file", rows_per_file, "rows")
    actors = require_positive_or_none("actors", actors, "processes")
    say = say or (lambda line: None)
    if not source.exists():
        raise FileNotFoundError(f"There is no manifest or folder {source}.")
    manifest = read_manifest(source) if is_manifest(source) else None
    with locked_folder(out):
        if manifest is None:
            manifest = _made_manifest(source, out, progress)
        claim_folder(out, job, manifest, digest_of(folder, TASKS[task].parts, progress))
        before = len(ids_in(out / DONE))
        if rows_per_file is None:  # a block of images that the manifest itself holds must not be large
            most = BATCH if "bytes" in manifest.columns else len(manifest.ids)
            rows_per_file = min(TASKS[task].rows_per_file, most)
        if before < len(manifest.ids):
            with ray_session(address, actors) as files:
                if files:
                    say(f"Ray's own files are in {files}")
                _run(job, manifest, out, before, rows_per_file, actors, progress)
        recover(out)  # an actor of an earlier run may have written meanwhile
        check_complete(out, manifest)
        seconds = time.monotonic() - started
        return Summary(len(manifest.ids), count_errors(out), before, seconds, out / RESULTS)


def _check(
    model: str | Path,
    task: str,
    prompt: str | None,
    settings: Mapping[str, Any] | None,
    revision: str | None,
    dtype: str | None,
    token_dtype: str | None,
    batch_size: int | None,
) -> tuple[Job, Path]:
    """Return the job and the model's folder, after all checks that need no Ray."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r:.60}.")
    for name, value in (("dtype", dtype), ("token_dtype", token_dtype)):
        if value is not None and value not in DTYPES:
            raise ValueError(f"{name} must be one of {', '.join(DTYPES)} or None, got {value!r:.60}.")
    batch_size = require_positive_or_none("batch_size", batch_size, "tiles, or chats for ask,")
    if TASKS[task].asks != (prompt is not None):
        wanted = "a question" if TASKS[task].asks else "None"
        raise ValueError(f"prompt must be {wanted} for the task {task!r}, got {prompt!r:.60}.")
    if not TASKS[task].asks and settings:
        raise ValueError(f"settings are for answers, and the task {task!r} gives none: leave them out.")
    folder = find_folder(model, TASKS[task].parts, revision=revision)
    config = read_config(folder)
    _require_model(folder, config, task)
    name = str(model) if not Path(model).is_dir() else os.path.abspath(model)
    if local_folder(model) is None:
        revision = folder.name  # the commit, which every actor is to load
    job = Job(name, task, revision, dtype, token_dtype, prompt, dict(settings or {}), batch_size=batch_size)
    if prompt is not None:
        length = _longest_prompt(folder, config, prompt) + _most_new_tokens(job.settings)
        job = dataclasses.replace(job, max_length=round_length(length))
    return job, folder


def _require_model(folder: Path, config: ModelConfig, task: str) -> None:
    """Raise a ValueError if the model cannot do the task, or a folder of ours lacks a part that the task reads."""
    if TASKS[task].asks and (config.text is None or config.embedding_size is not None):
        raise ValueError(f"{folder} has no language model that answers: the task must be tokens or pooled.")
    parts = TASKS[task].parts
    missing = set(parts) - set(saved_parts(folder)) if is_saved(folder) else set()
    if missing:
        raise ValueError(
            f"{folder} must hold all of {', '.join(parts)} for this task, and lacks {', '.join(sorted(missing))}: "
            f"convert the model again with these parts."
        )


def _longest_prompt(folder: Path, config: ModelConfig, prompt: str) -> int:
    """Return the tokens of the prompt about the image with the most tiles."""
    image = np.zeros((MAX_IMAGE_SIZE, MAX_IMAGE_SIZE, 3), np.uint8)
    processor = Processor.from_pretrained(folder)
    return processor([chat_about_an_image(prompt)], [image], config=config).input_ids.shape[1]


def _most_new_tokens(settings: Mapping[str, Any]) -> int:
    """Return the limit of an answer, after the checks of all settings."""
    try:
        json.dumps(settings)
    except TypeError as error:
        raise ValueError(f"settings must be values that JSON has: {error}.") from None
    if not isinstance(settings.get("seed", 0), int):
        raise ValueError("settings must have one seed for all images.")
    return settings_of_chats(1, settings)[0].max_new_tokens


def _made_manifest(source: Path, out: Path, progress: bool) -> Manifest:
    """Return the manifest of a folder of images or of tar files: made now, and equal to what an earlier run made."""
    path = out / MADE
    with tempfile.TemporaryDirectory(prefix=".manifest-", dir=out) as temporary:
        now = Path(temporary) / MADE
        make_manifest(source, now, progress=progress)
        if not path.exists():
            now.replace(path)
        old, new = read_manifest(path), read_manifest(now) if now.exists() else None
    if new is not None and new.digest != old.digest:
        raise ValueError(
            f"The images in {source} are others than when the run began ({len(old.ids)} then, {len(new.ids)} now): "
            f"give {path} to finish what it began with, or choose another folder."
        )
    return old


def _run(
    job: Job, manifest: Manifest, out: Path, before: int, rows_per_file: int, actors: int | None, progress: bool
) -> None:
    """Run the job with Ray Data, for the rows that are not done."""
    import ray.data
    from ray.data.checkpoint import CheckpointConfig
    from ray.exceptions import RayError

    kind, number, share = share_of_each(actors, whole_host=not TASKS[job.task].asks)
    claim_device(out, kind)
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Counter)
    counter = remote.remote()
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    done = CheckpointConfig(
        id_column="id", checkpoint_path=os.path.abspath(out / DONE), delete_checkpoint_on_success=False
    )
    done.checkpoint_actor_memory_bytes = FILTER_MEMORY
    context.checkpoint_config = done
    with ray.data.DataContext.current(context), bar_of(counter, before, len(manifest.ids), progress):
        # Small blocks: a block is a file of results, written whole, and what Ray's checkpoint counts.
        rows = ray.data.read_parquet(list(manifest.files)).select_columns(list(manifest.columns))
        rows = rows.repartition(target_num_rows_per_block=rows_per_file)
        results = rows.map_batches(
            Worker,
            fn_constructor_args=(job, manifest.base, kind, counter),
            batch_size=min(max(BATCH, chats_of_a_call(job) if TASKS[job.task].asks else 0), rows_per_file),
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=number),
            **share,
        )
        try:
            results.write_parquet(os.path.abspath(out / RESULTS))
        except RayError as error:
            raise CorpusError(
                f"An actor failed: {_reason(error, counter)}. What is in {out} stays, and the same call goes on."
            ) from error


def _reason(error: Exception, counter: Any) -> str:
    """Return why a run failed: what an actor has said of itself, or else what Ray says."""
    import ray
    from ray.exceptions import RayError

    said: Any = None
    with contextlib.suppress(RayError):  # the counter may be gone too
        said = ray.get(counter.failure.remote(), timeout=10)
    return " ".join(str(said or getattr(error, "cause", None) or error).split()).rstrip(".")[:500]
