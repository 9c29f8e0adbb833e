"""`report.html`: one self-contained page about one run, for a person, offline, without a script.

Everything that comes from a run (corpus text above all) is escaped by the template engine; the content security
policy of the page forbids scripts and any load besides its own inline style, in case an escape were ever missed.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tilth
from tilth.recipe.files import write_bytes
from tilth.report.advice import advice
from tilth.report.choosing import choosing
from tilth.report.reading import Run, read_run
from tilth.report.scores import read_scores
from tilth.report.sections import cost, curves, data, facts, headline, samples, scores_section, training_data
from tilth.report.sources import read_sources
from tilth.report.survival import survival
from tilth.report.templating import environment
from tilth.report.tracking import tracking
from tilth.report.trained import trained

MOST_ROWS = 40  # of a table of sources: a crawl may have thousands


def write_report(run_folder: Path | str) -> Path:
    """Write `RUN/report.html` from the files of the run and return its path.

    Stages may be missing or unfinished: the page shows what there is. Raises BadInput if the folder holds no run.
    """
    run = read_run(run_folder)
    path = run.folder / "report.html"
    write_bytes(path, render(run).encode("utf-8", errors="replace"))
    return path


def render(run: Run, written: datetime | None = None) -> str:
    """The page as HTML text."""
    train, held_out = run.metrics()
    scores, sources = read_scores(run, held_out), read_sources(run)
    sections: dict[str, Any] = {
        "headline": headline(run, scores, train),
        "scores": scores_section(scores),
        "curves": curves(train, held_out, scores),
        "trained": trained(run),
        "advice": advice(run),
        "tracking": tracking(run),
        "training_data": training_data(sources),
        "choosing": choosing(run),
        "data": data(run),
        "samples": samples(run),
        "cost": cost(run, train),
        "survival": survival(run),
        "facts": facts(run),
    }
    moment = (written or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
    return environment().get_template("run.html.j2").render(
        run=run, written=moment, tilth_version=tilth.__version__, most_rows=MOST_ROWS, **sections)
