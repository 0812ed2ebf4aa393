"""Five training steps on many devices, in a process of its own: the tests' own process has one device.

    mesh_worker OUT single 8,1,1 2,2,2 ...                         one process, one mesh after the other
    mesh_worker OUT single 2,2,2 --whole                           the same with a decoder, by the language model's loss
    mesh_worker OUT 2,2,2 --process 0 --of 2 --port 12345          one of several processes, a mesh over all of them

Writes OUT/NAME.npz (params after the last step), OUT/NAME.json (losses and norms of gradients; bytes on each device),
and OUT/NAME-tokens-PROCESS.npz (tokens encoded on the mesh, and on one device). Prints the bytes on each device.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

import multipatch_jax as mp
from tests.helpers import train_worker
from tests.helpers.language import language_batch, language_loss
from tests.helpers.train_worker import CONFIG, WHOLE

BATCH = 16
# All but the biases of k_proj: their gradient is only rounding, which Adam would scale up to the size of the others.
TRAINABLE = "^(?!.*k_proj/bias)"


class Task(NamedTuple):
    """What is trained, by which loss, on which examples."""

    config: mp.ModelConfig
    loss_fn: Any
    examples: dict[str, np.ndarray]


def tower() -> Task:
    return Task(CONFIG, train_worker.noisy_loss, train_worker.examples())


def whole_model() -> Task:
    return Task(WHOLE, language_loss(WHOLE), language_batch(WHOLE, train_worker.EXAMPLES, 24, 2))


def batch_at(step, task):
    mine = mp.params.local_rows(BATCH)  # the rows of this process
    rows = mp.train.batch_indices(step, num_examples=train_worker.EXAMPLES, batch_size=BATCH)[mine]
    return {name: values[rows] for name, values in task.examples.items()}


def gathered(params):
    """Params spread over all devices of all processes, gathered on every host."""
    return {path: multihost_utils.process_allgather(x, tiled=True) for path, x in mp.params.flatten(params).items()}


Tokens = dict[str, Any]  # arrays by name; "NAME alone" is what one device gives for NAME


def encoded_every_way(params, alone) -> Tokens:
    """Two images through every function that encodes, with params on a mesh and on one device."""
    images = list(train_worker.examples()["tiles"][:2])  # enlarged and split: 17 tiles each
    tiles = np.concatenate([mp.tile_image_host(image, CONFIG.tiling) for image in images])
    expected = np.asarray(mp.encode_tiles(alone, tiles, config=CONFIG)).reshape(len(images), -1, 24)
    return {
        "images": np.stack(mp.encode_images(params, images, tile_on="host", config=CONFIG)),
        "images alone": expected,
        "tiles": np.asarray(mp.encode_tiles(params, tiles, config=CONFIG)).reshape(expected.shape),
        "tiles alone": expected,
        "image": np.asarray(mp.encode_image(params, images[0], config=CONFIG)),
        "image alone": expected[0],
    }


def encoded_on_this_host(alone) -> Tokens:
    """This process's own tiles, on a mesh of its own devices and on one of them."""
    mesh = mp.params.make_mesh(data=jax.local_device_count(), devices=jax.local_devices())
    tiles = batch_at(jax.process_index(), tower())["tiles"]
    return {
        "tiles": np.asarray(mp.encode_tiles(mp.params.shard(alone, mesh), tiles, config=CONFIG)),
        "tiles alone": np.asarray(mp.encode_tiles(alone, tiles, config=CONFIG)),
    }


def refusals(step, state):
    """The step's errors for batches whose number of rows does not divide."""
    said = []
    for rows in (12, 8):
        try:
            step(state, {name: values[:rows] for name, values in train_worker.examples().items()})
        except ValueError as error:
            said.append(str(error))
    return said


def kernels(state, mesh):
    """How many TPU kernels are in a step lowered for TPUs, where attention="auto" takes them."""
    options = {"config": CONFIG, "trainable": TRAINABLE, "mesh": mesh}
    step = mp.train.make_train_step(train_worker.noisy_loss, optax.adamw(1e-3), **options)
    with mock.patch("jax.default_backend", return_value="tpu"):
        program = jax.jit(step).trace(state, batch_at(0, tower())).lower(lowering_platforms=("tpu",))
    return program.as_text().count("tpu_custom_call")


def train(name, out, task):
    devices = jax.devices()
    mesh = None
    if name != "single":
        data, fsdp, tensor = map(int, name.split(","))
        mesh = mp.params.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices[: data * fsdp * tensor])
    optimizer, losses = optax.adamw(1e-3), []
    params = train_worker.params(task.config)
    state = mp.train.init_train_state(params, optimizer, trainable=TRAINABLE, rng=jax.random.key(1), mesh=mesh)
    step = mp.train.make_train_step(
        task.loss_fn,
        optimizer,
        config=task.config,
        trainable=TRAINABLE,
        accumulate=2,
        max_norm=0.5,
        mesh=mesh,
    )
    layout = jax.tree.map(lambda x: x.sharding, state)

    def note(number, metrics):
        losses.append(
            [metrics["loss"], metrics["grad_norm"]]
        )  # the norm too: Adam hides a wrong scale of the gradients

    with mp.train.TrainCheckpoints(out / f"{name}-run", task.config) as checkpoints:
        batches = functools.partial(batch_at, task=task)
        state = mp.train.fit(step, state, batches, num_steps=5, checkpoints=checkpoints, callback=note)
    same = jax.tree.map(lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim), state, layout)
    report = {
        "losses": losses,
        "params": list(mp.params.bytes_per_device(state.params).values()),
        "opt_state": list(mp.params.bytes_per_device(state.opt_state).values()),
        "layout_kept": all(jax.tree.leaves(same)),
    }
    of_tower = task.config is CONFIG
    if of_tower and name == "1,8,1" and jax.process_count() == 1:
        report |= {"refused": refusals(step, state), "kernels": kernels(state, mesh)}
    params = gathered(state.params)
    alone = mp.params.unflatten(params)
    if jax.process_count() > 1:
        np.savez(out / f"{name}-tokens-{jax.process_index()}.npz", **encoded_on_this_host(alone))
    elif of_tower and name == "2,2,2":
        np.savez(out / f"{name}-tokens-0.npz", **encoded_every_way(state.params, alone))
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
    parser.add_argument("--whole", action="store_true")
    args = parser.parse_args()
    if args.of > 1:
        jax.distributed.initialize(f"localhost:{args.port}", num_processes=args.of, process_id=args.process)
    for name in args.meshes:
        train(name, args.out, whole_model() if args.whole else tower())


if __name__ == "__main__":
    main()
