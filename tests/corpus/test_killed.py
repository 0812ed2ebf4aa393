"""A run that is killed and goes on: each id comes out once, with the tokens of `encode_image` or a reason."""

import os
import signal
import subprocess
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import multipatch_jax as mp
from multipatch_jax.corpus.run_folder import ids_in, recover
from tests.helpers.corpora import BROKEN, make_corpus
from tests.helpers.killing import actors_of, kill_run, resident_bytes
from tests.helpers.processes import FOR_RAY, start_python

REASONS = ("is empty", "no image that Pillow knows", "decompression bomb")


def start(manifest, out, *options):
    command = ["-m", "multipatch_jax", "corpus", manifest, out, "--model", "multipatch/reader", "--task", "tokens"]
    return start_python(*command, *options, changes=FOR_RAY)


def done(out):
    return len(list((out / "done").glob("*.parquet")))


def kill_after(driver: subprocess.Popen, out, files: int) -> None:
    """Kills a run with its actors as soon as it has written so many files more."""
    before, end = done(out), time.monotonic() + 600
    while done(out) < before + files:
        assert driver.poll() is None, f"the run was over before it could be killed: {driver.communicate()[0]}"
        assert time.monotonic() < end, "the run writes nothing"
        time.sleep(0.01)
    assert kill_run(driver) > 0


def check(out, files, bad):
    """All that was promised of the results."""
    table = parquet.read_table(out / "results")
    assert sorted(table["id"].to_pylist()) == sorted(files)
    errors = dict(zip(table["id"].to_pylist(), table["error"].to_pylist(), strict=True))
    assert {one for one, error in errors.items() if error} == bad
    for one in bad:
        assert REASONS[BROKEN.index(files[one])] in errors[one]
    config, params = mp.from_pretrained("multipatch/reader", dtype="float32")
    rows = {one: row for one, row in zip(table["id"].to_pylist(), mp.corpus.to_numpy(table, "tokens"), strict=True)}
    good = [one for one in files if one not in bad]
    stream = mp.iter_encode_images(params, [files[one] for one in good], config=config, with_plans=True)
    grids = zip(table["id"].to_pylist(), table["rows"].to_pylist(), table["cols"].to_pylist(), strict=True)
    grid = {one: (rows, cols) for one, rows, cols in grids}
    for one, (tokens, plan) in zip(good, stream, strict=True):
        np.testing.assert_array_equal(rows[one], tokens)
        assert grid[one] == (plan.rows, plan.cols)
    for one in good[:20]:
        np.testing.assert_array_equal(rows[one], np.asarray(mp.encode_image(params, files[one], config=config)))


def test_a_killed_run_goes_on(tmp_path):
    files, bad = make_corpus(tmp_path / "m.parquet", 60, bad_every=20)
    out = tmp_path / "out"
    driver = start(tmp_path / "m.parquet", out, "--rows-per-file", 4)
    kill_after(driver, out, 3)
    driver = start(tmp_path / "m.parquet", out, "--rows-per-file", 4)
    said, _ = driver.communicate()
    assert driver.returncode == 1, said  # some images have an error
    assert "60 images" in said
    assert "3 with an error" in said
    assert "by an earlier run" in said
    check(out, files, bad)


@pytest.mark.slow
def test_ten_thousand_images_and_three_kills(tmp_path):
    """Also: neither the actors nor the object store grow."""
    import ray

    files, bad = make_corpus(tmp_path / "m.parquet", 10_000)
    assert len(bad) == 200
    out, chance = tmp_path / "out", np.random.default_rng()
    for _ in range(3):
        kill_after(start(tmp_path / "m.parquet", out, "--actors", 2), out, int(chance.integers(1, 25)))
    recover(out)
    before = len(ids_in(out / "done"))
    assert before == len(ids_in(out / "results"))
    samples: list[tuple[int, float]] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.5):
            used = ray.cluster_resources().get("object_store_memory", 0) - ray.available_resources().get(
                "object_store_memory", 0
            )
            samples.append((sum(map(resident_bytes, actors_of(os.getpid()))), used))

    ray.init(address="local", num_cpus=10, include_dashboard=False, log_to_driver=False)
    thread = threading.Thread(target=sample)
    try:
        thread.start()
        summary = mp.corpus.run(tmp_path / "m.parquet", out, model="multipatch/reader", task="tokens", actors=2)
    finally:
        over.set()
        thread.join()
        ray.shutdown()
    assert (summary.images, summary.errors, summary.before) == (10_000, 200, before)
    assert before > 0
    check(out, files, bad)
    resident, stored = np.array([pair for pair in samples if pair[0] > 5e8]).T
    print(f"actors: {np.percentile(resident, [5, 50, 95]) / 1e9} GB; object store: {stored.max() / 1e6} MB")
    quarter = len(resident) // 4
    assert np.median(resident[-quarter:]) <= 1.15 * np.median(resident[quarter : 2 * quarter])
    assert stored.max() <= 1e9


@pytest.mark.slow
def test_a_batch_that_kills_every_actor_ends_the_run(tmp_path):
    """Ray would start the actor again without end. The image is a pipe, which tells when an actor reads it."""
    pipe = tmp_path / "image.png"
    os.mkfifo(pipe)
    parquet.write_table(pa.table({"id": [7], "path": [str(pipe)]}), tmp_path / "m.parquet")
    driver = start(tmp_path / "m.parquet", tmp_path / "out")
    kills, end = 0, time.monotonic() + 600
    while driver.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
        try:
            writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads
            continue
        for pid in actors_of(driver.pid):
            os.kill(pid, signal.SIGKILL)
        kills += 1
        os.close(writer)
    said, _ = driver.communicate()
    assert driver.returncode == 2, said
    assert f"{kills} actors died with the batch of 1 images that begins with id 7" in said
    assert "the same call goes on" in said
