"""Numbers as a reader wants them: significant digits set by the error, units spelled out."""

import math
from typing import Any

MISSING = "–"


def number(value: Any) -> float | None:
    """`value` as a float (NaN and infinities included), None where it is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None


def finite(value: Any) -> float | None:
    """`value` as a finite float, None where it is none."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def drawable(value: Any) -> float | None:
    """`value` as a number that an axis can hold, None where it is none."""
    found = finite(value)
    return found if found is not None and abs(found) < 1e100 else None


def plain(value: Any, digits: int = 4) -> str:
    """A number to `digits` significant digits: 12,345 for integers, 0.00123, 1.2e+18 far from one."""
    found = number(value)
    if found is None:
        return MISSING
    if not math.isfinite(found):
        return {"inf": "∞", "-inf": "−∞"}.get(str(found), "not a number")
    if found == int(found) and abs(found) < 1e9:
        text = f"{int(found):,}"
    elif found == 0 or 1e-3 <= abs(found) < 1e6:
        text = f"{found:,.{max(0, digits - 1 - math.floor(math.log10(abs(found))))}f}"
    else:
        text = power(found, digits)
    return text.replace("-", "−")


def power(value: Any, digits: int = 3) -> str:
    """A number in powers of ten: 1.23 × 10¹⁸."""
    found = finite(value)
    if found is None or found == 0:
        return MISSING if found is None else "0"
    mantissa, exponent = f"{found:.{digits - 1}e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{raised}".replace("-", "−")


def with_error(value: Any, *errors: Any) -> tuple[str, ...]:
    """`value` and its errors, all to the place that shows two digits of the smallest error, one that is a millionth of
    another (rounding) left out; in powers of ten what would be too long, and an error that would be shown as 0.
    """
    sizes = [abs(size) for error in errors if (size := finite(error))]
    known = finite(value)
    if not sizes or known is None:
        return tuple(plain(entry) for entry in (value, *errors))
    last = math.floor(math.log10(min(size for size in sizes if size >= 1e-6 * max(sizes)))) - 1
    decimals = min(8, max(0, -last))

    def text(entry: Any, least: float) -> str:
        found = finite(entry)
        if not found:
            return plain(entry)
        if max(abs(known), *sizes) >= 1e9 or abs(found) < least:
            return power(found, min(9, max(2, math.floor(math.log10(abs(found))) - last + 1)))
        return f"{round(found, decimals) + 0.0:,.{decimals}f}".replace("-", "−")  # + 0.0: no minus before a zero

    return text(value, 0.0), *(text(error, 0.5 * 10.0**-decimals) for error in errors)


def unseen(draws: int, error: float = 0.05) -> float:
    """The share that what none of so many draws showed stays below, but for an error (the rule of three): at most 1."""
    return min(1.0, -math.log(error) / draws)


def count(value: Any) -> str:
    """A count with an SI-like suffix: 950, 12.3 K, 124 M, 1.03 B."""
    found = finite(value)
    if found is None:
        return MISSING
    for size, suffix in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")):
        if abs(found) >= size:
            return f"{found / size:,.0f}{suffix}" if abs(found) >= 99.95 * size else f"{found / size:.3g}{suffix}"
    return f"{found:g}"


def duration(value: Any) -> str:
    """Seconds as 4.2 s, 12 min 5 s, 3 h 10 min, 2 d 4 h."""
    found = finite(value)
    if found is None:
        return MISSING
    if found < 60:
        return f"{found:.3g} s"
    whole = round(found)
    for size, unit, small, small_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size:,} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{whole} s"
