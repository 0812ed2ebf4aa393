"""PROMPT"""

from collections.abc import Sequence

from multipatch_jax.config import ModelConfig
from multipatch_jax.image import TilePlan

IMAGE = "<image>"
FAKE = "<fake_token_around_image>"
GLOBAL = "<global-img>"
SINGLE_TOKEN_IMAGE_ID = 49190  # of the vocabulary of 49280, in which every marker is one token
SINGLE_TOKEN_GRID = 6  # it has <row_1_col_1> to <row_6_col_6>


def one_tile_markers(config: ModelConfig) -> str:
    """What stands for one whole picture: an image that is not split, the global tile, or a frame of a video."""
    return f"{FAKE}{GLOBAL}{IMAGE * config.tiling.tokens_per_tile}{FAKE}"


def _check_plan(plan: TilePlan, config: ModelConfig) -> None:
    tokens_per_tile = config.tiling.tokens_per_tile
    if plan.num_tokens != plan.num_tiles * tokens_per_tile:
        raise ValueError(
            f"A plan of this config has {tokens_per_tile} tokens a tile, this one has {plan.num_tokens} in "
            f"{plan.num_tiles} tiles: make it with plan_tiles(height, width, config.tiling)."
        )


def _markers(plan: TilePlan, config: ModelConfig) -> str:
    _check_plan(plan, config)
    if not plan.rows:
        return one_tile_markers(config)
    tokens = IMAGE * config.tiling.tokens_per_tile
    grid = ""
    for row in range(1, plan.rows + 1):
        grid += "".join(f"{FAKE}<row_{row}_col_{col}>{tokens}" for col in range(1, plan.cols + 1)) + "\n"
    return f"{grid}\n{one_tile_markers(config)}" if plan.has_global_tile else grid


def expand_prompt(text: str, plans: Sequence[TilePlan], config: ModelConfig) -> str:
    """The text with each `<image>` replaced by the markers of its image's tiles, as the reference writes it.

    With `global_tile=False`, which the reference does not have, a split image is its rows alone.

    Args:
      text: with one `<image>` for each image.
      plans: of the images, in the order of their places in the text.

    Raises:
      ValueError: not as many images as places, or a plan of another config.
    """
    parts = text.split(IMAGE)
    if len(parts) - 1 != len(plans):
        raise ValueError(
            f"The text must have one {IMAGE} for each image, got {len(parts) - 1} {IMAGE} and {len(plans)} images."
        )
    return parts[0] + "".join(_markers(plan, config) + part for plan, part in zip(plans, parts[1:], strict=True))


def expanded_length(plan: TilePlan, config: ModelConfig) -> int:
    """Number of tokens that one `<image>` becomes, markers included, where each marker is one token.

    That holds for SmolVLM-256M, SmolVLM-500M, all of SmolVLM2 and SmolDocling, in grids of up to 6 x 6.

    Raises:
      ValueError: another vocabulary or a larger grid, where markers are spelled and the tokenizer must count; or a plan
        of another config.
    """
    _check_plan(plan, config)
    if config.image_token_id != SINGLE_TOKEN_IMAGE_ID or max(plan.rows, plan.cols) > SINGLE_TOKEN_GRID:
        raise ValueError(
            f"The length is only known without the tokenizer where markers are single tokens (image_token_id "
            f"{SINGLE_TOKEN_IMAGE_ID}, up to {SINGLE_TOKEN_GRID} x {SINGLE_TOKEN_GRID} tiles), got image_token_id "
            f"{config.image_token_id} and {plan.rows} x {plan.cols} tiles: tokenise what expand_prompt writes."
        )
    # A tile has two markers, a row ends in a line break (the last one's is one token with the one that follows it),
    # and the whole picture has three markers.
    grid = plan.rows * plan.cols
    return plan.num_tokens + 2 * grid + plan.rows + (3 if plan.has_global_tile or not grid else 0)
