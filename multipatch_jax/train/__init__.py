"""Train tower and connector: a train step, the loop around it, checkpoints of a run, and losses on visual tokens."""

from multipatch_jax.train.batches import batch_indices
from multipatch_jax.train.checkpoints import TrainCheckpoints
from multipatch_jax.train.loop import fit
from multipatch_jax.train.losses import distillation_loss, pool_tokens, sigmoid_contrastive_loss
from multipatch_jax.train.step import TrainState, init_train_state, make_train_step

__all__ = [
    "TrainCheckpoints",
    "TrainState",
    "batch_indices",
    "distillation_loss",
    "fit",
    "init_train_state",
    "make_train_step",
    "pool_tokens",
    "sigmoid_contrastive_loss",
]
