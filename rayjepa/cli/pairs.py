"""`key=value` words of a command line."""

from collections.abc import Sequence


def overrides_from(words: Sequence[str]) -> dict[str, object]:
    """`key=value` words as a mapping. Raises ValueError for a word without `=`."""
    pairs: dict[str, object] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise ValueError(f"{word!r} is not key=value; `rayjepa pretrain --help` lists the keys")
        pairs.pop(key, None)  # the last stands last, for `model=NAME` sets many keys
        pairs[key] = value
    return pairs
