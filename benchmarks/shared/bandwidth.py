"""How fast a machine reads its memory: the ceiling of decoding one chat, which reads every weight for each token.

The ceiling is the best rate of two libraries. Each is a system that takes turns with those that are measured.
"""

from pathlib import Path

from benchmarks.shared.turns import System, Turn

SIDE = 11_585  # of a square float32 matrix of 512 MiB, far more than a processor's cache
BYTES = 4 * SIDE**2


def xla(folder: Path) -> Turn:
    """XLA's product of the matrix and a vector."""
    import jax

    x, y = jax.random.normal(jax.random.key(0), (SIDE, SIDE)), jax.numpy.ones(SIDE)
    product = jax.jit(lambda x, y: x @ y)
    return lambda: product(x, y).block_until_ready()


def torch(folder: Path) -> Turn:
    """torch's product of the matrix and a vector."""
    import torch

    x, y = torch.randn(SIDE, SIDE), torch.ones(SIDE)
    return lambda: x @ y


MEMORY: dict[str, System] = {"memory, XLA": xla, "memory, torch": torch}


def rate(seconds: float) -> float:
    """Bytes a second of a turn that takes `seconds`."""
    return BYTES / seconds
