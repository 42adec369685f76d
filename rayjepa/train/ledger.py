"""What went wrong with samples and steps of a run, as its checkpoints carry it from attempt to attempt."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rayjepa.data.batch import ClipBatch
from rayjepa.train.engine import gather_objects
from rayjepa.train.history import History
from rayjepa.train.outcome import StopRun

MANY = 20
"""Quarantined samples below which a share says little."""


@dataclass(slots=True)
class Ledger:
    """Steps passed over, and samples that another clip stood in for; the same on every rank."""

    refused: list[dict[str, Any]] = field(default_factory=list)
    """step, reason"""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """The fields of a Failure, with `step` and `substitute`."""

    def refuse(self, step: int, reason: str | None) -> None:
        """Note that `step` was passed over, if there is a reason."""
        if reason is not None:
            self.refused.append({"step": step, "reason": reason})

    def refused_since(self, step: int) -> int:
        """How many steps from `step` on were passed over."""
        return sum(entry["step"] >= step for entry in self.refused)

    def require_good_data(self, *, samples: int, limit: float) -> None:
        """Stop a run whose data is bad.

        Raises:  StopRun with a summary by reason if more than `limit` of the first `samples` samples (and at
                 least MANY) had to be substituted.
        """
        bad = {entry["index"] for entry in self.failures}
        if len(bad) < MANY or len(bad) <= limit * samples:
            return
        reasons = Counter(f"{entry['kind']} in {entry['stage']}: {entry['reason']}" for entry in self.failures)
        listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
        raise StopRun(
            f"{len(bad)} of {samples} samples could not be decoded, above data.max_bad_share={limit:g}: {listed}"
            f"{f'; and {len(reasons) - 5} other reasons' if len(reasons) > 5 else ''}. "
            f"First: {self.failures[0]['uri']}. Mend the files, index again, or raise data.max_bad_share"
        )


def record_held_out(history: History, batches: Iterable[ClipBatch], *, step: int) -> None:
    """Put the held-out clips that were given up into the history, of all ranks; each calls it, with its own share."""
    mine = [entry for clips in batches for entry in entries(clips, step=step)]
    for entry in sorted((e for each in gather_objects(mine) for e in each), key=lambda e: (e["index"], e["attempt"])):
        history.append("held_out", **entry)


def entries(clips: ClipBatch, *, step: int) -> list[dict[str, Any]]:
    """What had to be given up for a batch: the fields of each Failure, with `step` and the `substitute` in the end."""
    stand_in = {spec.index: spec.uri for spec in clips.specs}
    return [{**asdict(f), "step": step, "substitute": stand_in[f.index]} for f in clips.failures]
