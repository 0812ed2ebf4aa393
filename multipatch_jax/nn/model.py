"""The vision tower and the connector as one Flax module over one tile."""

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from multipatch_jax.config import ModelConfig
from multipatch_jax.nn.compute import Compute
from multipatch_jax.nn.connectors import connector_of
from multipatch_jax.nn.siglip import VisionTransformer


class MultiPatchVisionProcessor(nn.Module):
    """Maps the normalised pixels of one tile, (M, M, 3), to its visual tokens, (T, D).

    For several tiles, map it over them with `jax.vmap`. It computes in `compute.dtype`, or in the dtype of its params
    if that is None. `VisionTransformer` describes the arguments.
    """

    config: ModelConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, pixel_values: Float[Array, "M M 3"], pixel_attention_mask: Bool[Array, "M M"] | None = None
    ) -> Float[Array, "T D"]:
        connector = connector_of(self.config.connector).module
        features, _ = VisionTransformer(self.config.vision, self.compute, name="vision_model")(
            pixel_values, pixel_attention_mask
        )
        return connector(self.config.connector, self.compute, name="connector")(features)
