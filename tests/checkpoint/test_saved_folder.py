"""Folders of `save_pretrained`: what is saved is loaded, what cannot be loaded is refused, and damage is seen."""

import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import multipatch_jax as mp
from multipatch_jax.checkpoint import saved_parts
from tests.helpers.checkpoints import ALL, assert_same_params

HEAD = {"tens": np.ones((10, 48), np.float32), "mlp": {"kernel": jnp.ones((2, 3), "bfloat16")}, "bias": jnp.float32(-1)}


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A folder that holds the tiny model's tower and connector, and a head."""
    folder = tmp_path_factory.mktemp("saved") / "saved"
    mp.save_pretrained(folder, tiny.config, tiny.params | {"head": HEAD})
    return folder


@pytest.fixture
def spoiled(saved, tmp_path):
    """A copy of it, to spoil."""
    return shutil.copytree(saved, tmp_path / "spoiled")


def old(folder):
    """The folder as an earlier version saved it."""
    (folder / "multipatch_digests.json").unlink()
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Both saved and loaded, or neither.


def test_subtrees_of_the_users_own_are_saved_and_loaded(saved, tiny, tiny_tiles):
    config, params = mp.from_pretrained(saved)
    assert_same_params(params, tiny.params | {"head": HEAD})
    assert params["head"]["bias"].shape == ()
    assert saved_parts(saved) == ("vision", "connector")
    np.testing.assert_array_equal(
        mp.encode_tiles(params, tiny_tiles, config=config), mp.encode_tiles(tiny.params, tiny_tiles, config=config)
    )
    _, params = mp.from_pretrained(saved, parts="vision", dtype="float16")
    assert params.keys() == {"vision_model", "head"}
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float16"}


def test_parts_that_were_not_saved_are_named(saved):
    with pytest.raises(mp.CheckpointError, match="saved with vision, connector and lacks embeddings, text: convert or"):
        mp.from_pretrained(saved, parts="all")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": {"ids": np.zeros(3, np.int32)}}, "one of float32, bfloat16, float16, got head/ids of int32"),
        ({"head": {"x": np.zeros(3, np.complex64)}}, "got head/x of complex64"),
        ({"head": {"x": np.zeros(3)}}, "got head/x of float64"),
        ({"head": {"x": np.zeros(3, ">f4")}}, "got head/x of >f4"),
        ({"head": {"x": 1.5}}, "arrays or dicts of them, got head/x of type float"),
        ({"head": {"x": None}}, "got head/x of type NoneType"),
        ({"head": {"x": [np.zeros(3, np.float32)]}}, "got head/x of type list"),
        ({"head": {}}, "head must hold arrays, got an empty dict"),
        ({"head": {"a/b": np.zeros(3, np.float32)}}, "keys of head must be texts without a slash, got 'a/b'"),
        ({5: np.zeros(3, np.float32)}, "keys of params must be texts without a slash, got 5"),
        ({"vision_model": np.zeros(3, np.float32)}, "not of this config"),
        ({"vision_model": {"mine": np.zeros(3, np.float32)}}, r"\+ vision_model/mine"),
        ({"connector": None}, r"\+ connector"),
        ({"text_model": {"mine": np.zeros(3, np.float32)}}, r"\+ text_model/mine"),
        ({"text_model": np.zeros(3, np.float32)}, r"\+ text_model"),
        ({"lora": {"x": np.zeros(3, np.float32)}}, "hold LoRA factors"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(change, message, tiny, tmp_path):
    with pytest.raises(ValueError, match=message):
        mp.save_pretrained(tmp_path / "new", tiny.config, tiny.params | change)
    if "lora" not in change:
        with pytest.raises(ValueError, match=message):
            mp.export_hf(tmp_path / "new", tiny.config, tiny.params | change)
    assert list(tmp_path.iterdir()) == []


def test_params_that_a_step_has_taken_over_are_refused(tiny, tmp_path):
    params = jax.tree.map(jnp.array, tiny.params)
    params["connector"]["modality_projection"]["proj"]["kernel"].delete()
    with pytest.raises(ValueError, match="connector/modality_projection/proj/kernel is deleted: a train step"):
        mp.save_pretrained(tmp_path / "new", tiny.config, params)


FACTORS = {"a": np.zeros((1536, 2), np.float32), "b": np.zeros((3, 48), np.float32)}  # of two ranks


@pytest.mark.parametrize(
    "lora",
    [
        None,
        {"x": np.zeros(3, np.float32)},
        {"connector": {"a": 1}},
        {"connector": {"modality_projection": {"proj": {"kernel": FACTORS}}}},
    ],
)
def test_factors_of_no_kernel_are_refused(lora, tiny, tmp_path):
    with pytest.raises(ValueError, match=r'params\["lora"\] must (be a nested dict|hold factors a and b)'):
        mp.export_hf(tmp_path / "new", tiny.config, tiny.params | {"lora": lora})


def test_export_names_the_subtrees_that_it_has_no_place_for(tiny, tmp_path):
    with pytest.raises(ValueError, match="has no place for head: leave it out"):
        mp.export_hf(tmp_path / "new", tiny.config, tiny.params | {"head": HEAD})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, path: mp.save_pretrained(None, model.config, model.params), "path must be the path"),  # type: ignore
        (lambda model, path: mp.save_pretrained(path, None, model.params), "config must be a ModelConfig"),  # type: ignore
        (lambda model, path: mp.save_pretrained(path, model.config, None), "params must be a nested dict"),  # type: ignore
        (lambda model, path: mp.save_pretrained(path, model.config, {}), "params must hold arrays"),
        (lambda model, path: mp.export_hf(path, model.config, 5), "params must be a nested dict"),  # type: ignore
        (lambda model, path: mp.export_hf(path, model.config, model.params, dtype="i4"), "dtype must be one of"),
        (lambda model, path: mp.export_hf(path, model.config, model.params, dtype="no"), "dtype must be one of .*'no'"),
        (lambda model, path: mp.export_hf(path, model.config, model.params, base=5), "base must be"),  # type: ignore
        (lambda model, path: mp.from_pretrained(None), "name_or_path must be a model's folder or its hub id, got None"),  # type: ignore
        (lambda model, path: mp.from_pretrained(""), "name_or_path must be a model's folder or its hub id, got ''"),
        (lambda model, path: mp.from_pretrained(model.folder, dtype="float64"), "dtype must be one of .*float64"),
        (lambda model, path: mp.from_pretrained(model.folder, dtype=object()), "dtype must be one of float32"),
        (lambda model, path: mp.from_pretrained(model.folder, parts=5), "parts must name some of"),  # type: ignore
        (lambda model, path: mp.from_pretrained(model.folder, parts=[["vision"]]), "parts must name"),  # type: ignore
        (lambda model, path: mp.from_pretrained("no/model", parts=["sound"]), "parts must name some of"),
        (lambda model, path: mp.from_pretrained(model.folder, ignore_keys=5), "ignore_keys must be a tuple"),  # type: ignore
        (lambda model, path: mp.from_pretrained(model.folder, ignore_keys="key"), "ignore_keys must be a tuple"),
        (lambda model, path: mp.from_pretrained(model.folder, revision=5), "revision must be a branch"),  # type: ignore
        (lambda model, path: mp.from_pretrained(model.folder, token=5), "token must be a text"),  # type: ignore
        (lambda model, path: mp.from_pretrained(model.folder, cache_dir=5), "cache_dir must be the path"),  # type: ignore
        (lambda model, path: mp.from_pretrained(model.folder, local_files_only=None), "local_files_only must"),  # type: ignore
        (lambda model, path: mp.from_pretrained(model.folder, sharding=1), "sharding must be a function"),  # type: ignore
    ],
)
def test_misuse_is_refused_by_name(call, message, tiny, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        call(tiny, tmp_path / "new")
    assert len(str(caught.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_parts_may_be_a_generator(tiny):
    assert mp.from_pretrained(tiny.folder, parts=(part for part in ["connector"]))[1].keys() == {"connector"}


# ---------------------------------------------------------------------------------------------------------------------
# Damage.


def test_a_changed_array_is_named(spoiled, tiny):
    """The checkpoint is written again by Orbax with one bit of one array changed: nothing but the digest tells."""
    _, params = mp.from_pretrained(spoiled)
    table = np.array(params["connector"]["modality_projection"]["proj"]["kernel"])
    table.view(np.uint32)[0, 0] ^= 1
    params["connector"]["modality_projection"]["proj"]["kernel"] = table
    mp.save_pretrained(spoiled.parent / "other", tiny.config, params)
    shutil.rmtree(spoiled / "params")
    shutil.copytree(spoiled.parent / "other" / "params", spoiled / "params")
    with pytest.raises(mp.CheckpointError, match="connector/modality_projection/proj/kernel changed since the folder"):
        mp.from_pretrained(spoiled)
    mp.from_pretrained(spoiled, parts="vision")  # only what is loaded is checked
    _, loaded = mp.from_pretrained(old(spoiled))
    assert_same_params(loaded, params)


def test_a_changed_config_is_named(spoiled):
    file = spoiled / "multipatch_config.json"
    file.write_text(file.read_text().replace('"longest_edge": 256', '"longest_edge": 192'))
    with pytest.raises(mp.CheckpointError, match=r"multipatch_config.json changed since .* delete multipatch_digests"):
        mp.from_pretrained(spoiled)
    assert mp.from_pretrained(old(spoiled))[0].tiling.longest_edge == 192


@pytest.mark.parametrize("content", ["[]", "{}", '{"config": 1, "params": []}', "{"])
def test_damaged_digests_are_named(content, spoiled):
    (spoiled / "multipatch_digests.json").write_text(content)
    with pytest.raises(ValueError, match=r"multipatch_(digests|config)\.json"):
        mp.from_pretrained(spoiled)


def test_a_folder_without_its_arrays_is_refused(spoiled):
    shutil.rmtree(spoiled / "params")
    for folder in (spoiled, old(spoiled)):
        with pytest.raises(mp.CheckpointError, match="params is not a checkpoint that Orbax can read"):
            mp.from_pretrained(folder)
        with pytest.raises(mp.CheckpointError, match="params is not a checkpoint that Orbax can read"):
            saved_parts(folder)


def test_numbers_that_a_dtype_lacks_are_refused_and_infinity_is_warned_of(tiny, tmp_path):
    params = jax.tree.map(np.array, tiny.params)
    params["connector"]["modality_projection"]["proj"]["kernel"][0, 0] = 70000
    params["vision_model"]["post_layernorm"]["bias"][0] = np.inf
    mp.save_pretrained(tmp_path / "saved", tiny.config, params)
    with pytest.warns(UserWarning, match="vision_model/post_layernorm/bias holds Inf"):
        mp.from_pretrained(tmp_path / "saved")
    with pytest.raises(mp.CheckpointError, match="proj/kernel holds a number of size 70000, which is infinite"):
        mp.from_pretrained(tmp_path / "saved", parts="connector", dtype="float16")
    with pytest.raises(mp.CheckpointError, match=r"proj\.weight holds a number of size 70000, which is infinite"):
        mp.export_hf(tmp_path / "hf", tiny.config, {"connector": params["connector"]}, dtype="float16")


def mutate(data, folder):
    """Damages one file of a folder: bits flipped, bytes cut off or written over, or the file deleted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files))
    raw = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "flip", "write", "cut", "delete"]))
    place = data.draw(st.integers(0, max(len(raw) - 1, 0)))
    if kind == "delete" or not raw:
        file.unlink()
        return
    if kind == "flip":
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "write":
        raw[place : place + 4] = data.draw(st.binary(min_size=1, max_size=6))
    else:
        del raw[place:]
    file.write_bytes(raw)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), with_digests=st.booleans())
def test_any_damage_is_our_error_or_changes_nothing(data, with_digests, saved, tmp_path_factory):
    """Without digests, other numbers may come, but no other names, shapes or errors."""
    folder = shutil.copytree(saved, tmp_path_factory.mktemp("mutated") / "saved")
    if not with_digests:
        old(folder)
    mutate(data, folder)
    was_deleted = not (folder / "multipatch_digests.json").is_file()
    loaded, message = None, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = mp.from_pretrained(folder)
        except (ValueError, FileNotFoundError) as error:
            message = str(error)
    if loaded is None:
        assert str(folder) in message
        assert len(message) < 5000
        return
    (config, params), (whole_config, whole) = loaded, mp.from_pretrained(saved)
    if was_deleted:
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, whole)
    else:
        assert config == whole_config
        assert_same_params(params, whole)


def test_every_dtype_has_digests_that_hold(tiny, tmp_path):
    for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
        params = jax.tree.map(lambda x, dtype=dtype: np.asarray(x).astype(dtype), tiny.params)
        folder = tmp_path / np.dtype(dtype).name
        mp.save_pretrained(folder, tiny.config, params)
        digests = json.loads((folder / "multipatch_digests.json").read_text())
        assert digests["params"].keys() == mp.params.flatten(params).keys()
        assert_same_params(mp.from_pretrained(folder)[1], params)


def test_all_parts_are_saved_with_digests(tiny, tmp_path):
    config, params = mp.from_pretrained(tiny.folder, parts=ALL)
    mp.save_pretrained(tmp_path / "saved", config, params)
    assert saved_parts(tmp_path / "saved") == mp.params.PARTS
    assert_same_params(mp.from_pretrained(tmp_path / "saved", parts=ALL)[1], params)
