"""What is true of clips of synthetic videos, as labels for probes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rayjepa.data.clip import ClipSpec
from rayjepa.data.index.labels import PREFIX
from rayjepa.data.manifest import Manifest
from rayjepa.data.synthetic import COLOURS, SHAPES, Labels, position


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Labels of the same clips, which show whole frames and are not mirrored.

    Units:   lengths in sides of the frame, times in seconds.
    """

    videos: tuple[int, ...]
    """Manifest row of each clip."""
    velocity: Float[Tensor, "n 2"]
    """Way from the first frame to the last over the time between them, across and down: bounces are counted in."""
    position: Float[Tensor, "n 2"]
    """Centre of the shape in the middle of the clip."""
    identity: Int64[Tensor, " n"]
    """Which of the shapes."""
    colour: Int64[Tensor, " n"]


def truth_of(videos: Manifest, specs: Sequence[ClipSpec]) -> Truth:
    """The labels of `specs`.

    Raises:  ValueError if the manifest has not the labels of synthetic videos.
    """
    names = {PREFIX + field.name: field.name for field in fields(Labels)}
    if lacking := sorted(set(names) - set(videos.table.column_names)):
        raise ValueError(
            f"the manifest lacks {', '.join(lacking)}: motion and identity are known of synthetic videos only; leave "
            "data.videos away"
        )
    columns = {name: videos.column(column) for column, name in names.items()}
    ways: list[Float[np.ndarray, " 2"]] = []
    centres: list[Float[np.ndarray, " 2"]] = []
    rows = [Labels(**{name: column[spec.video].as_py() for name, column in columns.items()}) for spec in specs]
    for spec, labels in zip(specs, rows, strict=True):
        span_s = (spec.frames - 1) / spec.fps
        first, middle, last = position(labels, spec.start_s + span_s * np.array([0.0, 0.5, 1.0]))
        ways.append((last - first) / span_s)
        centres.append(middle)
    return Truth(
        videos=tuple(spec.video for spec in specs),
        velocity=torch.tensor(np.array(ways), dtype=torch.float32),
        position=torch.tensor(np.array(centres), dtype=torch.float32),
        identity=torch.tensor([SHAPES.index(labels.identity) for labels in rows]),
        colour=torch.tensor([list(COLOURS).index(labels.colour) for labels in rows]),
    )
