"""What the commands do: the rooms put together for one call from the command line."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tilth.recipe.console import say
from tilth.recipe.errors import BadInput
from tilth.recipe.files import write_bytes, write_json
from tilth.recipe.frame import parse
from tilth.stages.load import load_recipe
from tilth.stages.runner import run_recipe
from tilth.stages.stage import Context, Hardware, Recipe


def default_folder(recipe: Recipe) -> Path:
    return Path("runs") / recipe.name


def run_named(name: str, changes: Sequence[str], folder: Path | None, hardware: Hardware, new: bool, command: str,
              only: str | None = None) -> dict[str, Any]:
    """Run a recipe by name, whole or only its stages of kind `only` and what they read."""
    recipe = load_recipe(name, changes)
    if only is not None:
        recipe = up_to(recipe, only)
    folder = folder or default_folder(recipe)
    summaries = run_recipe(recipe, folder, hardware, new, command)
    say(f"report: {folder / 'report.html'}")
    return {"folder": str(folder), "stages": summaries}


def up_to(recipe: Recipe, kind: str) -> Recipe:
    """The recipe cut to its stages of `kind` and all that they read."""
    wanted = [name for name, stage in recipe.stages.items() if stage.kind == kind]
    if not wanted:
        raise BadInput(f"The recipe '{recipe.name}' has no stage of kind {kind}.")
    for name in wanted:
        wanted += [one for one in recipe.stages[name].reads() if one not in wanted]
    return recipe.model_copy(update={"stages": {name: stage for name, stage in recipe.stages.items()
                                                if name in wanted}})


def curate_inputs(inputs: Sequence[str], output: Path, rules: Path | None, workers: int,
                  engine: str = "local") -> dict[str, Any]:
    """The curate stage on its own."""
    from tilth.data.engines import engine_of
    from tilth.stages.curate import CurateStage
    fields = {} if rules is None else yaml.safe_load(rules.read_text(encoding="utf-8")) or {}
    fields["inputs"] = [{"kind": "stdlib"} if one == "stdlib" else {"kind": "auto", "path": one} for one in inputs]
    stage = parse(CurateStage, fields, "curate")
    summary = stage.run(Context(output.parent, output, hardware=Hardware(workers=workers, engine=engine_of(engine))))
    say(f"documents, attributes and report.json are in {output}")
    return summary


def train_classifier(labelled: Sequence[str], output: Path, label: str, positive: str | None,
                     training: Path | None) -> dict[str, Any]:
    """A classifier from labelled records; `training` is a YAML file of `Training`'s fields."""
    from tilth.curate.train_classifier import Training, train_files
    fields = {} if training is None else yaml.safe_load(training.read_text(encoding="utf-8")) or {}
    return train_files(labelled, output, parse(Training, {**fields, "label": label, "positive": positive}, "training"))


def tokenize_inputs(inputs: Sequence[Path], output: Path, tokenizer: Path | None, vocab_size: int,
                    unit_tokens: int) -> dict[str, Any]:
    """The tokenize stage on its own."""
    from tilth.data.tokenize import DocumentTexts, tokenize_documents
    from tilth.data.tokenizer import BpeTokenizer, FileTokenizer
    paths = [file for one in inputs for file in (sorted(one.glob("documents-*.parquet")) if one.is_dir() else [one])]
    missing = [path for path in paths if not path.exists()]
    if missing or not paths:
        raise BadInput(f"{(missing or list(inputs))[0]} holds no documents; give a folder that `tilth curate` wrote, "
                       f"or document .parquet files.")
    config = FileTokenizer(path=str(tokenizer)) if tokenizer else BpeTokenizer(vocab_size=vocab_size)
    built = config.build(DocumentTexts(paths))
    for folder in inputs:
        if (folder / "held_out.parquet").exists():
            tokenize_documents([folder / "held_out.parquet"], built, output / "held_out", unit_tokens)
    report = tokenize_documents(paths, built, output, unit_tokens, progress="tokenizing")
    say(f"{report['tokens']} tokens in {report['units']} units are in {output}")
    return {key: report[key] for key in ("tokens", "units", "vocab_size", "unit_tokens")}


def evaluate_model_on(path: Path, tasks: Sequence[str], data: Sequence[Path], output: Path | None, device: str,
                      limit: int | None = None, workers: int = 1, against: Path | None = None,
                      dtype: str = "float32") -> dict[str, Any]:
    """Score a model on text files (any input) and tasks (kinds, or task files), beside another model if one is named:
    the result then is `{"results", "other", "paired"}`."""
    from tilth.evaluate import EvaluateConfig
    from tilth.evaluate.paired import paired, rows
    from tilth.report import text_table
    from tilth.stages.evaluate import verdict
    if not data and not tasks:
        raise BadInput("Nothing to measure: name text with --data FILE, or tasks with --tasks A,B.")
    config = parse(EvaluateConfig, {"dtype": dtype}, "evaluate").model_copy(update={"tasks": named_tasks(tasks)})
    if limit:
        config.tasks = [task.model_copy(update={"limit": limit}) for task in config.tasks]
    texts = [text for one in data for text in read_texts(one)]
    found = _measured(path, config, texts, device, workers)
    for line in verdict(found.results):
        say(line)
    result: dict[str, Any] = found.results
    if against is not None:
        say(f"{against}, the same questions:")
        other = _measured(against, config, texts, device, workers)
        difference = paired(found, other)
        print(text_table(rows(difference), ["task", "metric", "difference", "95 % interval", "n"]))
        result = {"results": found.results, "other": other.results, "paired": difference}
    if output is not None:
        write_json(output, result)
        say(f"results: {output}")
    return result


def _measured(path: Path, config: Any, texts: list[str], device: str, workers: int) -> Any:
    """The Evaluation of the model in `path`."""
    from tilth.evaluate import measure
    from tilth.stages.model_folder import load_model
    from tilth.train.device import pick_device
    model, tokenizer = load_model(path)
    model.to(pick_device(device))
    with tempfile.TemporaryDirectory(prefix="tilth-") as folder:
        pool = tokenize_texts(texts, tokenizer, Path(folder)) if texts else None
        return measure(model, tokenizer, length=model.config.context, config=config, held_out=pool,
                       held_out_texts=texts or None, workers=workers)


def probe_geography(path: Path, fields: dict[str, Any], output: Path | None, device: str) -> dict[str, Any]:
    """What a model knows of places, as a table and a JSON file; `fields` are those of GeographyConfig."""
    from tilth.analyze.geography_probe import GeographyConfig, summary
    from tilth.evaluate import Likelihood, Scorer
    from tilth.report import text_table
    from tilth.stages.model_folder import load_model
    from tilth.train.device import pick_device
    config = parse(GeographyConfig, fields, "geography")
    model, tokenizer = load_model(path)
    model.to(pick_device(device))
    found = config.run(Scorer(Likelihood(model, length=model.config.context), tokenizer, quiet=True))
    print(text_table(summary(found), ["held out", "predictor", "r2", "over seeds", "r"]))
    if output is not None:
        write_json(output, found)
        say(f"results: {output}")
    return found


def named_tasks(tasks: Sequence[str]) -> list[Any]:
    """Tasks as the command line names them: task files by their path, shipped ones by name, all others by kind."""
    from tilth.evaluate import EvaluateConfig
    from tilth.evaluate.rows import shipped_tasks
    shipped = shipped_tasks()
    named = [{"kind": "file", "path": task} if task in shipped or task.endswith((".yaml", ".yml", ".json")) else task
             for task in tasks]
    return parse(EvaluateConfig, {"tasks": named}, "evaluate").tasks


def read_texts(path: Path) -> list[str]:
    """The texts of any input; BadInput where a record cannot be used."""
    from tilth.data.auto import AutoInput
    from tilth.data.records import Quarantine
    with Quarantine() as quarantine:
        batches = list(AutoInput(path=str(path), on_bad="error").read(quarantine))
    return [text for batch in batches for text in batch.column("text").to_pylist()]


def tokenize_texts(texts: Sequence[str], tokenizer: Any, folder: Path) -> Any:
    """The texts as a pool in `folder`."""
    import pyarrow.parquet as pq

    from tilth.data.pool import Pool
    from tilth.data.records import record_batch
    from tilth.data.tokenize import tokenize_documents
    records = [{"id": str(index), "text": text, "source": "data", "license": None, "attribution": None,
                "metadata": None} for index, text in enumerate(texts)]
    with pq.ParquetWriter(folder / "documents.parquet", record_batch(records).schema) as writer:  # type: ignore[arg-type]
        writer.write_batch(record_batch(records))  # type: ignore[arg-type]
    tokenize_documents([folder / "documents.parquet"], tokenizer, folder / "pool", unit_tokens=1024)
    return Pool.open(folder / "pool")


def stream_text(path: Path, prompt: str, tokens: int, temperature: float, top_k: int | None, top_p: float | None,
                seed: int, device: str) -> Iterator[str]:
    """Pieces of text as they are generated; a piece is held back while it ends inside a character."""
    from tilth.models import generate
    from tilth.stages.model_folder import load_model
    from tilth.train.device import pick_device
    model, tokenizer = load_model(path)
    model.to(pick_device(device))
    ids = [tokenizer.end_of_text, *tokenizer.encode(prompt).tolist()]
    written, so_far = "", []
    for token in generate(model, ids, max_tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                          stop=[tokenizer.end_of_text]):
        so_far.append(token)
        text = tokenizer.decode(so_far)
        if not text.endswith("\ufffd"):
            yield text[len(written):]
            written = text


def compare_folders(runs: Sequence[Path], html: Path | None) -> list[dict[str, Any]]:
    from tilth.report import compare_html, compare_runs, compare_text
    rows = compare_runs(list(runs))
    print(compare_text(rows))
    if html is not None:
        write_bytes(html, compare_html(rows).encode())
        say(f"page: {html}")
    return [{"group": row.group, "label": row.label, "values": list(row.values)} for row in rows]


def export_dolma(run: Path, output: Path) -> dict[str, int]:
    """Curated documents and attributes of a run, and its pool of tokens, as Dolma lays them out."""
    from tilth.data.dolma import write_documents, write_tokens
    from tilth.data.pool import Pool
    curated = sorted(path.parent for path in run.glob("*/documents-00000.parquet"))
    if len(curated) != 1:
        raise BadInput(f"{run} holds {len(curated)} curated folders; give a run with one.")
    if output.exists() and any(output.iterdir()):
        raise BadInput(f"{output} is not empty. Choose a folder that is not there yet.")
    written = write_documents(curated[0], output)
    for pool in sorted(path.parent.parent for path in run.glob("*/fields/fields.json")):
        (output / "tokens").mkdir(exist_ok=True)
        written |= write_tokens(Pool.open(pool), output / "tokens")
    say(f"{written['documents']} documents in {output}")
    return written


def trace_run(run: Path, steps: str, output: Path | None) -> dict[str, Any]:
    """Print (and write) the units that trained steps first:last."""
    from tilth.data.pool import Pool
    from tilth.data.trace import trace_steps
    from tilth.recipe.files import read_json
    stage = _pretrain_stage(run)
    first, last = _range(steps)
    manifest = read_json(stage / "manifest.json")
    decided = read_json(stage / "budget.json")
    rows, began, first_row = decided["rows"], decided.get("first_step", 0), decided.get("first_row", 0)
    if first < began:
        raise BadInput(f"{stage} began at step {began}, branching from the stage "
                       f"{manifest['fields']['branch_from']['stage']}; trace earlier steps there.")
    pool = Pool.open(stage.parent / manifest["fields"]["input"])
    found = trace_steps(stage, pool, first_row + (first - began) * rows, first_row + (last - began) * rows)
    found = found.with_columns(step=began + (found["row"] - first_row) // rows)
    if output is not None:
        write_bytes(output, _parquet(found))
        say(f"{len(found)} pieces of {found['record_id'].n_unique()} documents: {output}")
    else:
        _print_trace(found)
    return {"pieces": len(found), "documents": found["record_id"].n_unique(), "tokens": int(found["tokens"].sum())}


def _parquet(frame: Any) -> bytes:
    import io
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _print_trace(found: Any) -> None:
    from tilth.report import text_table
    rows = [[str(row[key]) for key in ("step", "record_id", "source", "license", "start", "end", "tokens")]
            for row in found.head(200).to_dicts()]
    print(text_table(rows, ["step", "document", "source", "licence", "from", "to", "tokens"]))
    if len(found) > 200:
        print(f"... and {len(found) - 200} more; write all with --output FILE.parquet", file=sys.stderr)


def _pretrain_stage(run: Path) -> Path:
    stages = [run] if (run / "drawn").is_dir() else sorted(path.parent for path in run.glob("*/drawn"))
    if not stages:
        raise BadInput(f"{run} holds no pretrain stage that has drawn anything yet (no drawn/ folder).")
    if len(stages) > 1:
        raise BadInput(f"{run} has several pretrain stages: name one of {', '.join(map(str, stages))}.")
    return stages[0]


def _range(steps: str) -> tuple[int, int]:
    first, colon, last = steps.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise BadInput(f"--steps is '{steps}'; give first:last with first below last, such as 800:900.")
    return int(first), int(last)
