"""Training the whole model on a mesh gives what one device gives, and the decoder's params are split."""

import numpy as np
import pytest

import multipatch_jax as mp
from multipatch_reference import distance
from tests.helpers import tolerances, train_worker
from tests.train.test_mesh import finish, results, start

MESHES = ("8,1,1", "1,8,1", "1,1,2", "2,2,2")
DECODER = "text_model/layers/mlp/down_proj/kernel"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with the results of five steps on one device and on each mesh."""
    out = tmp_path_factory.mktemp("meshes")
    finish(start(out, "single", *MESHES, "--whole"))
    return out


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_gives_the_losses_and_params_of_one_device(name, runs):
    report, params = results(runs, name)
    single, expected = results(runs, "single")
    np.testing.assert_allclose(report["losses"], single["losses"], rtol=tolerances.MESH)
    assert params.keys() == expected.keys()
    for path, value in expected.items():
        assert distance(params[path], value) <= tolerances.MESH, path
    before = mp.params.flatten(train_worker.params(train_worker.WHOLE))[DECODER]
    assert distance(expected[DECODER], before) > 100 * tolerances.MESH  # five steps do change something


@pytest.mark.parametrize(("name", "share"), [("8,1,1", 1.0), ("1,8,1", 0.16), ("1,1,2", 0.6), ("2,2,2", 0.34)])
def test_params_and_optimiser_state_are_split(name, share, runs):
    report, _ = results(runs, name)
    single, _ = results(runs, "single")
    assert report["layout_kept"]
    for part in ("params", "opt_state"):
        (whole,) = single[part]
        assert max(report[part]) <= share * whole
        assert min(report[part]) >= whole / len(report[part])
