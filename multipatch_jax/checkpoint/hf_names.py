"""Layouts of a checkpoint other than today's: prefixes, and the names of the first training code.

Everything here ends in the names of `weights`. A tensor of today may be two of then, one below the other.
"""

import re
from collections.abc import Iterable

# After any prefix is gone. The training code's names are those that transformers 4.46's conversion script knew.
_RENAMES = (
    (re.compile(r"^(vision_model|connector|text_model)\."), r"model.\1."),  # saved from the model without its head
    (re.compile(r"^model\.modality_projection\."), "model.connector.modality_projection."),
    (re.compile(r"^model\.(layers|norm|embed_tokens)\."), r"model.text_model.\1."),
)
# Rows for new tokens, which were trained beside a frozen table.
_ADDED = {
    "model.text_model.embed_tokens.additional_embedding.weight": "model.text_model.embed_tokens.weight",
    "lm_head.additional_fc.weight": "lm_head.weight",
    "additional_fc.weight": "lm_head.weight",
}
_DROPPED = re.compile(r"^model\.vision_model\.head\.|\.rotary_emb\.inv_freq$")  # never used, or computed


def locate(names: Iterable[str]) -> dict[str, list[str]]:
    """Today's name -> the names in the file of the tensor or tensors that make it, in the order of their rows.

    In a file that holds more than the model (a policy, a trainer's wrapper), what lies outside the model's own prefix
    is left out.
    """
    names = sorted(names)
    anchor = r"^(.*?)(?:model\.)?(?:vision_model\.embeddings|connector\.modality_projection|modality_projection)\."
    prefixes = {match.group(1) for name in names if (match := re.match(anchor, name))}
    prefix = min(prefixes, key=len, default="")
    found: dict[str, list[str]] = {}
    for name in names:
        if not name.startswith(prefix):
            continue
        today = name.removeprefix(prefix)
        for pattern, replacement in _RENAMES:
            today = pattern.sub(replacement, today)
        if _DROPPED.search(today):
            continue
        if today in _ADDED:
            found.setdefault(_ADDED[today], []).append(name)  # below the table
        else:
            found.setdefault(today, []).insert(0, name)
    return found
