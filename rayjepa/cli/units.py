"""Figures of a plan as people read them: operations, bytes, rates, hours."""


def flop(count: int | float) -> str:
    """Operations with the unit that fits."""
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.4g} FLOP"


def in_bytes(count: int | float) -> str:
    """Bytes with the unit that fits, in powers of 1000."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def rate_of(number: int | float) -> str:
    """A rate in three digits, or whole."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def duration(hours: int | float) -> str:
    """Hours, or minutes or seconds of them."""
    if hours < 1 / 60:
        return f"{hours * 3600:.3g} s"
    if hours < 1:
        return f"{hours * 60:.3g} min"
    return f"{hours:,.3g} h" if hours < 1000 else f"{hours:,.0f} h"
