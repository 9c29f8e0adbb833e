"""The stage that writes a folder for `transformers`, with a model card."""

from pathlib import Path
from typing import Any, Literal

import tilth
from tilth.curate.licences import spdx
from tilth.models import export_llama, model_card
from tilth.precision.linear import expand
from tilth.recipe.console import say
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json, write_bytes
from tilth.stages.export_spqr import export_spqr
from tilth.stages.model_folder import find_model, load_model
from tilth.stages.stage import Context, Stage


class ExportStage(Stage):
    """Llama and Mixtral shapes exactly; anything else is refused by the name of the field that differs."""

    kind: str = "export"
    model: str = "pretrain"
    evaluation: str | None = "evaluate"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def reads(self) -> list[str]:
        return [self.model, *([self.evaluation] if self.evaluation else [])]

    def run(self, context: Context) -> dict[str, Any]:
        folder = context.folder / "model"
        scores = read_json(context.input(self.evaluation) / "results.json") if self.evaluation else None
        export(context.input(self.model), folder, self.dtype, scores, context.run.name)
        say(f"  transformers loads {folder}")
        return {"folder": str(folder.relative_to(context.run)), "dtype": self.dtype}


def export(model_path: Path, folder: Path, dtype: str = "float32", scores: dict[str, Any] | None = None,
           name: str | None = None, layout: str = "llama") -> None:
    """Write `folder` for `transformers` from a model of Tilth's, with a card of what is known about it.

    layout: llama, where a compressed model is written as the plain weights that it decodes to, or spqr
    (`tilth.stages.export_spqr`), which takes a model that SpQR compressed.
    """
    source = find_model(model_path)
    model, tokenizer = load_model(source)
    if layout == "spqr":
        export_spqr(model, folder, source / "tokenizer.json", tokenizer.end_of_text_token)
    elif layout == "llama":
        export_llama(expand(model), folder, tokenizer_json_path=source / "tokenizer.json",
                     end_of_text=tokenizer.end_of_text_token, dtype=dtype)
    else:
        raise BadInput(f"--layout is '{layout}'; choose llama or spqr.")
    stage = source.parent
    known = read_json(stage / "manifest.json") if (stage / "manifest.json").exists() else {"summary": {}, "fields": {}}
    summary = known["summary"] or {}
    fields = {key: known["fields"][key] for key in ("optimizer", "schedule", "length", "batch_tokens", "budget")
              if key in known["fields"]}
    training = {key: summary[key] for key in ("tokens", "steps", "epochs", "flops", "seconds", "precision")
                if key in summary}
    sources = _sources(stage, known)
    licenses = [name for one in sources for name in str(one["license"] or "unknown").split(", ")]
    card = model_card(name=name or folder.name, model=model.config.model_dump(mode="json"),
                      parameters=model.config.parameters(), active=model.config.parameters(active=True),
                      sources=sources, license=sorted({spdx(name) or name for name in licenses}), training=training,
                      recipe=fields, scores=scores or {}, version=tilth.__version__)
    write_bytes(folder / "README.md", card.encode())


def _sources(stage: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The sources of the training text with their licences, from the pretrain stage's summary, and whom their
    documents name, from the report of the pool that it read."""
    sources = (manifest["summary"] or {}).get("sources", {})
    report = stage.parent / str(manifest["fields"].get("input", "")) / "report.json"
    credits: dict[str, list[str]] = {}
    for one in read_json(report).get("sources", []) if report.is_file() else []:
        credits.setdefault(one["source"], []).extend(one.get("attributions", []))
    return [{"source": name, "license": entry["license"], "tokens": entry["tokens"],
             "attributions": list(dict.fromkeys(credits.get(name, [])))} for name, entry in sources.items()]
