"""The template engine of the pages: escaping always on, figures that a run did not record shown as a dash."""

from pathlib import Path

from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup, escape

from tilth.report import formats

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> Environment:
    """Templates with escaping always on. A key that a run's file lacks is empty (a dash after any number filter)."""
    env = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=ChainableUndefined,
                      trim_blocks=True, lstrip_blocks=True)
    env.filters.update(count=formats.count, short=formats.short, size=formats.size, seconds=formats.seconds,
                       decimals=formats.decimals, significant=formats.significant, percent=formats.percent,
                       visible=formats.visible, breakable=breakable)
    return env


def breakable(name: str) -> Markup:
    """A name that may break over lines after each underscore, and is still copied as it is."""
    return Markup("_<wbr>").join(escape(part) for part in formats.visible(name).split("_"))
