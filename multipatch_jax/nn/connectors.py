"""The connectors: what turns a tile's features into visual tokens. A row of `CONNECTORS` for each."""

import dataclasses
from collections.abc import Callable, Mapping

from flax import linen as nn

from multipatch_jax.config import ConnectorConfig
from multipatch_jax.nn.connector import Idefics3Connector


@dataclasses.dataclass(frozen=True)
class ConnectorKind:
    """What there is to know of a connector, which `ConnectorConfig.kind` names.

    Attributes:
      module: (config, compute, name=...) -> the Flax module, which maps features (P, C) to visual tokens (T, D).
      linears: the names and shapes of its linear layers, which have no bias. {"proj": "D C"} is the tensor
        `model.connector.proj.weight` (D, C) of a checkpoint, and the parameter connector/proj/kernel (C, D). The words
        of a shape are explained at `_dims` in `params/table.py`.
    """

    module: Callable[..., nn.Module]
    linears: Mapping[str, str]


CONNECTORS = {
    "idefics3": ConnectorKind(Idefics3Connector, {"modality_projection.proj": "D merged_width"}),
}
"""The connectors, by `ConnectorConfig.kind`."""


def connector_of(config: ConnectorConfig) -> ConnectorKind:
    """Return the row that a config names.

    Raises:
      ValueError: there is no such connector.
    """
    if config.kind not in CONNECTORS:
        raise ValueError(f"ConnectorConfig.kind must be one of {', '.join(CONNECTORS)}, got {config.kind!r}.")
    return CONNECTORS[config.kind]
