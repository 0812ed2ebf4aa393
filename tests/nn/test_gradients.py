"""Gradients of a scalar loss through tower and connector are PyTorch's, with every kernel, with and without remat."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import multipatch_jax as mp
from multipatch_jax.nn import native
from tests.helpers.models import TINY, make_model
from tests.helpers.parity import normalised
from tests.helpers.training import check_gradients, gradients

# 729 patches (two blocks of keys, the second padded), and sums of more than 256 terms, which are made in blocks.
FINE = dataclasses.replace(
    TINY,
    vision=dataclasses.replace(TINY.vision, image_size=216, intermediate_size=320),
    connector=mp.ConnectorConfig(scale_factor=3, text_hidden_size=48),
    tiling=mp.TilingConfig(longest_edge=864, tile_size=216, tokens_per_tile=81),
)


@pytest.fixture(scope="module")
def fine(photo, tmp_path_factory):
    """A model, tiles, and PyTorch's gradient of a scalar loss in every parameter of tower and connector."""
    model = make_model(FINE, tmp_path_factory.mktemp("fine"))
    tiles = mp.tile_image_host(photo, FINE.tiling)[-2:]
    direction = np.random.default_rng(1).normal(size=(2, 81, 48)).astype(np.float32)
    pixels = torch.from_numpy(np.moveaxis(normalised(tiles), -1, -3).copy())[None]
    tokens = model.reference.model.get_image_features(pixels).pooler_output[0]
    (tokens.reshape(direction.shape) * torch.from_numpy(direction)).mean().backward()
    theirs = {
        name: tensor.grad.numpy() for name, tensor in model.reference.named_parameters() if tensor.grad is not None
    }
    return model, {"tiles": tiles, "direction": direction}, theirs


def along(params, batch, rng, encode):
    return jnp.mean(encode(params, batch["tiles"]) * batch["direction"])


# The kernels of a CPU; those of other backends take their gradient from "plain".
COMPUTE = {name: mp.Compute(attention=name) for name in ("plain", "blocked")}
if native.best_build() is not None:
    COMPUTE["native"] = mp.Compute(encoder="native")


@pytest.mark.parametrize(("remat", "tiles"), [(False, "one after another"), (True, "all at once")])
@pytest.mark.parametrize("implementation", COMPUTE)
def test_gradients_equal_pytorchs(implementation, remat, tiles, fine):
    """Tiles go one after another (`lax.map`) without a mesh, and all at once (vmap) with one."""
    model, batch, theirs = fine
    options = {
        "compute": dataclasses.replace(COMPUTE[implementation], remat=remat),
        "mesh": mp.params.make_mesh() if tiles == "all at once" else None,
    }
    ours = gradients(model, batch, loss_fn=along, trainable="all", **options)
    check_gradients(ours, theirs, model.config)


def test_remat_keeps_less(fine):
    model, batch, _ = fine
    optimizer, temporary = optax.sgd(0.1), {}
    for remat in (False, True):
        state = mp.train.init_train_state(model.params, optimizer, trainable="vision", rng=jax.random.key(0))
        compute = mp.Compute(remat=remat)
        step = mp.train.make_train_step(along, optimizer, config=model.config, compute=compute, trainable="vision")
        memory = jax.jit(step).lower(state, batch).compile().memory_analysis()
        assert memory is not None
        temporary[remat] = memory.temp_size_in_bytes
    assert temporary[True] < 0.8 * temporary[False]
