"""Five training steps on many devices, in a process of its own: the tests' own process has one device.

    mesh_worker OUT single 8,1,1 2,2,2 ...                         one process, one mesh after the other
    mesh_worker OUT 2,2,2 --process 0 --of 2 --port 12345          one of several processes, a mesh over all of them

Writes OUT/NAME.npz (params after the last step) and OUT/NAME.json (losses and norms of gradients; bytes on each device,
which it also prints).
"""

import argparse
import json
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

import multipatch_jax as mp
from tests import tolerances, train_worker

BATCH = 16
# Not for k_proj's biases: their gradient is zero but for rounding, which Adam would make as large as the others'.
TRAINABLE = "^(?!.*k_proj/bias)"


def batch_at(step):
    rows = mp.train.batch_indices(step, num_examples=train_worker.EXAMPLES, batch_size=BATCH)[
        mp.params.local_rows(BATCH)
    ]
    return {name: values[rows] for name, values in train_worker.examples().items()}


def whole(params):
    """Arrays over all devices of all processes, on every host."""
    return {path: multihost_utils.process_allgather(x, tiled=True) for path, x in mp.params.flatten(params).items()}


def encoded(params, alone):
    """How far tokens are, by every way there is, from one device's."""
    options = {"config": train_worker.CONFIG}
    images = list(train_worker.examples()["tiles"][:2])  # too small to stay one tile: 17 each
    tiles = np.concatenate([mp.tile_image_host(image, train_worker.CONFIG.tiling) for image in images])
    expected = np.asarray(mp.encode_tiles(alone, tiles, **options)).reshape(len(images), -1, 24)
    pairs = [
        (np.stack(mp.encode_images(params, images, tile_on="host", **options)), expected),
        (np.asarray(mp.encode_tiles(params, tiles, **options)).reshape(expected.shape), expected),
        (np.asarray(mp.encode_image(params, images[0], **options)), expected[0]),
    ]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def refusals(step, state):
    """What the step says of batches of so many rows."""
    said = []
    for rows in (12, 8):
        try:
            step(state, {name: values[:rows] for name, values in train_worker.examples().items()})
        except ValueError as error:
            said.append(str(error))
    return said


def kernels(state, mesh):
    """How many a step has that is made and lowered for TPUs, where "auto" is theirs."""
    options = {"config": train_worker.CONFIG, "trainable": TRAINABLE, "mesh": mesh}
    step = mp.train.make_train_step(train_worker.noisy_loss, optax.adamw(1e-3), **options)
    with mock.patch("jax.default_backend", return_value="tpu"):
        program = jax.jit(step).trace(state, batch_at(0)).lower(lowering_platforms=("tpu",))
    return program.as_text().count("tpu_custom_call")


def train(name, out):
    devices = jax.devices()
    mesh = None
    if name != "single":
        data, fsdp, tensor = map(int, name.split(","))
        mesh = mp.params.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices[: data * fsdp * tensor])
    optimizer, losses = optax.adamw(1e-3), []
    params = train_worker.params()
    state = mp.train.init_train_state(params, optimizer, trainable=TRAINABLE, rng=jax.random.key(1), mesh=mesh)
    step = mp.train.make_train_step(
        train_worker.noisy_loss,
        optimizer,
        config=train_worker.CONFIG,
        trainable=TRAINABLE,
        accumulate=2,
        max_norm=0.5,
        mesh=mesh,
    )
    layout = jax.tree.map(lambda x: x.sharding, state)
    # Adam does not see how large gradients are; their norm tells.
    run = {"callback": lambda number, metrics: losses.append([metrics["loss"], metrics["grad_norm"]])}
    with mp.train.TrainCheckpoints(out / f"{name}-run", train_worker.CONFIG) as checkpoints:
        state = mp.train.fit(step, state, batch_at, num_steps=5, checkpoints=checkpoints, **run)
    same = jax.tree.map(lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim), state, layout)
    report = {
        "losses": losses,
        "params": list(mp.params.bytes_per_device(state.params).values()),
        "opt_state": list(mp.params.bytes_per_device(state.opt_state).values()),
        "layout_kept": all(jax.tree.leaves(same)),
    }
    if name == "1,8,1" and jax.process_count() == 1:
        report |= {"refused": refusals(step, state), "kernels": kernels(state, mesh)}
    params = whole(state.params)
    if jax.process_count() > 1:  # each host encodes its own images
        local = mp.params.make_mesh(data=jax.local_device_count(), devices=jax.local_devices())
        tiles, options = batch_at(jax.process_index())["tiles"], {"config": train_worker.CONFIG}
        alone = np.asarray(mp.encode_tiles(mp.params.unflatten(params), tiles, **options))
        tokens = np.asarray(mp.encode_tiles(mp.params.shard(mp.params.unflatten(params), local), tiles, **options))
        assert np.linalg.norm(tokens - alone) / np.linalg.norm(alone) <= tolerances.SAME_PROGRAM
    elif name == "2,2,2":
        report["tokens_like_one_device"] = encoded(state.params, mp.params.unflatten(params))
    if jax.process_index() == 0:
        print(f"{name}: bytes on each device, params {report['params']}, optimiser state {report['opt_state']}")
        np.savez(out / f"{name}.npz", **params)
        (out / f"{name}.json").write_text(json.dumps(report))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("meshes", nargs="+")
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--port", type=int)
    args = parser.parse_args()
    if args.of > 1:
        jax.distributed.initialize(f"localhost:{args.port}", num_processes=args.of, process_id=args.process)
    for name in args.meshes:
        train(name, args.out)


if __name__ == "__main__":
    main()
