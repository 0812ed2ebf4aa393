"""Expand the `<image>` of a prompt into markers and `<image>` tokens, tile by tile, and count the tokens.

The expansion is that of the reference's processors (`Idefics3Processor`, `SmolVLMProcessor`, transformers 5.23). An
image of 1 x 2 tiles and a global tile becomes the following, with these line breaks; I is `<image>`, T times:

    <fake_token_around_image><row_1_col_1>I<fake_token_around_image><row_1_col_2>I

    <fake_token_around_image><global-img>I<fake_token_around_image>
"""

from collections.abc import Sequence

from multipatch_jax.arguments import require_each, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.image import TilePlan

IMAGE = "<image>"
FAKE = "<fake_token_around_image>"
GLOBAL = "<global-img>"
SINGLE_TOKEN_IMAGE_ID = 49190  # `<image>` in the vocabulary of 49280 ids, where every marker is one token
SINGLE_TOKEN_GRID = 6  # that vocabulary has <row_1_col_1> to <row_6_col_6>


def one_tile_markers(config: ModelConfig) -> str:
    """Return the markers and `<image>` tokens of one tile that shows a whole picture.

    That is an image that is not split, the global tile of one that is, or a frame of a video.
    """
    return f"{FAKE}{GLOBAL}{IMAGE * config.tiling.tokens_per_tile}{FAKE}"


def _check_plan(plan: TilePlan, config: ModelConfig) -> None:
    tokens_per_tile = config.tiling.tokens_per_tile
    if plan.num_tokens != plan.num_tiles * tokens_per_tile:
        raise ValueError(
            f"A plan of this config has {tokens_per_tile} tokens a tile, this one has {plan.num_tokens} in "
            f"{plan.num_tiles} tiles: make it with plan_tiles(height, width, config.tiling)."
        )


def _markers(plan: TilePlan, config: ModelConfig) -> str:
    """Return what the `<image>` of an image with this plan is replaced by."""
    _check_plan(plan, config)
    if not plan.rows:
        return one_tile_markers(config)
    tokens = IMAGE * config.tiling.tokens_per_tile
    grid = ""
    for row in range(1, plan.rows + 1):
        grid += "".join(f"{FAKE}<row_{row}_col_{col}>{tokens}" for col in range(1, plan.cols + 1)) + "\n"
    return f"{grid}\n{one_tile_markers(config)}" if plan.has_global_tile else grid


def expand_prompt(text: str, plans: Sequence[TilePlan], config: ModelConfig) -> str:
    """Replace each `<image>` of a text by the markers and `<image>` tokens of its image's tiles, as the reference does.

    With `global_tile=False`, which the reference does not have, a split image becomes its rows without the line break
    and the global tile that follow them.

    Args:
      text: with one `<image>` for each image.
      plans: one for each image, in the order of the text's `<image>`.
      config: the model's.

    Raises:
      ValueError: the numbers of `<image>` and plans differ, or a plan was made with another config.
    """
    require_type("text", text, str)
    require_type("config", config, ModelConfig)
    require_each("plans", plans, TilePlan)
    return replace_each(text, IMAGE, [_markers(plan, config) for plan in plans], "image")


def replace_each(text: str, mark: str, replacements: Sequence[str], what: str) -> str:
    """Replace each `mark` of a text by the replacement in its place.

    Args:
      what: the mark stands for, such as "image"; for the error message.

    Raises:
      ValueError: the numbers of marks and replacements differ.
    """
    before, *parts = text.split(mark)
    if len(parts) != len(replacements):
        raise ValueError(
            f"The text must have one {mark} for each {what}, got {len(parts)} {mark} and {len(replacements)} {what}s."
        )
    return before + "".join(one + part for one, part in zip(replacements, parts, strict=True))


def expanded_length(plan: TilePlan, config: ModelConfig) -> int:
    """Count the tokens that one `<image>` becomes, markers included, without a tokenizer.

    This needs a vocabulary in which each marker is one token: that of SmolVLM-256M, SmolVLM-500M, all of SmolVLM2 and
    SmolDocling, for grids of up to 6 x 6 tiles.

    Raises:
      ValueError: the vocabulary is another one, or the grid is larger. A marker may then be several tokens, and only
        the tokenizer can count them. Or the plan was made with another config.
    """
    _check_plan(plan, config)
    if config.image_token_id != SINGLE_TOKEN_IMAGE_ID or max(plan.rows, plan.cols) > SINGLE_TOKEN_GRID:
        raise ValueError(
            f"The length is only known without the tokenizer where markers are single tokens (image_token_id "
            f"{SINGLE_TOKEN_IMAGE_ID}, up to {SINGLE_TOKEN_GRID} x {SINGLE_TOKEN_GRID} tiles), got image_token_id "
            f"{config.image_token_id} and {plan.rows} x {plan.cols} tiles: tokenise what expand_prompt writes."
        )
    # Two markers for each tile of the grid. One line break for each row: the two after the last row are one token.
    # Three markers around the global tile, or around an image that is not split.
    grid = plan.rows * plan.cols
    return plan.num_tokens + 2 * grid + plan.rows + (3 if plan.has_global_tile or not grid else 0)
