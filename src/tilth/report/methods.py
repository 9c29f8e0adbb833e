"""The table of methods: every published technique with evidence, as its result file says, on equal footing."""

from pathlib import Path
from typing import Any

import tilth
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json
from tilth.recipe.frame import nearest
from tilth.report.tables import text_table

KEYS = ("method", "claim", "published", "baseline", "metric", "value", "baseline_value", "difference", "interval",
        "seeds", "budget", "verdict")
BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"


def evidence_folders() -> list[Path]:
    """Where evidence is looked up: the source tree, or what was installed with the package."""
    package = Path(tilth.__file__).parent
    return [folder for folder in (package.parents[1] / "evidence", package / "_evidence") if folder.is_dir()]


def read_evidence() -> list[dict[str, Any]]:
    """The results of all methods, by name; a result file holds one result, or a list of them. BadInput names a file
    that lacks a key."""
    found = []
    for folder in evidence_folders():
        for path in sorted(folder.glob("*/result.json")):
            content = read_json(path)
            for result in content if isinstance(content, list) else [content]:
                missing = [key for key in KEYS if key not in result]
                if missing:
                    raise BadInput(f"{path} lacks {', '.join(missing)}; a result of evidence has the keys "
                                   f"{', '.join(KEYS)}.")
                found.append({**result, "folder": path.parent.name})
        if found:
            break
    return found


def cells(result: dict[str, Any]) -> list[str]:
    """Method, metric, value against baseline, difference with interval, seeds, verdict."""
    interval = result["interval"]
    spread = f" [{_number(interval[0])}, {_number(interval[1])}]" if interval else ""
    return [result["method"], str(result["metric"]), _number(result["value"]),
            f"{_number(result['baseline_value'])} ({result['baseline']})",
            f"{_number(result['difference'])}{spread}", str(len(result["seeds"])), str(result["verdict"])]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-" if value is None else str(value)


HEADER = ["method", "metric", "value", "baseline", "difference [interval]", "seeds", "verdict"]


def methods_text(name: str | None = None) -> str:
    """The table for a terminal; with `name`, everything known of one method, its verdict page included."""
    results = read_evidence()
    if name is None:
        return text_table([cells(result) for result in results], HEADER) if results else "No method has evidence yet."
    chosen = [result for result in results if name in (result["method"], result["folder"])]
    if not chosen:
        known = [result["folder"] for result in results]
        raise BadInput(f"There is no evidence on '{name}'{nearest(name, known)} There is on: {', '.join(known)}.")
    page = next((folder / chosen[0]["folder"] / "README.md" for folder in evidence_folders()), None)
    lines = [f"{key}: {result[key]}" for result in chosen for key in KEYS]
    return "\n".join(lines) + ("\n\n" + page.read_text(encoding="utf-8") if page and page.exists() else "")


def methods_markdown() -> str:
    """The table for the README."""
    rows = [HEADER, ["---"] * len(HEADER), *[cells(result) for result in read_evidence()]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def update_readme(path: Path) -> bool:
    """Replace the table between the markers; True if it changed."""
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise BadInput(f"{path} has no place for the table: put {BEGIN} and {END} on lines of their own.")
    before, rest = text.split(BEGIN, 1)
    new = f"{before}{BEGIN}\n{methods_markdown()}\n{END}{rest.split(END, 1)[1]}"
    if new != text:
        path.write_text(new, encoding="utf-8")
    return new != text
