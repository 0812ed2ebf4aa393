"""The language model's loss and its gradients are PyTorch's, through decoder, connector and tower."""

import dataclasses
import re

import jax
import numpy as np
import optax
import pytest
import torch

import multipatch_jax as mp
from multipatch_reference import distance
from tests.helpers import tolerances
from tests.helpers.language import language_batch, language_loss
from tests.helpers.models import TINY, TINY_TEXT, Model, make_model
from tests.helpers.parity import normalised
from tests.helpers.training import check_gradients, gradients, train

ROWS, LENGTH, TILES = 4, 300, 3  # more positions than one chunk of logits has, and no multiple of it


def reference_loss(model, batch):
    """The loss that transformers' model computes of a batch; of the tiles it gets those that are not padding."""
    places = (batch["input_ids"] == model.config.image_token_id).sum(axis=1) // model.config.tiling.tokens_per_tile
    tiles = np.concatenate([row[:count] for row, count in zip(batch["tiles"], places, strict=True)])
    pixels = torch.from_numpy(np.moveaxis(normalised(tiles), -1, -3).copy())[None]
    arrays = {name: torch.from_numpy(batch[name]).long() for name in ("input_ids", "attention_mask", "labels")}
    return model.reference(pixel_values=pixels, **arrays).loss


def make_whole(folder, tied):
    """A model with all of its params, a batch, and PyTorch's loss and gradients of it."""
    config = dataclasses.replace(TINY, text=dataclasses.replace(TINY_TEXT, tie_word_embeddings=tied))
    model = make_model(config, folder, change=lambda reference: reference.tie_weights())
    _, params = mp.from_pretrained(folder, parts="all")
    batch = language_batch(TINY, ROWS, LENGTH, TILES)
    loss = reference_loss(model, batch)
    loss.backward()
    theirs = {name: x.grad.numpy() for name, x in model.reference.named_parameters() if x.grad is not None}
    assert len(theirs) == len(mp.params.tensors(config))
    return Model(config, params, model.reference, folder), batch, loss.item(), theirs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_whole(tmp_path_factory.mktemp("whole"), tied=False)


@pytest.mark.parametrize(
    ("accumulate", "remat", "meshed"), [(1, False, False), (2, True, False), (1, True, True)], ids=str
)
def test_gradients_through_the_whole_model_equal_pytorchs(accumulate, remat, meshed, whole):
    """The two pieces of `accumulate` have different numbers of labels; on a mesh the tiles go through at once."""
    model, batch, _, theirs = whole
    compute = mp.Compute(remat=remat)
    ours = gradients(
        model,
        batch,
        loss_fn=language_loss(model.config, compute=compute),
        trainable="all",
        compute=compute,
        accumulate=accumulate,
        mesh=mp.params.make_mesh() if meshed else None,
    )
    check_gradients(ours, theirs, model.config)


def test_gradients_of_tied_embeddings_equal_pytorchs(tmp_path):
    """The table gets its gradient as embeddings and as the head."""
    model, batch, _, theirs = make_whole(tmp_path, tied=True)
    ours = gradients(model, batch, loss_fn=language_loss(model.config), trainable="all")
    check_gradients(ours, theirs, model.config)


def test_the_loss_is_transformers(whole):
    model, batch, theirs, _ = whole
    total, count = mp.train.language_model_loss(model.params, batch, config=model.config)
    assert count == (batch["labels"][:, 1:] != -100).sum()
    assert distance(total / count, theirs) <= tolerances.MESH


def test_padding_on_the_left_and_more_blank_tiles_change_nothing(whole):
    model, batch, theirs, _ = whole
    left = language_batch(TINY, ROWS, LENGTH, TILES, side="left")
    left["tiles"] = np.concatenate([batch["tiles"], np.zeros_like(batch["tiles"][:, :1])], axis=1)
    total, count = mp.train.language_model_loss(model.params, left, config=model.config)
    assert distance(total / count, theirs) <= tolerances.MESH


def small(**changes):
    """A batch that is quick to compile."""
    return language_batch(TINY, 2, 24, 2) | changes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = make_model(TINY, tmp_path_factory.mktemp("model"))
    return model._replace(params=mp.from_pretrained(model.folder, parts="all")[1])


TEXT = r"^(text_model|lm_head)/"


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [("text", TEXT), (r"text_model/.*(q_proj|down_proj)/kernel", r"text_model/.*(q_proj|down_proj)/kernel")],
)
def test_only_what_is_named_changes(trainable, expected, model):
    state, (metrics,) = train(
        model, small(), optax.adam(1e-3), loss_fn=language_loss(TINY), trainable=trainable, steps=1
    )
    assert np.isfinite(metrics["loss"])
    before = mp.params.flatten(model.params)
    for path, value in mp.params.flatten(state.params).items():
        assert np.array_equal(value, before[path]) != bool(re.search(expected, path)), path


def test_factors_of_decoder_and_connector_are_trained_alone(model):
    params = mp.params.add_lora(jax.random.key(0), model.params, kernels="^(text_model|connector)/", rank=2)
    factors = mp.params.flatten(params["lora"])
    assert {path.split("/")[-3] for path in factors} >= {"q_proj", "o_proj", "gate_proj", "down_proj", "proj"}
    state, history = train(
        model, small(), optax.adam(1e-2), loss_fn=language_loss(TINY), trainable="lora", params=params, steps=3
    )
    assert history[-1]["loss"] < history[0]["loss"]
    assert sum(x.nbytes for x in jax.tree.leaves(state.opt_state)) == 2 * sum(x.nbytes for x in factors.values()) + 4
    for path, value in mp.params.flatten(model.params).items():
        assert np.array_equal(mp.params.flatten(state.params)[path], value), path
    assert all(np.any(x != factors[path]) for path, x in mp.params.flatten(state.params["lora"]).items())


def test_bfloat16_trains_too(model):
    compute = mp.Compute(dtype="bfloat16")
    state, (metrics,) = train(
        model,
        small(),
        optax.sgd(0.1),
        loss_fn=language_loss(TINY, compute=compute),
        compute=compute,
        trainable="text",
    )
    assert state.params["lm_head"]["kernel"].dtype == np.float32
    total, count = mp.train.language_model_loss(model.params, small(), config=TINY)
    assert metrics["loss"] == pytest.approx(float(total / count), rel=2e-2)


def test_texts_without_images(model):
    batch = small(tiles=np.zeros((2, 0, 64, 64, 3), np.uint8))
    batch["input_ids"] = np.where(batch["input_ids"] == TINY.image_token_id, 5, batch["input_ids"])
    total, count = mp.train.language_model_loss(model.params, batch, config=TINY)
    assert np.isfinite(total / count)


def test_what_does_not_fit_makes_the_loss_nan(model):
    """Values that a program cannot refuse: places without a tile, and labels outside of the vocabulary."""
    few = small(tiles=small()["tiles"][:, :1])
    strange = small()
    strange["labels"][0, -1] = 200
    for batch in (few, strange):
        total, _ = mp.train.language_model_loss(model.params, batch, config=TINY)
        assert np.isnan(total)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": dataclasses.replace(TINY, text=None)}, "needs a language model with logits, got .* text=NoneType"),
        (
            {"config": dataclasses.replace(TINY, embedding_size=8)},
            "needs a language model with logits, got .* and embedding_size=8",
        ),
        ({"batch": {"tiles": 1}}, r"must have input_ids, attention_mask, labels, tiles, .* got a dict of \['tiles'\]"),
        ({"batch": small(labels=np.zeros((2, 23), int))}, r"labels must be integers of shape \(2, 24\)"),
        (
            {"batch": small(tiles=np.zeros((4, 64, 64, 3), np.uint8))},
            r"tiles must be uint8 of shape \(2, N, 64, 64, 3\)",
        ),
    ],
)
def test_wrong_arguments_are_refused(change, message, model):
    arguments = {"batch": small(), "config": TINY} | change
    with pytest.raises(ValueError, match=message):
        mp.train.language_model_loss(model.params, arguments["batch"], config=arguments["config"])


def test_params_without_a_decoder_are_refused_by_the_step(tiny):
    with pytest.raises(ValueError, match=r"trainable='text' is found in no path of .*, so nothing would be trained"):
        train(tiny, small(), optax.sgd(0.1), loss_fn=language_loss(TINY), trainable="text")
    with pytest.raises(ValueError, match="have no token embeddings"):
        train(tiny, small(), optax.sgd(0.1), loss_fn=language_loss(TINY))


def test_twenty_and_twenty_steps_are_forty_bit_for_bit(model, tmp_path):
    """A run of the whole model that is stopped and resumed, by a program of its own, ends as one that was not."""

    def batch_at(step):
        rows = mp.train.batch_indices(step, num_examples=6, batch_size=2, seed=1)
        return {name: values[rows] for name, values in language_batch(TINY, 6, 24, 2).items()}

    def run(folder, num_steps):
        optimizer = optax.adamw(1e-3, mask=mp.params.kernel_mask)
        step = mp.train.make_train_step(language_loss(TINY), optimizer, config=TINY, trainable="all", max_norm=1.0)
        with mp.train.TrainCheckpoints(tmp_path / folder, TINY) as checkpoints:
            state = mp.train.init_train_state(model.params, optimizer, trainable="all", rng=jax.random.key(1))
            first = int((state := checkpoints.restore(state)).step)
            options = {"num_steps": num_steps, "checkpoints": checkpoints, "save_every": 20}
            return first, mp.train.fit(step, state, batch_at, **options)

    _, straight = run("straight", 40)
    run("stopped", 20)
    first, resumed = run("stopped", 40)
    assert (first, int(resumed.step)) == (20, 40)
    for (path, value), expected in zip(
        jax.tree_util.tree_leaves_with_path(resumed._replace(rng=None)),
        jax.tree.leaves(straight._replace(rng=None)),
        strict=True,
    ):
        assert np.array_equal(value, expected), path
    start = mp.params.flatten(model.params)["text_model/layers/mlp/up_proj/kernel"]
    assert not np.array_equal(start, mp.params.flatten(resumed.params)["text_model/layers/mlp/up_proj/kernel"])
