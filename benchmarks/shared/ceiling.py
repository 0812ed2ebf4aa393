"""The matmul rate that a machine reaches: the ceiling that a tower's rate is compared with.

The ceiling is the best rate of several libraries. Each is a system that takes turns with the towers.
"""

from pathlib import Path

import numpy as np

from benchmarks.shared.turns import System, Turn


def jax_matmul(size: int, dtype: str = "float32", times: int = 1) -> System:
    """XLA's product of two square matrices on the default device, `times` in a turn."""

    def prepare(folder: Path) -> Turn:
        import jax

        x = jax.random.normal(jax.random.key(0), (size, size), dtype)
        product = jax.jit(lambda x: x @ x)

        def turn() -> None:
            for _ in range(times - 1):
                product(x)
            product(x).block_until_ready()

        return turn

    return prepare


def torch_matmul(size: int, dtype: str = "float32", times: int = 1, device: str = "cpu") -> System:
    """torch's product of two square matrices, `times` in a turn."""

    def prepare(folder: Path) -> Turn:
        import torch

        x = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))

        def turn() -> None:
            for _ in range(times):
                torch.matmul(x, x)
            if device == "cuda":
                torch.cuda.synchronize()

        return turn

    return prepare


def numpy_matmul(size: int) -> System:
    """NumPy's product of two square float32 matrices, one in a turn."""

    def prepare(folder: Path) -> Turn:
        x = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
        return lambda: x @ x

    return prepare


def rate(size: int, seconds: float) -> float:
    """Operations a second of one product that takes `seconds`."""
    return 2 * size**3 / seconds


CPU_SIZE = 2048
CPU: dict[str, System] = {
    "matmul, XLA": jax_matmul(CPU_SIZE),
    "matmul, torch": torch_matmul(CPU_SIZE),
    "matmul, NumPy": numpy_matmul(CPU_SIZE),
}
CPU_BFLOAT16: dict[str, System] = {
    "matmul, XLA, bfloat16": jax_matmul(CPU_SIZE, "bfloat16"),
    "matmul, torch, bfloat16": torch_matmul(CPU_SIZE, "bfloat16"),
}
