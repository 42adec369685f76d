"""Numbers, durations and moments as people read them."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

NOTHING = "–"
"""What stands where a number is not there."""


def number(value: object, *, digits: int = 3) -> str:
    """`digits` significant digits with thousands separators; integers in full; a dash for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOTHING
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    decimals = digits - 1 - magnitude
    text = f"{round(value, decimals):,.{max(0, decimals)}f}"
    return (
        text.rstrip("0").rstrip(".") if (value == int(value) and "." in text) or (digits > 3 and "." in text) else text
    )


def short(value: int | float, *, largest: int | float) -> str:
    """A label of an axis that goes up to `largest`: as few characters as tell ticks apart (0, 250, 5k, 1.5M, 2e-5)."""
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if largest >= least and (value == 0 or abs(value) >= size / 100):
            return f"{value / size:.6g}{letter}" if value else "0"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-")
    return f"{value:,.6g}"


def share(value: int | float) -> str:
    """A fraction as per cent, three significant digits."""
    if 0 < value < 1e-5:
        return "under 0.001 %"
    return NOTHING if math.isnan(value) else f"{number(100 * value)} %"


def duration(seconds: int | float) -> str:
    """Seconds in the two largest units that matter."""
    if math.isnan(seconds):
        return NOTHING
    whole = round(max(seconds, 0))
    if whole < 10:
        return f"{number(float(max(seconds, 0)))} s"
    for size, unit, part, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size:,} {unit} {rest} {name}" if rest else f"{whole // size:,} {unit}"
    return f"{whole} s"


def moment(unix_s: object) -> str:
    """Date and time in UTC, to the second; a dash for what is no time."""
    if isinstance(unix_s, bool) or not isinstance(unix_s, int | float) or not 0 < unix_s < 1e11:
        return NOTHING
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ranges(spans: Sequence[Sequence[int]], *, most: int = 20) -> str:
    """Half-open ranges in one line, the first `most` of them."""
    text = ", ".join(f"[{a:,}, {b:,})" for a, b in spans[:most])
    return text + (f" and {len(spans) - most:,} more" if len(spans) > most else "")


def plural(count: int, noun: str) -> str:
    """`1 step`, `2 steps`, `1,000 steps`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
