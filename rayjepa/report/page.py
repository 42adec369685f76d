"""The run's page: one HTML file with everything inside, written beside the run's own files."""

import json
import math
import os
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

import rayjepa
from rayjepa.config import Phase
from rayjepa.report import account
from rayjepa.report.curves import charts
from rayjepa.report.digest import Digest, read_digest, steps_done
from rayjepa.report.look import CSS, SCRIPT
from rayjepa.report.numbers import NOTHING, duration, moment, number, plural, share
from rayjepa.report.phases import phases_in, phases_table, progress
from rayjepa.report.plot import Chart, figure, hover_data
from rayjepa.report.reading import Settings, Standing, is_run, read_settings, read_standing
from rayjepa.report.tables import absent, phase_after, settings_tables
from rayjepa.report.totals import bad_share
from rayjepa.report.verdict import verdict
from rayjepa.train.quarantine import write_quarantine

CURVES_KEY = """<ul class="legend shared">
<li><i class="key first raw"></i>each reading</li><li><i class="key first"></i>running mean</li>
<li><i class="key undone"></i>steps that a restart undid</li>
<li><i class="key start"></i>start of attempt 2, 3, …</li>"""
PHASES_KEY = '<li><i class="key phase"></i>start of a phase</li>'


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html and RUN/quarantine.parquet from what the run folder holds now; return the page's path.

    A run that has just begun gives a page that says what is not there yet.
    Raises:  ValueError if `run_dir` is no run folder.
    """
    path = run_dir / "report.html"
    text = page(run_dir, now=time.time())
    write_quarantine(run_dir, read_digest(run_dir).table)  # first, since the page links to it
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_text(text, encoding="utf-8")
    half.replace(path)
    return path


def page(run_dir: Path, *, now: float) -> str:
    """The HTML of the page, as of unix time `now`."""
    _require_run(run_dir)
    settings, digest = read_settings(run_dir), read_digest(run_dir)
    standing = read_standing(run_dir, settings=settings, now=now)
    phases = phases_in(settings)
    drawn = charts(digest, phases)
    name = (settings.run.name if settings.run else None) or run_dir.resolve().name
    parts = [
        _header(name, standing, digest, settings, phases),
        _health(digest),
        _section("Curves", _curves(drawn)),
        *([_section("Phases", phases_table(phases, digest, finished=steps_done(standing, digest)))] if phases else []),
        _section("Attempts and coverage", account.attempts(run_dir, digest, settings)),
        _section("Clips that were replaced", account.replaced(digest, settings)),
        _section("Refused steps", account.refused(digest)),
        _section("Configuration", settings_tables(settings)),
        _section("Host and versions", account.host(run_dir, digest)),
    ]
    end = f"Written by rayjepa {rayjepa.__version__} at {moment(now)} from {run_dir.resolve()}."
    data = json.dumps({chart.key: hover_data(chart) for chart in drawn}, separators=(",", ":"))
    data = data.replace("<", r"\u003c")  # "</script>" in a text of a file would end the element
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · rayjepa</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + f"\n<footer>{escape(end)}</footer></main>\n"
        + f'<script type="application/json" id="curves">{data}</script>\n'
        + f"<script>{SCRIPT}</script>\n</body></html>\n"
    )


def _require_run(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a run: there is no such folder; `rayjepa runs` lists the runs there are")
    if not is_run(folder):
        known = sorted(p.name for p in folder.iterdir() if p.is_dir() and is_run(p))
        remedy = f"it holds the runs {', '.join(known[:5])}: name one" if known else "name a folder that pretrain made"
        raise ValueError(f"{folder} is not a run: it has no run.yaml and no attempt; {remedy}")


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inner}</section>"


def _header(name: str, standing: Standing, digest: Digest, settings: Settings, phases: Sequence[Phase]) -> str:
    """Name, state with its reason, and how far the run is."""
    done, steps = steps_done(standing, digest), standing.steps
    begun = f"Started {moment(digest.lives[0].record.unix_s)}" if digest.lives else "No attempt has started yet"
    seen = f"{begun}. Last sign of life {moment(standing.seen_unix_s)}."
    why = f'<p class="why">{escape(_sentence(standing.reason))}</p>' if standing.reason else ""
    ticks = "".join(f'<b style="left:{100 * phase.first / steps:.2f}%"></b>' for phase in phases[1:] if steps)
    bar = f'<div class="bar"><i style="width:{100 * min(done / steps, 1):.1f}%"></i>{ticks}</div>' if steps else ""
    state = f'<span class="state {standing.state}">{standing.state}</span>'
    return (
        f'<header><div class="line"><h1>{escape(name)}</h1>{state}</div>'
        f'<p class="when">{escape(seen)}</p>{why}{bar}{_tiles(done, standing, digest, settings, phases)}</header>'
    )


def _tiles(done: int, standing: Standing, digest: Digest, settings: Settings, phases: Sequence[Phase]) -> str:
    """Six numbers, of surviving steps where they are of steps; speed is that of the present phase."""
    steps, clips = standing.steps, settings.run.train.clips if settings.run else None
    phase, undone = phase_after(phases, done), sum(life.undone for life in digest.lives)
    rate = digest.median("rate/clips_per_s", first=phase.first if phase else 0)
    end = phase.stop if phase else steps
    left_s = (end - done) * clips / rate if end and clips and rate > 0 else 0.0
    where = f"; {progress(phase, done)}" if phase else ""
    left = f"about {duration(left_s)} left" + (f" of {phase.name}" if phase else "")
    lost = duration(sum(life.lost_s for life in digest.lives))
    spent = f"{plural(len(digest.refused), 'step')} refused" if digest.refused else f"{clips:,} a step" if clips else ""
    tiles = [
        ("Steps", f"{done:,}", f"of {steps:,} ({share(done / steps)}){where}" if steps else "of an unknown number"),
        ("Samples trained", f"{digest.samples:,}", spent),
        (
            "Clips/s, median",
            NOTHING if math.isnan(rate) else number(rate),
            left if left_s and standing.state == "running" else f"in {phase.name}" if phase else "of surviving steps",
        ),
        ("Wall time", duration(digest.wall_s), f"in {plural(len(digest.lives), 'attempt')}"),
        ("Lost work", plural(undone, "step"), f"{lost}, undone by restarts" if undone else "nothing was undone"),
        ("Clips replaced", f"{digest.replaced:,}", bad_share(digest)),
    ]
    cells = "".join(
        f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _health(digest: Digest) -> str:
    found = verdict(digest.examined)
    words = f"<strong>{escape(found.headline)}</strong><p>{escape(found.detail)}</p>"
    return f'<section class="verdict {found.level}">{words}</section>'


def _curves(drawn: Sequence[Chart]) -> str:
    if not any(len(curve.x) for chart in drawn for curve in chart.curves):
        return absent("No reading yet: curves come with the first steps and examinations.")
    key = CURVES_KEY + (PHASES_KEY if drawn[0].phases else "") + "</ul>"
    return key + f'<div class="charts">{"".join(map(figure, drawn))}</div>'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
