"""Map the tensor names of other checkpoint layouts to today's names, those of the table in `params/table.py`.

Two things differ in other layouts: a prefix before every name, and the names of the model's first training code. That
training code may store one of today's tensors as two, to be concatenated by rows.
"""

import re
from collections.abc import Iterable

# Applied in this order, after the prefix is removed. The training code's names are those that the conversion script of
# transformers 4.46 handles.
_RENAMES = (
    (re.compile(r"^(vision_model|connector|text_model)\."), r"model.\1."),  # saved without the model's head
    (re.compile(r"^model\.modality_projection\."), "model.connector.modality_projection."),
    (re.compile(r"^model\.(layers|norm|embed_tokens)\."), r"model.text_model.\1."),
)
# The training code froze the pretrained table and trained the rows of new vocabulary ids as a tensor of their own.
_ADDED = {
    "model.text_model.embed_tokens.additional_embedding.weight": "model.text_model.embed_tokens.weight",
    "lm_head.additional_fc.weight": "lm_head.weight",
    "additional_fc.weight": "lm_head.weight",
}
# The model does not use this pooling head, and computes the rotary frequencies itself.
_DROPPED = re.compile(r"^model\.vision_model\.head\.|\.rotary_emb\.inv_freq$")


def locate(names: Iterable[str]) -> dict[str, list[str]]:
    """Return {today's name: stored names}; tensors stored under several names are concatenated by rows, in this order.

    The prefix is what stands before the names of the vision embeddings and the connector. Names without this prefix
    are left out, so a file may hold more than the model (a robot policy, a trainer's wrapper).
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
            found.setdefault(_ADDED[today], []).append(name)  # after the table's rows
        else:
            found.setdefault(today, []).insert(0, name)
    return found
