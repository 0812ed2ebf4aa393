"""Where a program runs: the machine or platform that it is compiled for, and tables of what can run there."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
from jax.extend.backend import get_backend

from multipatch_jax.arguments import require_choices
from multipatch_jax.config import DTYPES

# "cuda" is an NVIDIA GPU of the Ampere generation or later, "gpu" any other GPU.
PLATFORMS = ("cpu", "cuda", "gpu", "tpu")


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    Attributes:
      platform: one of PLATFORMS.
      exported: whether it will run on another machine, so that it cannot call code that was compiled on this one.
    """

    platform: str
    exported: bool = False

    def __post_init__(self):
        require_choices(self, platform=PLATFORMS)

    def __str__(self) -> str:
        return f"in an export for {self.platform}" if self.exported else f"on this machine's {self.platform}"


def this_machine() -> Target:
    """Return JAX's default backend as a target."""
    platform = jax.default_backend()
    if platform == "gpu" and "cuda" in get_backend().platform_version:
        ampere = 8.0  # compute capability
        return Target("cuda" if float(jax.local_devices()[0].compute_capability) >= ampere else "gpu")
    return Target(platform)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A row of a table: one of several ways to compute the same thing, and where it can be had.

    Attributes:
      platforms, dtypes: where it runs, and the computation dtypes that it takes.
      automatic: the platforms on which "auto" may take it: it takes the first such row that can be had. By default all,
        so a row that only its name should choose needs `automatic=()`.
      is_available: whether what else it needs is there for a target.
      needs: what `is_available` looks for, as the end of an error message.
    """

    platforms: tuple[str, ...] = PLATFORMS
    dtypes: tuple[str, ...] = DTYPES
    automatic: tuple[str, ...] = PLATFORMS
    is_available: Callable[[Target], bool] = lambda target: True
    needs: str = ""

    def can_be_had(self, dtype: str, target: Target) -> bool:
        """Return whether a program for `target` that computes in `dtype` can have it."""
        return target.platform in self.platforms and dtype in self.dtypes and self.is_available(target)


def choose(setting: str, name: str, table: Mapping[str, Choice], dtype: str, target: Target) -> str:
    """Return the name of the row that a program has: "auto" becomes the first that suits, a name is checked.

    Args:
      setting: the name of the setting, for the error message.
      name: "auto" or a name in the table.

    Raises:
      ValueError: the row cannot be had; the error names those that can.
    """
    suitable = [other for other, row in table.items() if row.can_be_had(dtype, target)]
    if name == "auto":
        return next(other for other in suitable if target.platform in table[other].automatic)
    if name in suitable:
        return name
    row = table[name]
    raise ValueError(
        f'{setting}="{name}" is for {", ".join(row.dtypes)} on {", ".join(row.platforms)}'
        f"{f', and needs {row.needs}' if row.needs else ''}; got {dtype} {target}, where there is "
        f'{", ".join(suitable)}. Or choose "auto".'
    )
