"""The connectors: what turns a tile's features into visual tokens. A row of `CONNECTORS` for each."""

import dataclasses
from collections.abc import Callable, Mapping

from flax import linen as nn

from multipatch_jax.nn.connector import Idefics3Connector


@dataclasses.dataclass(frozen=True)
class ConnectorKind:
    """What there is to know of a connector, which `ConnectorConfig.kind` names.

    Attributes:
      module: (config, compute, name=...) -> the Flax module, which maps features (P, C) to visual tokens (T, D).
      linears: its linear layers, which have no bias: name in a checkpoint, after "connector." -> shape there, (out, in)
        in the words of `params/table.py`. A parameter has the same place in params, and is the transpose.
    """

    module: Callable[..., nn.Module]
    linears: Mapping[str, str]


CONNECTORS = {
    "idefics3": ConnectorKind(Idefics3Connector, {"modality_projection.proj": "D merged_width"}),
}
