"""Random JSON schemas of bounded texts, and a strict check of what is written for one."""

import json
from typing import Any

import jsonschema
import numpy as np

ENUM = ["red", "grün", "日本", '😀 "quoted"', "", 0, -17, 3.5, True, None]


def random_schema(chance: np.random.Generator, depth: int = 3) -> dict[str, Any]:
    """A schema; objects and arrays are at most `depth` within each other. Its texts have an end: none may be long."""
    leaves = [_text, _choice, _integer, _plain]
    return (leaves if depth == 0 else [_object, _object, _array, _union, *leaves])[
        chance.integers(4 if depth == 0 else 8)
    ](chance, depth - 1)


def assert_valid(text: str, schema: dict[str, Any]) -> None:
    """Fails unless a text is JSON, without an object that has a key twice, and fulfils the schema."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), text
        return dict(pairs)

    value = json.loads(text, object_pairs_hook=unique)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(value)


def _text(chance: np.random.Generator, depth: int) -> dict[str, Any]:
    kinds = [{"maxLength": 8}, {"minLength": 2, "maxLength": 5}, {"pattern": "^[a-fé]{1,6}$"}, {"format": "date"}]
    return {"type": "string"} | kinds[chance.integers(len(kinds))]


def _choice(chance: np.random.Generator, depth: int) -> dict[str, Any]:
    values = [ENUM[i] for i in chance.permutation(len(ENUM))[: chance.integers(1, 5)]]
    return {"const": values[0]} if chance.random() < 0.2 else {"enum": values}


def _integer(chance: np.random.Generator, depth: int) -> dict[str, Any]:
    least, most = np.sort(chance.integers(-5000, 5000, 2)).tolist()
    names = (
        ("minimum", "maximum")
        if chance.random() < 0.5 or most - least < 3
        else ("exclusiveMinimum", "exclusiveMaximum")
    )
    return {"type": "integer", names[0]: least, names[1]: most}


def _plain(chance: np.random.Generator, depth: int) -> dict[str, Any]:
    return {"type": ["boolean", "null", ["boolean", "null"]][chance.integers(3)]}


def _object(chance: np.random.Generator, depth: int) -> dict[str, Any]:
    names = [["name", "größe", "a b", 'q"', "x1"][i] for i in chance.permutation(5)[: chance.integers(1, 5)]]
    required = [name for name in names if chance.random() < 0.6]
    properties = {name: random_schema(chance, depth) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(chance: np.random.Generator, depth: int) -> dict[str, Any]:
    least = int(chance.integers(0, 3))
    items = random_schema(chance, depth)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + int(chance.integers(0, 3))}


def _union(chance: np.random.Generator, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(chance, depth) for _ in range(2)]}
