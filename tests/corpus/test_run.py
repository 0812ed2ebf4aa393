"""Runs over a corpus: the right answers and vectors, and errors that come before Ray starts and lose nothing."""

import fcntl
import json
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import multipatch_jax as mp
from examples.reader import pages
from multipatch_jax.corpus.encoding import load_pooled, load_tokens
from multipatch_jax.corpus.job import Job
from multipatch_jax.corpus.manifest import make_manifest, read_manifest
from multipatch_jax.corpus.run_folder import claim_device, claim_folder, digest_of
from tests.helpers import tolerances
from tests.helpers.processes import FOR_RAY, many_devices, python_output, run_python

PARTS = ("vision", "connector")

NUMBERS = [("27", "4", "813"), ("905",), ("6", "31"), ("4482",)]
SIZES = [(900, 700), (300, 1600), (1600, 500), (640, 480)]


@pytest.fixture
def folder(tmp_path):
    """Pages of held-out scans, one upside down by its EXIF orientation, and a file that is no image."""
    out = tmp_path / "pages"
    out.mkdir()
    for seed, (size, numbers) in enumerate(zip(SIZES, NUMBERS, strict=True)):
        page = pages.draw_page(np.random.default_rng(seed), *size, numbers, held_out=True)
        image = Image.fromarray(page.pixels)
        exif = image.getexif()
        if seed == 3:
            image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_180), 3
        image.save(out / f"{seed}.png", exif=exif)
    (out / "4.png").write_bytes(b"no image")
    return out


def corpus(*arguments):
    return run_python("-m", "multipatch_jax", "corpus", *arguments, changes=FOR_RAY)


def test_a_folder_of_pages_is_read(folder, tmp_path):
    ask = ("--model", "multipatch/reader", "--task", "ask", "--prompt", "Read the numbers.")
    done = corpus(folder, tmp_path / "out", *ask)
    assert done.returncode == 1, done.stderr
    assert "5 images, 1 with an error" in done.stdout
    assert "Ray's own files are in" in done.stderr
    table = parquet.read_table(tmp_path / "out/results").sort_by("id")
    assert table["path"].to_pylist() == [str(folder / f"{index}.png") for index in range(5)]
    answers = [answer and answer.strip() for answer in table["answer"].to_pylist()]
    assert answers == [*(" ".join(numbers) for numbers in NUMBERS), None]
    assert table["finish_reason"].to_pylist() == ["stop"] * 4 + [None]
    errors = table["error"].to_pylist()
    assert errors[:4] == [None] * 4
    assert "no image that Pillow knows" in errors[4]
    # What is complete is not done again, and nothing else may go there.
    assert "5 of them by an earlier run" in corpus(folder, tmp_path / "out", *ask).stdout
    other = corpus(folder, tmp_path / "out", *ask[:-1], "What is this?")
    assert other.returncode == 2
    assert "another run (prompt was 'Read the numbers.' and is 'What is this?'" in other.stderr
    Image.new("RGB", (9, 9)).save(folder / "5.png")
    changed = corpus(folder, tmp_path / "out", *ask)
    assert changed.returncode == 2
    assert "(5 then, 6 now): give" in changed.stderr
    assert len(parquet.read_table(tmp_path / "out/results")) == 5


@pytest.mark.parametrize("token_dtype", [None, "float16", "bfloat16"])
def test_tokens_and_their_mean_are_those_of_the_model(tiny, folder, token_dtype):
    files = ((folder / f"{index}.png").read_bytes() for index in range(5))
    sources: list[Any] = [*files, ValueError("it could not be read")]
    tokens = load_tokens(Job(str(tiny.folder), "tokens", token_dtype=token_dtype))
    pooled = load_pooled(Job(str(tiny.folder), "pooled", token_dtype=token_dtype))
    for index, (one, mean) in enumerate(zip(tokens.answer(sources), pooled.answer(sources), strict=True)):
        if index > 3:
            assert isinstance(one, ValueError)
            assert "Image 4" not in str(one)  # the stream counts images of a batch, which means nothing to users
            assert str(one) == str(mean)
            continue
        assert isinstance(one, dict)
        assert isinstance(mean, dict)
        expected = np.asarray(mp.encode_image(tiny.params, sources[index], config=tiny.config))
        height, width = mp.load_image(sources[index]).shape[:2]
        plan = mp.plan_tiles(height, width, tiny.config.tiling)
        dtype = np.dtype(token_dtype or "float32")
        np.testing.assert_array_equal(one["tokens"], expected.astype(dtype))
        np.testing.assert_array_equal(mean["pooled"], expected.mean(0, dtype=np.float32).astype(dtype))
        assert (one["rows"], one["cols"]) == (plan.rows, plan.cols)
        assert tokens.count(one) == pooled.count(mean) == mean["num_tokens"] == plan.num_tokens
    assert tokens.fields[-1].metadata == {b"dtype": (token_dtype or "float32").encode()}


ON_ALL_DEVICES = """
import io
import jax, numpy as np
from PIL import Image
import multipatch_jax as mp
from multipatch_jax.corpus.encoding import load_tokens
from multipatch_jax.corpus.job import Job
from multipatch_reference import distance
file = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)).save(file, "png")
loaded = load_tokens(Job("multipatch/reader", "tokens"))
devices = max(len(array.devices()) for array in jax.live_arrays())
(found,) = loaded.answer([file.getvalue()])
config, params = mp.from_pretrained("multipatch/reader", dtype="float32")
expected = np.asarray(mp.encode_image(params, file.getvalue(), config=config))
print(devices, distance(found["tokens"], expected))
"""


def test_an_actor_uses_all_devices_that_it_is_given():
    devices, away = python_output("-c", ON_ALL_DEVICES, changes=many_devices(3)).split()
    assert devices == "3"
    assert float(away) <= tolerances.SAME_PROGRAM


def test_numbers_that_float16_cannot_hold_are_an_error_of_their_image(tiny, folder, tmp_path):
    params = {**tiny.params, "connector": {"modality_projection": {"proj": {"kernel": None}}}}
    kernel = tiny.params["connector"]["modality_projection"]["proj"]["kernel"]
    params["connector"]["modality_projection"]["proj"]["kernel"] = kernel * 1e6
    mp.save_pretrained(tmp_path / "large", tiny.config, params)
    loaded = load_tokens(Job(str(tmp_path / "large"), "tokens", token_dtype="float16"))
    (error,) = loaded.answer([(folder / "0.png").read_bytes()])
    assert "store them as float32" in str(error)


def run(folder, tmp_path, **changes: Any):
    options: dict[str, Any] = {"model": "multipatch/reader", "task": "tokens"}
    return mp.corpus.run(folder, tmp_path / "out", **(options | changes))


REFUSED = {
    "task": ({"task": "embed"}, "task must be one of tokens, pooled, ask, got 'embed'"),
    "no prompt": ({"task": "ask"}, "prompt must be a question for the task 'ask', got None"),
    "a prompt": ({"prompt": "What?"}, "prompt must be None for the task 'tokens'"),
    "settings": ({"settings": {"temperature": 1}}, "leave them out"),
    "setting": ({"task": "ask", "prompt": "?", "settings": {"temperatur": 1}}, "Unknown setting 'temperatur'"),
    "seeds": ({"task": "ask", "prompt": "?", "settings": {"seed": [1, 2]}}, "one seed"),
    "function": ({"task": "ask", "prompt": "?", "settings": {"should_stop": print}}, "values that JSON has"),
    "dtype": ({"dtype": "int8"}, "dtype must be one of"),
    "token_dtype": ({"token_dtype": "float64"}, "token_dtype must be one of"),
    "actors": ({"actors": 0}, "actors must be a positive number"),
    "batch_size": ({"batch_size": 0}, "batch_size must be a positive number"),
    "no rows": ({"rows_per_file": 0}, "rows_per_file must be a positive number"),
    "rows_per_file": ({"rows_per_file": -1}, "rows_per_file must be a positive number"),
    "model": ({"model": "no/such/folder/here"}, "no/such/folder/here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_argument_is_refused_and_nothing_is_written(folder, tmp_path, case):
    changes, said = REFUSED[case]
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        run(folder, tmp_path, **changes)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_language_model_cannot_answer(folder, tmp_path):
    config, params = mp.from_pretrained("multipatch/reader")
    mp.save_pretrained(tmp_path / "tower", mp.ModelConfig(config.vision, config.connector, config.tiling), params)
    with pytest.raises(ValueError, match="no language model that answers: the task must be tokens or pooled"):
        run(folder, tmp_path, model=tmp_path / "tower", task="ask", prompt="What?")


def test_a_folder_without_the_decoder_cannot_answer(folder, tmp_path):
    config, params = mp.from_pretrained("multipatch/reader")
    mp.save_pretrained(tmp_path / "tower", config, params)
    with pytest.raises(ValueError, match="lacks embeddings, text: convert the model again"):
        run(folder, tmp_path, model=tmp_path / "tower", task="ask", prompt="What?")


@pytest.mark.parametrize("source", ["nothing", "empty"])
def test_a_source_without_images_leaves_no_folder(tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path / source)):
        run(tmp_path / source, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_not_written_into(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("dear")
    with pytest.raises(FileExistsError, match=r"holds other files and no run\.json"):
        run(folder, tmp_path)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"thesis.tex"}


def test_a_manifest_of_the_wrong_kind_leaves_no_folder(tmp_path):
    parquet.write_table(pa.table({"path": ["a"]}), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match="`id`"):
        run(tmp_path / "m.parquet", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_second_process_is_kept_out(folder, tmp_path):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="Another process"):
            run(folder, tmp_path)


def test_other_weights_of_the_same_shapes_are_another_run(folder, tmp_path):
    config, params = mp.from_pretrained("multipatch/reader")
    for name in ("first", "second"):
        mp.save_pretrained(tmp_path / name, config, params)
        params["connector"] = mp.init_params(jax.random.key(0), config)["connector"]
    (tmp_path / "out").mkdir()
    make_manifest(folder, tmp_path / "m.parquet")
    manifest, job = read_manifest(tmp_path / "m.parquet"), Job("first", "tokens")
    claim_folder(tmp_path / "out", job, manifest, digest_of(tmp_path / "first", PARTS, False))
    moved = Job("moved", "tokens", batch_size=4)
    claim_folder(tmp_path / "out", moved, manifest, digest_of(tmp_path / "first", PARTS, False))
    with pytest.raises(ValueError, match="another run \\(weights was"):
        claim_folder(tmp_path / "out", job, manifest, digest_of(tmp_path / "second", PARTS, False))
    assert json.loads((tmp_path / "out/run.json").read_text())["images"] == 5
    claim_device(tmp_path / "out", "gpu")
    claim_device(tmp_path / "out", "gpu")
    with pytest.raises(ValueError, match="begun on a gpu, and a cpu may give other results"):
        claim_device(tmp_path / "out", "cpu")
    claim_folder(tmp_path / "out", job, manifest, digest_of(tmp_path / "first", PARTS, False))
