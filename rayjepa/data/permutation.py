"""A keyed permutation of range(n) that is computed one element at a time, so no order is ever stored."""

import functools
import hashlib
import math
import struct

_ROUNDS = 12  # 8 are visibly uneven over the 120 permutations of 5 elements, 12 are not (tests/test_tape.py)
_WORD = (1 << 64) - 1


def permute(i: int, n: int, key: bytes) -> int:
    """Place of `i` in a pseudo-random permutation of range(n) that `key` alone decides.

    Units:   n in [1, 2^63], i in [0, n); `key` is any bytes.
    Raises:  ValueError if `i` is not in range(n), or n is not allowed.
    Source:  Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002): a Feistel network over Z_a x Z_b
             with a*b just above n, walked until it lands below n. Round function: the finaliser of SplitMix64
             (Steele, Lea and Flood, OOPSLA 2014). It shuffles; it is no cipher.
    """
    if not 0 <= i < n <= 1 << 63:
        raise ValueError(f"permute: i={i} is not in range(n={n}), or n is above 2^63")
    b, rounds = _network(n, key)
    while True:  # a*b - n < b, so for large n almost every walk has one step
        left, right = divmod(i, b)
        for word, side in rounds:
            x = ((right ^ word) + 0x9E3779B97F4A7C15) & _WORD
            x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
            x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
            left, right = right, (left + (x ^ (x >> 31))) % side
        i = left * b + right
        if i < n:
            return i


@functools.lru_cache(maxsize=256)
def _network(n: int, key: bytes) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Width of the grid that holds range(n); for each round a word, and the side that it adds to."""
    b = math.isqrt(n - 1) + 1
    a = -(-n // b)
    words = struct.unpack(f"<{_ROUNDS}Q", hashlib.shake_256(struct.pack("<Q", n) + key).digest(8 * _ROUNDS))
    return b, tuple((word, (a, b)[r % 2]) for r, word in enumerate(words))
