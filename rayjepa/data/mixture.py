"""Which source of a stream a sample is of: exact shares over time, finely mixed, a function of the number alone."""

from collections.abc import Sequence

from rayjepa.data.permutation import permute
from rayjepa.data.quotas import Place, Quotas

DECK = 64
"""Samples that are dealt together: what a deck has of each source is its share to within a sample or two."""


class Mixture:
    """The places of a stream's samples in its sources.

    How many samples of a deck each source has is a quota, as streams have of a step; in which order they come is drawn
    for each deck, so that no rank or place of a micro-batch meets the same source again and again. Each source's own
    numbers rise by one from sample to sample. A single source has them all.
    """

    def __init__(self, weights: Sequence[float], key: bytes) -> None:
        self._quotas = Quotas.of(weights, clips=DECK, quantum=1)
        self._key, self._is_one = key + b"sources", len(weights) == 1
        self._last: tuple[int, tuple[Place, ...]] = (-1, ())

    def place(self, number: int) -> Place:
        """Source and number in it of the stream's sample `number`."""
        if self._is_one:
            return Place(0, number)
        deck, card = divmod(number, DECK)
        last, places = self._last
        if deck != last:
            places = self._dealt(deck)
            self._last = deck, places
        return places[card]

    def _dealt(self, deck: int) -> tuple[Place, ...]:
        """The places of a deck's samples."""
        cards = [source for source, count in enumerate(self._quotas.step(deck)) for _ in range(count)]
        numbers, key = list(self._quotas.before(deck)), self._key + b"%d" % deck
        places: list[Place] = []
        for card in range(DECK):
            source = cards[permute(card, DECK, key)]
            places.append(Place(source, numbers[source]))
            numbers[source] += 1
        return tuple(places)
