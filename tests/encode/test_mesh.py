"""Encoding on several devices: the same tokens, a share of the tiles for each device, and no collectives."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import multipatch_jax as mp
from multipatch_jax.encode import mesh_of
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.images import random_images
from tests.helpers.processes import many_devices, python_output

ON_A_MESH = """
import json, re, sys
from unittest import mock
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import multipatch_jax as mp
from multipatch_jax.encode import execution, tile_queue
from multipatch_jax.image import prepare
from tests.helpers.images import random_images

folder, out = sys.argv[1:]
mesh = jax.make_mesh((2, 4), ("data", "fsdp"))
config, params = mp.from_pretrained(folder, sharding=lambda path, shape: NamedSharding(mesh, PartitionSpec()))
tokens = {}
for tile_on in ("device", "host"):
    options = {"config": config, "tile_on": tile_on}
    mp.warmup(params, **options)
    with mp.encode.forbid_compilations():
        results = mp.encode_images(params, random_images(24), **options)
    tokens |= {f"{tile_on}{i}": x for i, x in enumerate(results)}
as_on_a_gpu = {"default_resize_form": lambda platform=None: "batched"}  # which takes images in pieces
with mock.patch.multiple(execution, **as_on_a_gpu), mock.patch.multiple(prepare, **as_on_a_gpu):
    results = mp.encode_images(params, random_images(4, largest=900), config=config)
tokens |= {f"pieces{i}": x for i, x in enumerate(results)}
image = next(random_images(1))
tokens["image"] = mp.encode_image(params, image, config=config)
tokens["array"] = mp.encode_image(params, jax.numpy.asarray(image), config=config)
tokens["tiles"] = mp.encode_tiles(params, mp.tile_image_host(image, config.tiling), config=config)
np.savez(out, **tokens)

params, decided = mp.encode.prepare_execution(params, config)
buffer = tile_queue._new_buffer(execution=decided)
chunk = dict(mp.encode.lower_stream(params, decided))["encode 4 tiles"].compile()
print(json.dumps({
    "buffer": buffer.shape,
    "share": buffer.addressable_shards[0].data.shape,
    "program": re.findall(r"u8\\[[\\d,]+\\]", chunk.as_text())[0],
    "collectives": re.findall(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", chunk.as_text()),
}))
"""


@pytest.fixture(scope="module")
def on_a_mesh(tiny, tmp_path_factory):
    """Tokens made by eight devices, and facts about the program that made them."""
    out = tmp_path_factory.mktemp("mesh") / "tokens.npz"
    printed = python_output("-c", ON_A_MESH, tiny.folder, out, changes=many_devices(8))
    return dict(np.load(out)), json.loads(printed)


@pytest.mark.parametrize("tile_on", ["device", "host"])
def test_a_stream_has_the_tokens_of_one_device(on_a_mesh, tile_on, tiny):
    tokens, _ = on_a_mesh
    for i, expected in enumerate(mp.encode_images(tiny.params, random_images(24), config=tiny.config)):
        assert distance(tokens[f"{tile_on}{i}"], expected) <= tolerances.SAME_PROGRAM


def test_images_in_pieces_have_the_tokens_of_one_device(on_a_mesh, tiny):
    tokens, _ = on_a_mesh
    images = random_images(4, largest=900)
    for i, expected in enumerate(mp.encode_images(tiny.params, images, config=tiny.config)):
        assert distance(tokens[f"pieces{i}"], expected) <= tolerances.SAME_PROGRAM


@pytest.mark.parametrize("name", ["image", "array", "tiles"])
def test_an_image_and_tiles_have_the_tokens_of_one_device(on_a_mesh, name, tiny):
    tokens, _ = on_a_mesh
    expected = mp.encode_image(tiny.params, next(random_images(1)), config=tiny.config)
    assert distance(tokens[name].reshape(expected.shape), expected) <= tolerances.SAME_PROGRAM


def test_each_device_holds_its_share_and_there_are_no_collectives(on_a_mesh, tiny):
    _, program = on_a_mesh
    side = tiny.config.tiling.tile_size
    assert program["buffer"] == [8 * 20, side, side, 3]
    assert program["share"] == [20, side, side, 3]
    assert program["program"] == f"u8[20,{side},{side},3]"  # what the compiled program takes on each device
    assert program["collectives"] == []


def test_params_on_one_device_or_none_have_no_mesh(tiny):
    one = NamedSharding(Mesh(np.array(jax.devices()[:1]), "x"), PartitionSpec())
    assert mesh_of(tiny.params) is None
    assert mesh_of(jax.device_put(tiny.params, one)) is None
    assert mesh_of(jax.tree.map(np.asarray, tiny.params)) is None
    assert jax.jit(lambda params: mesh_of(params) is None)(tiny.params)
