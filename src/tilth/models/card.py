"""The model card: README.md of an exported model, with the front matter that model hubs read. Plain text from dicts."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Licence identifiers that the Hugging Face hub knows; every other licence is "other" there, and named beside it.
HUB_LICENSES = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-3.0",
                "cc-by-sa-4.0", "cc-by-nc-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "mpl-2.0", "odc-by", "unlicense"}


def model_card(*, name: str, model: Mapping[str, Any], parameters: int, active: int | None = None,
               sources: Sequence[Mapping[str, Any]], license: Sequence[str] = (), languages: Sequence[str] = (),
               training: Mapping[str, Any] | None = None, recipe: Mapping[str, Any] | None = None,
               scores: Mapping[str, Mapping[str, Any]] | None = None,
               limitations: Sequence[str] = (), version: str | None = None) -> str:
    """The card as Markdown.

    model: what describes the architecture (`TransformerConfig.model_dump()`); parameters: their number; active: the
    number of those that one token uses.
    sources: one mapping a source of the training data: `source`, `license`, and if known `documents`, `bytes`, and
    `attributions`, whom its documents ask to be named.
    license: of the weights; left out, the licences of the sources are listed. languages: ISO 639 codes.
    training: tokens, flops, seconds and whatever else should be told. recipe: a summary of what was set.
    scores: {task: {metric: {"value", "stderr", "n"}}}. limitations: sentences beside the standing ones.
    version: of the program that wrote it.
    """
    used = f" ({active:,} of them active for each token)" if active not in (None, parameters) else ""
    parts = [_front_matter(license or _licenses(sources), languages), f"# {_text(name)}",
             f"A language model of {parameters:,} parameters{used}, pretrained from scratch or continued with Tilth"
             f"{f' {version}' if version else ''}.",
             "## Model", _pairs(model), "## Data", _sources(sources), *_attribution(sources),
             "## Training", _pairs(training or {}),
             "### Recipe", _pairs(_flat(recipe or {})), "## Scores", _scores(scores or {}),
             "## Limitations", _list([*limitations, *STANDING])]
    return "\n\n".join(parts) + "\n"


MOST_NAMED = 100  # of a source, on the card

STANDING = (
    "The model repeats what its data says, errors and prejudices included, and states falsehoods fluently.",
    "It was not tuned to follow instructions or to refuse harmful ones; filter its output before showing it to people.",
    "Scores hold for the listed tasks and texts; nothing is promised about other languages, domains or uses.",
)


def _licenses(sources: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({str(source.get("license") or "unknown") for source in sources})


def _front_matter(licenses: Sequence[str], languages: Sequence[str]) -> str:
    """YAML by way of JSON strings, which are YAML strings whatever they hold."""
    known = list(dict.fromkeys(name.lower() if name.lower() in HUB_LICENSES else "other" for name in licenses))
    lines = ["---"]
    if languages:
        lines += ["language:", *(f"- {json.dumps(language)}" for language in languages)]
    if known:
        lines += ["license:", *(f"- {json.dumps(name)}" for name in known)]
    if "other" in known:
        lines.append(f"license_name: {json.dumps(', '.join(licenses))}")
    return "\n".join([*lines, "pipeline_tag: text-generation", "library_name: transformers", "tags:", "- tilth", "---"])


MARKS = {ord(mark): f"&#{ord(mark)};" for mark in "\\`*_[]<>|#&"}


def _text(value: Any) -> str:
    """One line of plain text: names come from data, so neither markup nor a table's bars may pass."""
    if isinstance(value, float):
        value = f"{value:.6g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:,}"
    return " ".join(str(value).split()).translate(MARKS)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _pairs(values: Mapping[str, Any]) -> str:
    known = [(key, value) for key, value in values.items() if value is not None]
    return _table(["what", "value"], known) if known else "Not recorded."


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {_text(item)}" for item in items)


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    if not sources:
        return "Not recorded."
    return _table(["source", "licence", "documents", "bytes"],
                  ([s.get("source", "unknown"), s.get("license") or "unknown", s.get("documents", ""),
                    s.get("bytes", "")] for s in sources))


def _attribution(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """A section of whom the data's licences ask to be named, if anybody."""
    lines = []
    for one in sources:
        named = list(one.get("attributions") or [])
        more = f"; and {len(named) - MOST_NAMED:,} more" if len(named) > MOST_NAMED else ""
        lines += [f"{one.get('source', 'unknown')}: {'; '.join(map(str, named[:MOST_NAMED]))}{more}"] if named else []
    return ["### Attribution", "The training text is the work of, or was passed on by:", _list(lines)] if lines else []


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [[task, metric, score.get("value", ""), score.get("stderr") or "", score.get("n") or ""]
            for task, metrics in scores.items() for metric, score in metrics.items() if isinstance(score, Mapping)]
    return _table(["task", "metric", "value", "standard error", "n"], rows) if rows else "None measured."


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, as the command line writes them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat
