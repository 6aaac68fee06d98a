"""Random JSON schemas that no endless answer fits."""

from __future__ import annotations

import random

_LEAVES = ("integer", "string", "boolean", "null", "enum")
_RICHER_LEAVES = (*_LEAVES, "pattern", "const")
_PATTERNS = ("[a-f]{2,4}-[0-9]{2}", "(yes|no)( please)?", "[A-Z][a-z]{1,9}", "[0-9]{4}-[01][0-9]")
_NODES = ("object", "array", "anyOf")
_RICHER_NODES = (*_NODES, "tuple")


def random_schema(draw: random.Random, depth: int, *, is_rich: bool = False) -> dict:
    """Returns a schema of values nested this deep at most.

    Args:
        draw: Where it comes from.
        depth: 0 for scalars alone.
        is_rich: Whether there are patterns, constants and tuples too.
    """

    def below() -> dict:
        return random_schema(draw, draw.randrange(depth), is_rich=is_rich)

    leaves, nodes = (_RICHER_LEAVES, _RICHER_NODES) if is_rich else (_LEAVES, _NODES)
    kind = draw.choice(leaves if depth == 0 else nodes)
    match kind:
        case "object":
            names = [f"{draw.choice('abc')}{index}" for index in range(draw.randint(1, 3))]
            return {
                "type": "object",
                "properties": {name: below() for name in names},
                "required": draw.sample(names, draw.randint(0, len(names))),
                "additionalProperties": False,
            }
        case "array":
            least = draw.randint(0, 1)
            return {"type": "array", "items": below(), "minItems": least, "maxItems": least + draw.randint(0, 1)}
        case "tuple":
            items = [below() for _ in range(draw.randint(1, 3))]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
        case "anyOf":
            return {"anyOf": [below() for _ in range(2)]}
        case "integer":
            least = draw.randint(-999, 999)
            return {"type": "integer", "minimum": least, "maximum": least + draw.randint(0, 2000)}
        case "string":
            return {"type": "string", "minLength": draw.randint(0, 2), "maxLength": draw.randint(2, 5)}
        case "pattern":
            pattern = draw.choice(
                ["[a-f]{2,4}-[0-9]{2}", "(yes|no)( please)?", "[A-Z][a-z]{1,9}", "[0-9]{4}-[01][0-9]"]
            )
            return {"type": "string", "pattern": f"^{pattern}$"}
        case "const":
            return {"const": draw.choice([None, "a b", -3, True, ["x", 1], {"k": "v"}])}
        case "enum":
            return {"enum": draw.sample(["red", "naïve 🙂", 'say "so"', 7, 2.5, None, True], draw.randint(1, 3))}
    return {"type": kind}


def most_values(schema: dict) -> int:
    """Returns how many names and scalars an answer to such a schema has at most."""
    if "anyOf" in schema:
        return max(map(most_values, schema["anyOf"]))
    if "prefixItems" in schema:
        return sum(map(most_values, schema["prefixItems"]))
    if "properties" in schema:
        return sum(1 + most_values(one) for one in schema["properties"].values())
    return schema["maxItems"] * most_values(schema["items"]) if "items" in schema else 1
