"""Train the model or parts of it: a train step, the loop around it, checkpoints of a run, batches and losses."""

from multipatch_jax.train.batches import batch_indices
from multipatch_jax.train.chats import chat_batch
from multipatch_jax.train.checkpoints import TrainCheckpoints
from multipatch_jax.train.language import language_model_loss
from multipatch_jax.train.loop import fit
from multipatch_jax.train.losses import distillation_loss, pool_tokens, sigmoid_contrastive_loss
from multipatch_jax.train.step import TrainState, init_train_state, make_train_step

__all__ = [
    "TrainCheckpoints",
    "TrainState",
    "batch_indices",
    "chat_batch",
    "distillation_loss",
    "fit",
    "init_train_state",
    "language_model_loss",
    "make_train_step",
    "pool_tokens",
    "sigmoid_contrastive_loss",
]
