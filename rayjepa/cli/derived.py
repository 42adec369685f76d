"""What follows from the knobs of a run: said before hours are spent on it."""

from rayjepa.config import RunConfig, Stream, phase_at, phases_of, quantum_of, streams_of
from rayjepa.config.parts import VIDEO
from rayjepa.data.choice import Videos
from rayjepa.data.reel import Share
from rayjepa.data.tape import Tape


def derived(run: RunConfig, videos: Videos, *, finished: int = 0) -> list[str]:
    """What follows from the knobs, to be read before hours are spent on it; `finished` steps are over already."""
    from rayjepa.model import sizes

    encoder, predictor = (f"{count:,}" for count in sizes(run))
    engine = f"DeepSpeed ZeRO-{run.zero.stage}" if run.train.engine == "zero" else "plain PyTorch"
    passes = run.samples / Tape(phase_at(run, finished).run, videos).videos
    lines = [f"model: encoder {encoder} parameters, predictor {predictor}; {engine}, {run.train.precision}"]
    for phase in phases_of(run):
        if run.phases:
            lines.append(f"phase {phase.name}: steps {phase.first} to {phase.stop - 1}")
        lines += [f"{_kind(run, stream)}: {_clip(stream.run)}" for stream in streams_of(phase.run)]
        if finished < phase.stop:  # its weights may be those of sources that an accepted manifest lacks
            lines += _sources(phase.run, videos)
        train, ranks = phase.run.train, phase.run.ranks
        each = f"{ranks} rank(s) x {phase.run.micro_batch} x {train.accumulation} micro-batch(es)"
        lines.append(f"step: {train.clips} clips = {each}")
    return [
        *lines,
        f"run: {run.steps} steps = {run.samples:,} samples = {passes:.1f} passes over the training videos",
    ]


def _sources(run: RunConfig, videos: Videos) -> list[str]:
    """Lines on the share of each source, and how often its videos come."""
    whole = sum(stream.weight for stream in streams_of(run))
    return [
        f"{_of(stream)}{share.source}: {share.share:.3g} of samples, {share.videos:,} videos, "
        f"{_passes(stream, share, whole):.1f} passes"
        for stream, shares in Tape(run, videos).shares
        for share in shares
        if share.source is not None
    ]


def _of(stream: Stream) -> str:
    return "source " if stream.name == VIDEO else f"source of stream {stream.name}, "


def _passes(stream: Stream, share: Share, whole: float) -> float:
    """How often each video of a source comes, with data.clips_per_video clips each time."""
    samples = stream.run.samples * stream.weight / whole * share.share
    return samples / stream.run.data.clips_per_video / share.videos


def _kind(run: RunConfig, stream: Stream) -> str:
    share = stream.weight / sum(cfg.weight for cfg in run.streams) if run.streams else 1.0
    return f"clip of stream {stream.name}, {share:.0%} of a step" if run.streams else "clip"


def _clip(run: RunConfig) -> str:
    slots, height, width = run.grid
    tokens = f"{slots} x {height} x {width} = {slots * height * width} tokens"
    return f"{run.data.frames} frames at {run.data.fps:g} fps, {run.data.size_px} px: {tokens}"


def warnings_of(run: RunConfig) -> list[str]:
    """Sentences on schedules that do not fit, of all phases, and on steps that are too small for all streams."""
    from rayjepa.train.schedules import warnings_for

    phases = [(f"phase {phase.name}: " if run.phases else "", phase.run) for phase in phases_of(run)]
    found = [f"{of}{line}" for of, own in phases for line in warnings_for(own)]
    clips, streams = run.train.clips, len(run.streams)
    if streams and (units := clips // quantum_of(run)) < streams:
        found.append(
            f"a step of {clips} clips is {units} x data.quantum={quantum_of(run)}, and there are {streams} streams: "
            "they take turns over steps; a larger train.accumulation mixes them"
        )
    return found


def require_one_model(run: RunConfig) -> None:
    """Raises:  ValueError if a phase would need other weights than the first."""
    if not run.phases:
        return
    from rayjepa.model import sizes

    first, *others = phases_of(run)
    for phase in others:
        if sizes(phase.run) != sizes(first.run):
            raise ValueError(
                f"phases[{phase.name}].set: its model would have {sum(sizes(phase.run)):,} parameters and that of "
                f"{first.name} has {sum(sizes(first.run)):,}: the weights go on, so all phases need as many mask types "
                "(masks.kind, masks.multiblock, masks.ijepa.targets), which have a mask token each"
            )
