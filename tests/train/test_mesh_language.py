"""Training the whole model on a mesh gives what one device gives, and the decoder's params are split."""

import pytest

from tests.helpers import train_worker
from tests.train.test_mesh import check_like_single, check_split, finish, start

MESHES = ("8,1,1", "1,8,1", "1,1,2", "2,2,2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with the results of five steps on one device and on each mesh."""
    out = tmp_path_factory.mktemp("meshes")
    finish(start(out, "single", *MESHES, "--whole"))
    return out


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_gives_the_losses_and_params_of_one_device(name, runs):
    check_like_single(runs, name, runs, of=train_worker.WHOLE, path="text_model/layers/mlp/down_proj/kernel")


@pytest.mark.parametrize(("name", "share"), [("8,1,1", 1.0), ("1,8,1", 0.16), ("1,1,2", 0.6), ("2,2,2", 0.34)])
def test_params_and_optimiser_state_are_split(name, share, runs):
    check_split(name, share, runs)
