"""Which family a checkpoint is of."""

from collections.abc import Iterable

from unmask.families.mapping import Family
from unmask.families.tables import FAMILIES
from unmask.files import Row


def family_of(names: Iterable[str], published: Row | None = None, family: str | None = None) -> Family:
    """By name, by `model_type`, else by the tensors' names.

    A bare file of Dream's tensors cannot be told from a causal model's. Raises ValueError for an unknown family.
    """
    names, known = set(names), ", ".join(each.name for each in FAMILIES)
    if family is not None:
        found = next((each for each in FAMILIES if each.name.lower() == family.lower()), None)
        if found is None:
            raise ValueError(f"family {family!r} is unknown: {known}")
        return found
    kind = (published or {}).get("model_type")
    if isinstance(kind, str):
        found = next((each for each in FAMILIES if kind in each.kinds), None)
        if found is None:
            raise ValueError(f"model_type {kind!r} is none of the families {known}")
        return found
    found = next((each for each in FAMILIES if each.mark in names), None)
    if found is None:
        some = ", ".join(sorted(names)[:3]) or "none"
        raise ValueError(f"tensors of no known family ({some}, ...): give --family (family=) one of {known}")
    return found
