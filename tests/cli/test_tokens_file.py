"""The file of tokens: readable whatever the names are and whatever fails, and on the disk while it grows."""

import json

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import multipatch_jax as mp
from multipatch_jax.cli.tokens_file import tokens_file

PLAN = mp.plan_tiles(10**9, 10**9)
NAMES = st.text(st.characters(min_codepoint=1, exclude_categories=()), max_size=20)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    photos=st.lists(st.tuples(NAMES, st.booleans()), min_size=1, max_size=12), model=NAMES, dtype=st.sampled_from("ef")
)
def test_it_says_which_array_is_whose(photos, model, dtype, tmp_path):
    names = [name for name, _ in photos]
    with tokens_file(tmp_path / "o", names, model) as file:
        for index, (_, fails) in enumerate(photos):
            if fails:
                file.skip(index)
            else:
                file.append(index, PLAN, np.full((index + 1, 3), index, dtype))
    with safe_open(tmp_path / "o", "numpy") as read:
        metadata = read.metadata()
        images, failed = json.loads(metadata["images"]), json.loads(metadata["failed"])
        assert {entry["index"]: entry["file"] for entry in failed} == {
            i: n for i, (n, fails) in enumerate(photos) if fails
        }
        assert [entry["file"] for entry in images] == [name for name, fails in photos if not fails]
        assert set(read.keys()) == {entry["key"] for entry in images}
        for entry in images:
            index = int(entry["key"].removeprefix("tokens_"))
            assert names[index] == entry["file"]
            np.testing.assert_array_equal(read.get_tensor(entry["key"]), np.full((index + 1, 3), index, dtype))


def test_arrays_are_on_the_disk_before_the_file_is_finished(tmp_path):
    with tokens_file(tmp_path / "o", ["a", "b"], "model") as file:
        for index in range(2):
            file.append(index, PLAN, np.ones((1000, 10), np.float32))
            (growing,) = tmp_path.iterdir()
            assert growing.stat().st_size > 40_000 * (index + 1)
        assert not (tmp_path / "o").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["o"]
