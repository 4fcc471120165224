"""JSON schemas as regular expressions.

What is written is always JSON that the schema accepts. Not all JSON that it accepts can be written: properties stand in
the schema's order, at most one space follows a comma or a colon, and a character is spelled in one way. A keyword that
would have to be ignored is refused, for then some sample would not be valid; `format` is a note, as in the standard.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unmask.grammar.regular import between, narrowed, regular, spelt

COMMA, COLON = ", ?", ": ?"
CHARACTER = r"""(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])"""
# what can stand for itself in a JSON string, but for what "." or "\S" fits in Python and not in ECMA-262, whose
# expressions a schema's are
ITSELF = r"""(?![\x00-\x1f"\\\u2028\u2029\ufeff])"""
NATURAL = "(?:0|[1-9][0-9]*)"
NUMBER = rf"-?{NATURAL}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
DIGITS = 18  # of an integer's bounds
LONGEST = 300_000  # characters of the pattern: references to references double it at each step
NOTES = {"title", "description", "default", "examples", "deprecated", "$schema", "$id", "$comment", "$defs"}
NOTES |= {"definitions", "format", "readOnly", "writeOnly"}
KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set(),
    "boolean": set(),
    "null": set(),
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
KINDS = {"pattern": str, "required": list, "properties": dict}
PYTHON = {"string": str, "integer": int, "number": (int, float), "null": type(None), "array": list, "object": dict}
Schema = Mapping[str, Any]


def schema_pattern(schema: object) -> str:
    """A regular expression that fits nothing but JSON which the schema accepts.

    Known are type, enum, const, anyOf, $ref (not to itself), properties, required, additionalProperties, items,
    prefixItems, minItems, maxItems, minLength, maxLength, pattern (which fits the whole text), and an integer's bounds.
    Raises ValueError for any other keyword, and for what no regular expression can say.
    """
    try:
        return _value(schema, "#", schema, ())
    except RecursionError:
        raise ValueError("JSON schema: nested too deeply") from None


def _value(schema: Any, where: str, root: Any, above: tuple[str, ...]) -> str:
    """The pattern of one value; `where` it is in the schema, `above` the references that lead here."""
    if not isinstance(schema, dict):
        raise ValueError(f"JSON schema, {where}: found {_shown(schema)}, not an object that says what a value is")
    for word, kind in KINDS.items():
        if word in schema and not isinstance(schema[word], kind):
            name = {str: "a string", list: "a list of names", dict: "an object"}[kind]
            raise ValueError(f"JSON schema, {where}: {word} {_shown(schema[word])} must be {name}")
    pattern = _unbounded(schema, where, root, above)
    if len(pattern) > LONGEST:
        raise ValueError(f"JSON schema, {where}: its pattern is longer than {LONGEST:,} characters: say less")
    return pattern


def _unbounded(schema: Schema, where: str, root: Any, above: tuple[str, ...]) -> str:
    words = {word for word in schema if word not in NOTES and (word, schema[word]) != ("uniqueItems", False)}
    if "$ref" in words:
        _only(words, {"$ref"}, where)
        name = schema["$ref"]
        if name in above:
            raise ValueError(f"JSON schema, {where}: {name} refers to itself, which no regular expression can follow")
        return _value(_target(name, where, root), where, root, (*above, name))
    if "anyOf" in words:
        _only(words, {"anyOf"}, where)
        return _either(
            [_value(s, f"{where}/anyOf/{i}", root, above) for i, s in enumerate(_list(schema, "anyOf", where))]
        )
    if words & {"enum", "const"}:
        _only(words, {"enum" if "enum" in words else "const", "type"}, where)
        return _either([re.escape(_spelled(value)) for value in _constants(schema, where)])
    _only(words, {"type"}.union(*KEYWORDS.values()), where)
    types = _types(schema, where)
    _only(words, {"type"}.union(*(KEYWORDS[name] for name in types)), where)
    if "number" in types:
        _only(words & KEYWORDS["integer"], set(), where)
    return _either([_typed(name, schema, where, root, above) for name in types])


def _typed(name: str, schema: Schema, where: str, root: Any, above: tuple[str, ...]) -> str:
    if name == "string":
        return _string(schema, where)
    if name == "integer":
        return _integer(schema, where)
    if name == "array":
        return _array(schema, where, root, above)
    if name == "object":
        return _object(schema, where, root, above)
    return {"number": NUMBER, "boolean": "(?:true|false)", "null": "null"}[name]


def _string(schema: Schema, where: str) -> str:
    if "pattern" not in schema:
        return f'"{CHARACTER}{_count(schema, "minLength", "maxLength", where)}"'
    if schema.keys() & {"minLength", "maxLength"}:
        raise ValueError(f"JSON schema, {where}: say the length inside the pattern, with counts such as a{{2,5}}")
    pattern = narrowed(schema["pattern"], ITSELF)
    if not regular(pattern).accepting.any():
        what = "fits no text without quotation marks, backslashes and control characters, which JSON spells otherwise"
        raise ValueError(f"JSON schema, {where}: pattern {schema['pattern']!r} {what}")
    return f'"{pattern}"'


def _integer(schema: Schema, where: str) -> str:
    names = [name for name in sorted(KEYWORDS["integer"]) if name in schema]
    if not names:
        return f"-?{NATURAL}"
    for name in names:
        if type(schema[name]) not in (int, float) or not abs(schema[name]) < 10**DIGITS:
            what = f"must be a number of {DIGITS} digits at most"
            raise ValueError(f"JSON schema, {where}: {name} {_shown(schema[name])} {what}")
    lows = {"minimum": math.ceil, "exclusiveMinimum": lambda value: math.floor(value) + 1}
    highs = {"maximum": math.floor, "exclusiveMaximum": lambda value: math.ceil(value) - 1}
    low = max((lows[name](schema[name]) for name in names if name in lows), default=None)
    high = min((highs[name](schema[name]) for name in names if name in highs), default=None)
    if low is not None and high is not None and low > high:
        raise ValueError(f"JSON schema, {where}: {' and '.join(names)} leave no integer")
    parts = []
    if low is None or low < 0:
        parts.append(f"-{_naturals(max(1, -high if high is not None else 1), None if low is None else -low)}")
    if high is None or high >= 0:
        parts.append(_naturals(max(0, low or 0), high))
    return _either(parts)


def _naturals(low: int, high: int | None) -> str:
    """The decimals low, low + 1, …, high."""
    most, parts = len(str(low if high is None else high)), []
    for digits in range(len(str(low)), most + 1):
        least, last = 10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1
        first, last = max(least, low), last if high is None else min(last, high)
        for span in between(str(first).encode(), str(last).encode(), b"0", b"9"):
            parts.append("".join(spelt([ends]) for ends in span))
    return _either(parts if high is not None else [*parts, f"[1-9][0-9]{{{most},}}"])


def _array(schema: Schema, where: str, root: Any, above: tuple[str, ...]) -> str:
    if "prefixItems" in schema:
        parts = _list(schema, "prefixItems", where)
        least, most = _bounds(schema, "minItems", "maxItems", where)
        if not least <= len(parts) <= (len(parts) if most is None else most):
            raise ValueError(f"JSON schema, {where}: minItems and maxItems leave out the {len(parts)} prefixItems")
        return rf"\[{COMMA.join(_value(s, f'{where}/prefixItems/{i}', root, above) for i, s in enumerate(parts))}\]"
    if "items" not in schema:
        raise ValueError(f"JSON schema, {where}: an array of any values is not regular: say its items")
    least, most = _bounds(schema, "minItems", "maxItems", where)
    if most == 0:
        return r"\[\]"
    item = _value(schema["items"], f"{where}/items", root, above)
    more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
    return rf"\[(?:{item}(?:{COMMA}{item}){more}){'' if least else '?'}\]"


def _object(schema: Schema, where: str, root: Any, above: tuple[str, ...]) -> str:
    if "properties" not in schema:
        if schema.get("required") or not isinstance(schema.get("additionalProperties"), dict):
            raise ValueError(f"JSON schema, {where}: an object of any properties is not regular: say its properties")
        value = _value(schema["additionalProperties"], f"{where}/additionalProperties", root, above)
        pair = f'"{CHARACTER}*"{COLON}{value}'
        return rf"\{{(?:{pair}(?:{COMMA}{pair})*)?\}}"
    required = schema.get("required", [])
    if missing := [name for name in required if name not in list(schema["properties"])]:
        raise ValueError(f"JSON schema, {where}: {_shown(missing)[1:-1]} required, but not among the properties")
    pairs = [
        (re.escape(_spelled(name)) + COLON + _value(value, f"{where}/properties/{name}", root, above), name in required)
        for name, value in schema["properties"].items()
    ]
    return rf"\{{{_in_order(pairs)}\}}"


def _in_order(pairs: Sequence[tuple[str, bool]]) -> str:
    """The pairs with commas between them; one that is not required may be left out."""
    starts = []
    for i, (first, required) in enumerate(pairs):
        rest = (f"(?:{COMMA}{pair}){'' if needed else '?'}" for pair, needed in pairs[i + 1 :])
        starts.append(first + "".join(rest))
        if required:
            return _either(starts)
    return f"(?:{'|'.join(starts)})?"


def _either(patterns: Sequence[str]) -> str:
    return patterns[0] if len(patterns) == 1 else f"(?:{'|'.join(patterns)})"


def _only(words: set[str], known: set[str], where: str) -> None:
    for word in sorted(words - known):
        raise ValueError(f"JSON schema, {where}: {word!r} cannot be kept here: leave it out, or say it another way")


def _types(schema: Schema, where: str) -> list[str]:
    guess = "object" if "properties" in schema else "array" if "items" in schema else None
    types = schema.get("type", guess)
    types = types if isinstance(types, list) else [types]
    if not types or not all(isinstance(name, str) and name in KEYWORDS for name in types):
        raise ValueError(f"JSON schema, {where}: type {_shown(schema.get('type'))}: say one of {', '.join(KEYWORDS)}")
    return types


def _constants(schema: Schema, where: str) -> list[Any]:
    values = _list(schema, "enum", where) if "enum" in schema else [schema["const"]]
    if "type" in schema:
        values = [value for value in values if any(_is(value, name) for name in _types(schema, where))]
    if not values:
        raise ValueError(f"JSON schema, {where}: no value is of type {schema['type']}")
    for value in values:
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError(f"JSON schema, {where}: {_shown(value)}: JSON has finite numbers only") from None
    return values


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool) or name == "boolean":
        return isinstance(value, bool) and name == "boolean"
    return isinstance(value, PYTHON[name])


def _list(schema: Schema, word: str, where: str) -> list[Any]:
    if not isinstance(schema[word], list) or not schema[word]:
        raise ValueError(f"JSON schema, {where}: {word} must be a list, and not empty")
    return schema[word]


def _count(schema: Schema, least: str, most: str, where: str) -> str:
    low, high = _bounds(schema, least, most, where)
    return "*" if (low, high) == (0, None) else f"{{{low},{'' if high is None else high}}}"


def _bounds(schema: Schema, least: str, most: str, where: str) -> tuple[int, int | None]:
    low, high = schema.get(least, 0), schema.get(most)
    whole = type(low) is int and (high is None or type(high) is int)  # a boolean is none
    if not whole or low < 0 or (high is not None and high < low):
        raise ValueError(f"JSON schema, {where}: {least} {low} and {most} {high} leave no length")
    return low, high


def _target(name: Any, where: str, root: Any) -> Any:
    found = root
    for part in str(name).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        found = found.get(part) if isinstance(found, dict) else None
    if not str(name).startswith("#") or found is None:
        raise ValueError(f"JSON schema, {where}: there is no {name} in it: a reference is #/$defs/NAME")
    return found


def _spelled(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shown(value: Any) -> str:
    text = _spelled(value)
    return text if len(text) <= 40 else text[:37] + "…"
