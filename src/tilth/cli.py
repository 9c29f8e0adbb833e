"""The command line: commands and their options, no logic. Heavy imports wait until a command needs them."""

import json
import shlex
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from tilth.recipe.console import say
from tilth.recipe.errors import BadInput, Interrupted, RunFailed

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Tilth: raw data to a pretrained, measured and exported model, on one road.")

analyze = typer.Typer(add_completion=False, no_args_is_help=True, help="Look inside models and recipes.")
app.add_typer(analyze, name="analyze")
classifier = typer.Typer(add_completion=False, no_args_is_help=True, help="Classifiers of text, for curation.")
app.add_typer(classifier, name="classifier")
bench = typer.Typer(add_completion=False, no_args_is_help=True, help="Measure how fast things are here.")
app.add_typer(bench, name="bench")

RecipeName = Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a .py or .yaml recipe.")]
Changes = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, such as "
                                                     "pretrain.optimizer.lr=1e-3.")]
Folder = Annotated[Path | None, typer.Option("--folder", "-f", help="Folder of the run (default runs/RECIPE).")]
Json = Annotated[bool, typer.Option("--json", help="Print a machine-readable last line.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes for curation and evaluation.")]
MicroRows = Annotated[int | None, typer.Option(min=1, help="Rows of one forward pass (default: the most that fit).")]
Engine = Annotated[str, typer.Option(help="Where curation runs: local, or ray (a cluster, by RAY_ADDRESS).")]
Compile = Annotated[bool, typer.Option(help="Compile the blocks of the model (needs a C++ compiler).")]
Shard = Annotated[bool, typer.Option("--shard", help="Under torchrun: spread weights, gradients and moments over the "
                                                     "processes (FSDP2), instead of a whole copy in each.")]
Replicas = Annotated[int, typer.Option(min=1, help="With --shard: so many whole copies, each over a part of the "
                                                   "processes (hybrid sharding).")]
Tensor = Annotated[int, typer.Option(min=1, help="Under torchrun: processes that share the matrices of each block.")]
ContextWays = Annotated[int, typer.Option("--context", min=1, help="Under torchrun: processes that share the positions "
                                          "of each row, for long rows.")]
RememberWhat = Annotated[str, typer.Option(help="What blocks keep for the backward pass: all, products (of matrices), "
                                                "inputs. Less is less memory and more computation.")]
Model = Annotated[Path, typer.Argument(help="A run, a model folder of Tilth, or a Llama-family folder.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")]


def _hardware(device: str = "auto", micro_rows: int | None = None, workers: int = 1, engine: str = "local",
              **parallel: Any) -> Any:
    from tilth.data.engines import engine_of
    from tilth.stages import Hardware
    from tilth.train.parallel import settings_of
    return Hardware(device, micro_rows, workers, engine_of(engine), settings_of(**parallel))


def _finish(as_json: bool, result: Any) -> None:
    if as_json:
        print(json.dumps(result, ensure_ascii=False))


def _command() -> str:
    return shlex.join(["tilth", *sys.argv[1:]])


@app.command()
def run(recipe: RecipeName, changes: Changes = None, folder: Folder = None, device: Device = "auto",
        micro_rows: MicroRows = None, workers: Workers = 1, compile: Compile = False, shard: Shard = False,
        replicas: Replicas = 1, tensor: Tensor = 1, context: ContextWays = 1, remember: RememberWhat = "all",
        engine: Engine = "local",
        new: Annotated[bool, typer.Option("--new", help="Remove an earlier run in the folder first.")] = False,
        as_json: Json = False) -> None:
    """The whole road of a recipe; interrupted, the same command goes on where it stopped."""
    from tilth.stages.commands import run_named
    hardware = _hardware(device, micro_rows, workers, engine, compile=compile, shard=shard, replicas=replicas,
                         tensor=tensor, context=context, remember=remember)
    _finish(as_json, run_named(recipe, changes or [], folder, hardware, new, _command()))


@app.command()
def pretrain(recipe: RecipeName, changes: Changes = None, folder: Folder = None, device: Device = "auto",
             micro_rows: MicroRows = None, workers: Workers = 1, compile: Compile = False, shard: Shard = False,
             replicas: Replicas = 1, tensor: Tensor = 1, context: ContextWays = 1, remember: RememberWhat = "all",
             as_json: Json = False) -> None:
    """Only the pretrain stages of a recipe, and what they read."""
    from tilth.stages.commands import run_named
    hardware = _hardware(device, micro_rows, workers, compile=compile, shard=shard, replicas=replicas, tensor=tensor,
                         context=context, remember=remember)
    _finish(as_json, run_named(recipe, changes or [], folder, hardware, False, _command(), only="pretrain"))


@bench.command("train")
def bench_train(recipe: RecipeName, changes: Changes = None, folder: Folder = None, device: Device = "auto",
                micro_rows: MicroRows = None, compile: Compile = False, remember: RememberWhat = "all",
                steps: Annotated[int, typer.Option(min=1, help="Steps of each measurement.")] = 20,
                as_json: Json = False) -> None:
    """Tokens a second, utilisation, memory against its floor, and where a training step's time goes."""
    from tilth.trial.bench_training import bench_recipe
    hardware = _hardware(device, micro_rows, compile=compile, remember=remember)
    _finish(as_json, bench_recipe(recipe, changes or [], folder, hardware, steps))


@app.command()
def plan(recipe: RecipeName, changes: Changes = None, folder: Folder = None, device: Device = "auto",
         micro_rows: MicroRows = None, as_json: Json = False) -> None:
    """Before spending: parameters, tokens, FLOPs, memory, and time from a short measured probe."""
    from tilth.stages.commands import default_folder
    from tilth.stages.load import load_recipe
    from tilth.stages.plan import plan_recipe, plan_text
    loaded = load_recipe(recipe, changes or [])
    plans = plan_recipe(loaded, folder or default_folder(loaded), _hardware(device, micro_rows))
    asked = shlex.join([recipe, *(changes or [])])
    print("\n".join(plan_text({**one, "recipe": asked}) for one in plans))
    _finish(as_json, plans)


@app.command()
def curate(inputs: Annotated[list[str], typer.Argument(help="Files, folders or globs; 'stdlib' for this Python's "
                                                            "library.")],
           output: Output, rules: Annotated[Path | None, typer.Option(help="YAML with the fields of a curate stage "
                                                                      "(rules, attributes, held_out ...).")] = None,
           workers: Workers = 1, engine: Engine = "local", as_json: Json = False) -> None:
    """Raw inputs to documents with attributes, a held-out part, and a report of every rule."""
    from tilth.stages.commands import curate_inputs
    _finish(as_json, curate_inputs(inputs, output, rules, workers, engine))


@classifier.command("train")
def classifier_train(labelled: Annotated[list[str], typer.Argument(help="Labelled records: files, folders or globs.")],
                     output: Output,
                     label: Annotated[str, typer.Option(help="Where the label stands: a column, or metadata.KEY.")] =
                     "metadata.label",
                     positive: Annotated[str | None, typer.Option(help="The label whose probability is wanted.")] =
                     None,
                     training: Annotated[Path | None, typer.Option(help="YAML with features (unit, smallest, order, "
                                                                        "bits), penalty, held_out, seed.")] = None,
                     as_json: Json = False) -> None:
    """A linear n-gram classifier from labelled text, and how it does on held-out text."""
    from tilth.stages.commands import train_classifier
    _finish(as_json, train_classifier(labelled, output, label, positive, training))


@app.command()
def tokenize(inputs: Annotated[list[Path], typer.Argument(help="Curated folders or document .parquet files.")],
             output: Output, tokenizer: Annotated[Path | None, typer.Option(help="An existing tokenizer.json.")] = None,
             vocab_size: Annotated[int, typer.Option(help="Of a new byte-level BPE.")] = 8192,
             unit_tokens: Annotated[int, typer.Option(help="Longest unit, in tokens.")] = 1024,
             as_json: Json = False) -> None:
    """Documents to a pool of token units, with a tokenizer trained on them or one that exists."""
    from tilth.stages.commands import tokenize_inputs
    _finish(as_json, tokenize_inputs(inputs, output, tokenizer, vocab_size, unit_tokens))


@app.command()
def evaluate(model: Model, tasks: Annotated[str, typer.Option(help="Task files or kinds, comma-separated.")] = "",
             data: Annotated[list[Path] | None, typer.Option(help="Text to score as bits per byte.")] = None,
             output: Annotated[Path | None, typer.Option("--output", "-o", help="Write results.json here.")] = None,
             limit: Annotated[int | None, typer.Option(min=1, help="Questions a task, at most.")] = None,
             dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
             against: Annotated[Path | None, typer.Option(help="Another model: paired differences on the same "
                                                          "questions.")] = None,
             workers: Workers = 1, device: Device = "auto", as_json: Json = False) -> None:
    """Bits per byte of text beside compressors, and tasks by log-likelihood, with standard errors."""
    from tilth.stages.commands import evaluate_model_on
    _finish(as_json, evaluate_model_on(model, [task for task in tasks.split(",") if task], data or [], output, device,
                                       limit, workers, against, dtype))


@app.command()
def corpus(run: Annotated[Path, typer.Argument(help="A run's folder.")],
           output: Annotated[Path | None, typer.Option("--output", "-o", help="The page (default RUN/corpus.html).")] =
           None, as_json: Json = False) -> None:
    """A page about the curated corpus: every attribute before and after the rules, funnel, sources, duplicates."""
    from tilth.report.corpus import write_corpus_page
    path = write_corpus_page(run, output)
    say(f"page: {path}")
    _finish(as_json, {"page": str(path)})


@app.command()
def dolma(run: Annotated[Path, typer.Argument(help="A run's folder.")], output: Output, as_json: Json = False) -> None:
    """A run's corpus in Dolma's layout: documents, attributes beside them, token files."""
    from tilth.stages.commands import export_dolma
    _finish(as_json, export_dolma(run, output))


@app.command()
def track(run: Annotated[Path, typer.Argument(help="A run's folder, finished or still training.")],
          tasks: Annotated[str, typer.Option(help="Tasks in place of the recipe's, comma-separated.")] = "",
          history: Annotated[list[Path] | None, typer.Option(help="Finished, tracked runs to forecast from.")] = None,
          watch: Annotated[bool, typer.Option("--watch", help="Go on until training has finished.")] = False,
          every: Annotated[float, typer.Option(min=1, help="Seconds between looks at the folder.")] = 30.0,
          limit: Annotated[int | None, typer.Option(min=1, help="Questions a task, at most.")] = None,
          workers: Workers = 1, device: Device = "auto", as_json: Json = False) -> None:
    """Evaluate a run's checkpoints, draw its abilities over tokens, and forecast its end."""
    from tilth.stages.track import track_run
    _finish(as_json, track_run(run, [task for task in tasks.split(",") if task], history or [], watch, every, limit,
                               device, workers))


@app.command()
def generate(model: Model, prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "",
             tokens: Annotated[int, typer.Option(min=1, help="At most so many.")] = 200,
             temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest.")] = 0.8,
             top_k: Annotated[int | None, typer.Option(min=1)] = None,
             top_p: Annotated[float | None, typer.Option(help="Smallest set of tokens of this probability.")] = None,
             seed: int = 0, device: Device = "auto") -> None:
    """Stream text from a model."""
    from tilth.stages.commands import stream_text
    print(prompt, end="", flush=True)
    for piece in stream_text(model, prompt, tokens, temperature, top_k, top_p, seed, device):
        print(piece, end="", flush=True)
    print()


@app.command()
def compress(model: Model, output: Output,
             changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields of the method, "
                                                                 "such as tau=0.5 or group=32.")] = None,
             bits: Annotated[int, typer.Option(min=2, max=8, help="Of a weight's code.")] = 4,
             method: Annotated[str, typer.Option(help="spqr, gptq or rtn (rounding to nearest).")] = "spqr",
             calibration: Annotated[list[Path] | None, typer.Option(help="Text to calibrate on (default: what the run "
                                                                    "was trained on).")] = None,
             data: Annotated[list[Path] | None, typer.Option(help="Text to score before and after (default: the run's "
                                                             "held-out text).")] = None,
             tasks: Annotated[str, typer.Option(help="Tasks before and after, comma-separated.")] = "",
             rows: Annotated[int, typer.Option(min=1, help="Rows of calibration text.")] = 128,
             length: Annotated[int | None, typer.Option(min=2, help="Their tokens (default: as in training, or else "
                                                        "at most 2048).")] = None,
             rest: Annotated[str, typer.Option(help="Type of what is not compressed: float16, bfloat16, float32.")] =
             "float16", seed: int = 0, device: Device = "auto", as_json: Json = False) -> None:
    """Weights in 3 or 4 bits; what it takes, and scores before and after."""
    from tilth.stages.compress import compress_folder, method_of
    report = compress_folder(model, output, method_of(method, bits, changes or []), calibration or [], data or [],
                             [task for task in tasks.split(",") if task], rows, length, rest, seed, device)
    _finish(as_json, report)


@app.command()
def export(model: Model, output: Output, dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] =
           "float32", layout: Annotated[str, typer.Option(help="llama, or spqr: a compressed model (3 bits, groups of "
                                                               "16 x 16) as transformers' SpQR loads it.")] = "llama",
           as_json: Json = False) -> None:
    """Write a folder that `transformers` loads, with a model card."""
    from tilth.stages.export import export as write
    write(model, output, dtype, layout=layout)
    print(f"transformers loads {output}", file=sys.stderr)
    _finish(as_json, {"folder": str(output), "dtype": dtype})


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run's folder.")], as_json: Json = False) -> None:
    """Write a run's report.html again."""
    from tilth.report import write_report
    path = write_report(run)
    print(path, file=sys.stderr)
    _finish(as_json, {"report": str(path)})


@app.command()
def compare(runs: Annotated[list[Path], typer.Argument(help="Folders of two or more runs.")],
            html: Annotated[Path | None, typer.Option(help="Also write a page here.")] = None,
            as_json: Json = False) -> None:
    """Runs side by side: scores, tokens, FLOPs, seconds, and where their recipes differ."""
    from tilth.stages.commands import compare_folders
    _finish(as_json, compare_folders(runs, html))


@app.command()
def losses(models: Annotated[list[Path], typer.Argument(help="Runs or model folders; several for a ladder.")],
           pool: Annotated[Path, typer.Option(help="A tokenize stage's folder.")],
           output: Annotated[Path, typer.Option("--output", "-o", help="Parquet file to write.")],
           share: Annotated[float, typer.Option(min=0, max=1, help="Of the records, at random.")] = 1.0,
           seed: int = 0, device: Device = "auto", as_json: Json = False) -> None:
    """The loss of each unit of a pool under each model: what the selectors perplexity, scores and preselect read."""
    from tilth.stages.losses import write_losses
    _finish(as_json, write_losses(models, pool, output, share, seed, device))


@app.command()
def trial(recipes: Annotated[list[str], typer.Argument(metavar="RECIPE RECIPE... [KEY=VALUE]...", help="Recipes of "
                             "different names, the baseline first; changes apply to all.")],
          seeds: Annotated[int, typer.Option(min=1, help="Runs of each recipe; 5 or more for a verdict.")] = 5,
          flops: Annotated[float | None, typer.Option(help="Budget of a run (default: what the baseline's own budget "
                                                           "takes).")] = None,
          measure: Annotated[str, typer.Option(help="What is compared: held_out, or a task of code lengths.")] =
          "held_out", folder: Folder = None, device: Device = "auto", micro_rows: MicroRows = None,
          workers: Workers = 1, as_json: Json = False) -> None:
    """Recipes at equal FLOPs, choosing included, over equal seeds: one table with paired intervals, one plot."""
    from tilth.trial.trial import run_trial
    _finish(as_json, run_trial(recipes, seeds, folder, _hardware(device, micro_rows, workers), flops, _command(),
                              measure))


@app.command()
def sweep(recipe: RecipeName,
          changes: Annotated[list[str], typer.Argument(metavar="KEY=A,B,C...", help="Values to try; KEY=A: for all.")],
          seeds: Annotated[int, typer.Option(min=1, help="Runs of each cell.")] = 1, folder: Folder = None,
          device: Device = "auto", micro_rows: MicroRows = None, workers: Workers = 1, as_json: Json = False) -> None:
    """A small grid of a recipe, resumable cell by cell: a table, the best of each key, laws where sizes vary."""
    from tilth.trial.sweep import run_sweep
    _finish(as_json, run_sweep(recipe, changes, seeds, folder, _hardware(device, micro_rows, workers), _command()))


@analyze.command()
def stability(recipe: RecipeName, output: Output, changes: Changes = None,
              formats: Annotated[str, typer.Option(help="Comma-separated, the reference first: fp32, E8M3, or "
                                                        "E4M3fn/E5M2:scaled (forward/backward, options).")] =
              "fp32,E8M7,E8M5,E8M3,E5M7,E4M3fn/E5M2:scaled",
              rates: Annotated[str, typer.Option(help="Learning rates, comma-separated.")] = "1e-3,3e-3,1e-2,3e-2",
              seeds: Annotated[int, typer.Option(min=1, help="Runs of each cell.")] = 5,
              tolerance: Annotated[float, typer.Option(min=0, help="Loss, as a share of the reference's, that fewer "
                                                                   "bits may cost.")] = 0.01,
              device: Device = "auto", micro_rows: MicroRows = None, workers: Workers = 1,
              as_json: Json = False) -> None:
    """How many bits does this recipe need? Simulated formats x learning rates x seeds, resumable cell by cell."""
    from tilth.trial.stability import run_study
    _finish(as_json, run_study(recipe, changes or [], formats, rates, seeds, output, tolerance,
                               _hardware(device, micro_rows, workers), _command()))


@analyze.command()
def abilities(runs: Annotated[list[Path], typer.Argument(help="Runs that `tilth track` has measured.")],
              domain: Annotated[list[str] | None, typer.Option(help="NAME=TASK,TASK: which tasks belong together.")] =
              None, early: Annotated[float, typer.Option(min=0, max=1, help="Share of training that is early.")] = 0.3,
              as_json: Json = False) -> None:
    """Tracked runs side by side: what moves together, when abilities start, what early scores say, the loss law."""
    from tilth.stages.track import study_runs
    _finish(as_json, study_runs(runs, domain or [], early))


@analyze.command()
def geography(model: Model, data: Annotated[Path, typer.Option(help="CSV of cities: name, lat, lon, country, admin1, "
                                                                    "population, timezone.")],
              points: Annotated[int, typer.Option(min=50, help="Places asked about.")] = 3000,
              train: Annotated[int, typer.Option(min=20, help="Of them to learn from.")] = 1000,
              seeds: Annotated[int, typer.Option(min=1, help="Draws of places and splits.")] = 5,
              output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a JSON file.")] = None,
              device: Device = "auto", as_json: Json = False) -> None:
    """What does a model know of places? A linear probe beside boosted trees and neighbours that read no text."""
    from tilth.stages.commands import probe_geography
    _finish(as_json, probe_geography(model, {"data": str(data), "points": points, "train": train, "seeds": seeds},
                                     output, device))


@analyze.command()
def concepts(output: Output,
             captions: Annotated[list[str] | None, typer.Argument(help="Texts to count in: files, folders or globs.")] =
             None,
             names: Annotated[Path | None, typer.Option(help="Concepts: one a line, or a column `concept`.")] = None,
             images: Annotated[Path | None, typer.Option(help="Tags of images: Parquet with id, concept, score.")] =
             None,
             threshold: Annotated[float, typer.Option(help="A tag counts above this score.")] = 0.7,
             text_column: Annotated[str, typer.Option(help="Where the text of a record stands.")] = "text",
             id_column: Annotated[str, typer.Option(help="Where its id stands.")] = "id",
             lemmas: Annotated[str, typer.Option(help="rules (English plurals), none, or spacy.")] = "rules",
             counts: Annotated[Path | None, typer.Option(help="A table of counts made before, in place of texts.")] =
             None,
             performance: Annotated[Path | None, typer.Option(help="A table of concept, performance (or accuracy), "
                                                              "dataset.")] = None,
             count: Annotated[str | None, typer.Option(help="text, image or matched.")] = None,
             where: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE: rows of the tables to keep.")] = None,
             same: Annotated[list[str] | None, typer.Option(help="NAME=NAME: a concept in the scores and in the "
                                                            "counts.")] = None,
             zeros: Annotated[str, typer.Option(help="Counts of 0 in fits by concept: drop, or as_one.")] = "drop",
             skip_first: Annotated[int, typer.Option(min=0, help="First bins left out of the r of bin means.")] = 1,
             as_json: Json = False) -> None:
    """How often concepts occur in texts, images and both, and whether performance follows the counts."""
    from tilth.stages.concepts import pairs_of, study_concepts
    paths = {key: str(path) for key, path in (("names", names), ("images", images), ("counts", counts),
                                              ("performance", performance)) if path}
    _finish(as_json, study_concepts({
        **paths, "captions": captions or [], "threshold": threshold, "text_column": text_column,
        "id_column": id_column, "lemmas": {"kind": lemmas}, "count": count, "where": pairs_of(where or [], "--where"),
        "same": pairs_of(same or [], "--same"), "fit": {"zeros": zeros, "skip_first": skip_first}}, output))


@app.command()
def chaos(recipe: RecipeName, changes: Changes = None,
          kill: Annotated[str, typer.Option(help="Comma-separated: worker, node, nodes (two at once), all, hang, "
                                                 "storage, network.")] = "worker,node,storage,hang",
          times: Annotated[int, typer.Option(min=1, help="Faults, in as many runs as it takes.")] = 20,
          processes: Annotated[int, typer.Option(min=2, help="Workers.")] = 4,
          nodes: Annotated[int, typer.Option(help="Machines, made of network namespaces (root), that share the "
                                                  "workers; 0: groups of processes stand for machines.")] = 0,
          shard: Shard = False, folder: Folder = None, seed: int = 0, as_json: Json = False) -> None:
    """Train under torchrun, break things at random moments, prove that nothing came out differently."""
    from tilth.trial.chaos import run_chaos
    _finish(as_json, run_chaos(recipe, changes or [], kill, times, processes, folder, seed, shard, nodes))


@app.command()
def doctor(clean: Annotated[bool, typer.Option("--clean", help="Remove what no worker uses.")] = False,
           as_json: Json = False) -> None:
    """Snapshot managers on this machine, and what runs that crashed have left of them."""
    from tilth.stages.doctor import doctor as look
    _finish(as_json, look(clean))


@app.command()
def trace(run: Annotated[Path, typer.Argument(help="A run's folder, or its pretrain stage.")],
          steps: Annotated[str, typer.Option(help="First:last step, for example 800:900 (the last is not shown).")],
          output: Annotated[Path | None, typer.Option("--output", "-o", help="Write all of it as Parquet.")] = None,
          as_json: Json = False) -> None:
    """Which documents trained these steps."""
    from tilth.stages.commands import trace_run
    _finish(as_json, trace_run(run, steps, output))


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="One method: all that is known of it.")] = None,
            readme: Annotated[Path | None, typer.Option(help="Write the table into this README.")] = None) -> None:
    """Every published method that has evidence here, and what the evidence shows."""
    from tilth.report.methods import methods_text, update_readme
    if readme is not None:
        update_readme(readme)
    print(methods_text(name))


@app.command()
def choices(what: Annotated[str | None, typer.Argument(help="stage, rule, selector, optimizer ...")] = None) -> None:
    """Every kind that a recipe can name, with what it does."""
    from tilth.choices import list_choices
    print(list_choices(what))


def main() -> None:
    """The entry: errors of people become one paragraph; exit code 2 for bad input, 1 for a failed run."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app(standalone_mode=True)
    except (BadInput, RunFailed, Interrupted) as error:
        if debug:
            traceback.print_exc()
        word = "stopped" if isinstance(error, Interrupted) else "error"
        say(f"tilth: {word}: {error}")
        sys.exit(2 if isinstance(error, BadInput) else 1 if isinstance(error, RunFailed) else 130)
    except KeyboardInterrupt:
        say("tilth: stopped. What was finished is kept; run the same command again to go on.")
        sys.exit(130)
