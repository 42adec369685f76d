"""What new videos save: CPU of the same clips from the old files and from the new ones, in turns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rayjepa.config import RunConfig
from rayjepa.data.clip import ClipSpec
from rayjepa.data.decoder import Decoder
from rayjepa.data.manifest import Manifest
from rayjepa.data.tape import Tape

Pair = tuple[ClipSpec, ClipSpec]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """CPU of a clip in the decoder, on average over the clips of a sample."""

    clips: int
    old_ms: float
    new_ms: float

    @property
    def ratio(self) -> float:
        """How many times less CPU a clip takes."""
        return self.old_ms / self.new_ms


def sample(run: RunConfig, old: Manifest, new: Manifest, *, clips: int) -> list[Pair]:
    """The first clips of a training on `new`, each with the same one of the file that its video was made of.

    Empty if `new` has no video to train on.
    """
    if new.images[new.train_rows].all():  # none at all, too
        return []
    linear = {old.uri(int(row)) for row in old.linear.nonzero()[0]}
    tape, origins = Tape(run, new), new.column("origin")
    pairs: list[Pair] = []
    for index in range(min(clips, run.samples)):
        spec = tape.spec(index)
        origin = origins[spec.video].as_py()
        if origin is None:  # an image, if those are what is drawn
            continue
        pairs.append((replace(spec, uri=origin, seek="linear" if origin in linear else "planned"), spec))
    return pairs


def measure(run: RunConfig, pairs: Sequence[Pair]) -> Gain | None:
    """Decode both clips of each pair in a child, the older first every other time; none if it cannot be said."""
    old_s = new_s = 0.0
    clips = 0
    with Decoder(replace(run.data, retries=0)) as decoder:
        for number, (old, new) in enumerate(pairs):
            spent: dict[str, float] = {}
            try:
                for spec in (old, new) if number % 2 else (new, old):
                    spent[spec.uri] = decoder.clips([spec], _none).cpu_s
            except LookupError:
                continue  # the file has gone since, or this clip of it is damaged
            old_s, new_s, clips = old_s + spent[old.uri], new_s + spent[new.uri], clips + 1
    if not old_s or not new_s:  # nothing decodes, or so little that the kernel's clock has not ticked
        return None
    return Gain(clips=clips, old_ms=old_s / clips * 1e3, new_ms=new_s / clips * 1e3)


def _none(index: int, attempt: int) -> ClipSpec:
    raise LookupError(f"clip {index}: another video in its place would not be compared with the same")
