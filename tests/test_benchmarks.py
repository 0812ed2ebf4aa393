"""Benchmarks as tests: programs compile for a TPU, and contrastive training learns."""

import importlib.util
import re

import pytest

from benchmarks import contrastive
from tests.helpers.processes import run_python
from tests.helpers.project import PAGES, ROOT


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="TPU's compiler, libtpu, is for Linux alone")
def test_programs_compile_for_a_tpu():
    """`python -m benchmarks.aot` shows more of these programs."""
    done = run_python("-m", "benchmarks.aot", "--short", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "tpu_custom_call, no buffer of scores" in lines[0]
    assert "no collective" in lines[1]


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_to_its_end():
    """All systems once, small and on this CPU, so that no time on a GPU is lost to a fault of the script."""
    done = run_python("-m", "benchmarks.gpu", "--short", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    systems = ("multipatch_jax", "transformers, sdpa", "transformers, torch.compile")
    lines = done.stdout.splitlines()
    assert [sum(line.startswith(f"{name} ") for line in lines) for name in systems] == [4, 4, 4]  # a tower, 3 batches
    for name in ("encode_image, on the GPU", "encode_image, NumPy", "encode_images, NumPy", "matmul, XLA"):
        assert any(line.startswith(name) for line in lines), name


HELD_OUT = ("held-out scans", "held-out scans, unseen numbers")


def test_contrastive_training_matches_held_out_pairs():
    """Half of the example's length gives 54 % and 27 % (seed 0), chance being 1 %."""
    result = contrastive.run(seed=0, steps=200)
    assert all(result[f"{task}, before"] < 0.05 for task in HELD_OUT)
    assert all(result[task] > 0.15 for task in HELD_OUT)
    assert result["last loss"] < result["first loss"] / 4


@pytest.mark.slow
def test_the_contrastive_example_is_as_good_as_the_docs_say():
    result = contrastive.run(seed=0)
    said = re.search(r"for\s(\d+) % of images, and for (\d+) %", PAGES["docs/training.md"])
    assert said, "docs/training.md does not say it"
    assert [result[task] for task in HELD_OUT] == pytest.approx([int(n) / 100 for n in said.groups()], abs=0.04)
