"""Evaluation: agreement with lm-evaluation-harness and speed beside it, the same number twice, and forecasts that hold.

    TILTH_DATA=FOLDER python benchmarks/evaluation.py [--only few_shot_choice|repeat|forecast] [--questions 60]
        [--rounds 3] [--shots 5]

few_shot_choice: Tilth's backend in the harness against the harness's own `hf`, on one exported model. Five
multiple-choice sets of TILTH_DATA/eval, as task files of the harness over local JSON, with few-shot examples. The
model is a Llama-family transformer with random weights (its answers are as good as chance, its nearly equal choices
the hardest case for agreement), tokenized by a BPE learnt on the questions. Both backends run in one process of an
environment of its own (below TILTH_BENCH_ENVS), with one thread, the harness's own work counted on both sides.
`accuracy` must be identical, question by question, with the shared cache on; CPU-seconds are compared in paired turns.
repeat: the same sets as tasks of Tilth on the same model, twice, in another batch size, without the shared cache and by
two processes, in float32. forecast: the protocol of evidence/fine-line (late scores of published runs from the first
30 % of their tokens, one model size left out), beside the last value and a power law of the curve.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tilth.data.tokenizer import BpeTokenizer
from tilth.evaluate import EvaluateConfig, FewShot
from tilth.evaluate.evaluate import measure as measure_model
from tilth.evaluate.rows import read_rows
from tilth.evaluate.tasks import MultipleChoice
from tilth.models import TransformerConfig
from tilth.recipe.errors import BadInput
from tilth.stages.export import export
from tilth.stages.model_folder import load_model, save_model
from tilth.trial.bench import Claim, measure, run_sections, versions
from tilth.trial.peers import Peer, PeerMissing, environment

HERE = Path(__file__).resolve().parent
PEER = "lm-eval 0.4.13 (hf)"
REQUIREMENTS = ("lm-eval==0.4.13", "torch==2.13.0", "transformers==5.24.0", "accelerate", "numpy==2.4.6", "datasets",
                "safetensors", "tokenizers", "pyarrow", "polars", "pydantic", "fsspec", "PyYAML", "rich", "typer",
                "jinja2")
SETS = ("arc_easy", "openbookqa", "copa", "piqa", "commonsenseqa")
LENGTH, BATCH = 1024, 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--environments", type=Path, help="where the peer's environment is kept")
    sections = {"few_shot_choice": few_shot_choice, "repeat": repeat, "forecast": forecast}
    return run_sections("evaluation", sections, parser,
                        lambda: versions("transformers") | {"lm-eval": "0.4.13"}, HERE)


def few_shot_choice(arguments: argparse.Namespace) -> list[Claim]:
    names = ("evaluation.same_answers", "evaluation.cpu_time_ratio")
    wanted = (">= 1", "<= 0.5")
    units = ("share of questions", "x")
    try:
        python = environment("lm-eval", REQUIREMENTS, arguments.environments)
    except PeerMissing as error:
        return [Claim(name, None, unit, limit, PEER, str(error))
                for name, unit, limit in zip(names, units, wanted, strict=True)]
    with tempfile.TemporaryDirectory(prefix="tilth-bench-") as place:
        job = prepare(Path(place), arguments.questions, arguments.shots)
        variables = {"PYTHONPATH": str(HERE.parent / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
                     "TOKENIZERS_PARALLELISM": "false", "HF_HOME": place}
        with Peer(python, HERE / "peers" / "lm_eval_backends.py", job, variables) as peer:
            return _compare(peer, arguments)


def _compare(peer: Peer, arguments: argparse.Namespace) -> list[Claim]:
    found: dict[str, dict[str, Any]] = {}

    def turn(side: str) -> float:
        answer = peer.ask({"side": side, "tasks": [f"local_{name}" for name in SETS], "limit": arguments.questions})
        found[side] = answer
        return answer["seconds"]

    paired = measure(lambda: turn("tilth"), lambda: turn("hf"), arguments.rounds)
    same = [a == b for task in found["hf"]["items"]
            for a, b in zip(found["tilth"]["items"][task], found["hf"]["items"][task], strict=True)]
    accuracies = found["tilth"]["accuracy"] == found["hf"]["accuracy"]
    detail = ", ".join(f"{task.removeprefix('local_')} {value:.3f}" for task, value in found["hf"]["accuracy"].items())
    return [
        Claim("evaluation.same_answers", float(np.mean(same)), "share of questions", ">= 1", PEER,
              f"{len(same)} questions of {len(SETS)} tasks, {arguments.shots} shots, shared cache on; accuracies "
              f"{'identical' if accuracies else 'NOT identical'}: {detail}"),
        Claim("evaluation.cpu_time_ratio", paired.ratio, "x", "<= 0.5", PEER, paired.text("CPU-seconds"))]


def repeat(arguments: argparse.Namespace) -> list[Claim]:
    """The largest relative difference of any metric between ways to compute the same thing, in float32."""
    with tempfile.TemporaryDirectory(prefix="tilth-bench-") as folder:
        place = Path(folder)
        prepare(place, arguments.questions, arguments.shots)
        model, tokenizer = load_model(place / "model")
        tasks = [MultipleChoice(name=name, data=str(place / f"{name}-asked.jsonl"), after="\nAnswer:", few_shot=FewShot(
            count=arguments.shots, source=str(place / f"{name}-shots.jsonl"))) for name in SETS]

        def results(workers: int = 1, **fields: Any) -> dict[str, Any]:
            config = EvaluateConfig(tasks=tasks, rivals=False, **fields)
            return measure_model(model, tokenizer, length=LENGTH, config=config, quiet=True, workers=workers).results

        first = results()
        ways = {"twice": results(), "another batch size": results(batch_tokens=1500),
                "without the shared cache": results(share=False), "two processes": results(workers=2),
                "another batch size without it": results(share=False, batch_tokens=1500)}
    gaps = {name: max(abs(one["value"] - first[task][metric]["value"]) / max(abs(first[task][metric]["value"]), 1e-12)
                      for task, metrics in found.items() for metric, one in metrics.items())
            for name, found in ways.items()}
    what = f"largest of all metrics of {len(SETS)} tasks, {arguments.questions} questions each, {arguments.shots} shots"
    return [Claim(f"evaluation.repeat_{name.replace(' ', '_')}", gap, "relative difference", "<= 1e-6", "itself", what)
            for name, gap in gaps.items()]


def forecast(arguments: argparse.Namespace) -> list[Claim]:
    """Recomputes what evidence/fine-line promises."""
    folder = os.environ.get("TILTH_DATA")
    if not folder:
        raise BadInput("Set TILTH_DATA to the folder that holds scaling/pythia_checkpoint_evals.csv.")
    sys.path.insert(0, str(HERE.parent / "evidence" / "fine-line"))
    from run import SIZES, VERDICT, Experiment, difference, read_curves, summary
    curves = read_curves(Path(folder) / "scaling" / "pythia_checkpoint_evals.csv")
    table = Experiment(curves).table(VERDICT, list(SIZES))
    found = {name: one["all"] for name, one in summary(table).items()}
    own = found["forecast"]
    claims = []
    for name in ("last value", "power law"):
        gap, (low, high) = difference(table["forecast"], table[name])
        claims.append(Claim(
            f"evaluation.forecast_against_{name.replace(' ', '_')}", own["winkler"] / found[name]["winkler"], "x",
            "< 1", name, f"interval (Winkler) scores {own['winkler']:.4f} and {found[name]['winkler']:.4f}, difference "
            f"{gap:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}; {own['forecasts']} forecasts of sizes left out"))
    by_size = ", ".join(f"{size} {one['coverage']:.0%}" for size, one in summary(table)["forecast"].items()
                        if size != "all")
    return [*claims, *(Claim(f"evaluation.forecast_coverage_{name}", own["coverage"], "share of 80 % intervals", wanted,
                             None, f"by size: {by_size}") for name, wanted in (("floor", ">= 0.7"),
                                                                              ("ceiling", "<= 0.9")))]


def prepare(place: Path, questions: int, shots: int) -> dict[str, Any]:
    """Model, exported model and task files in `place`; the peer's job."""
    folder = os.environ.get("TILTH_DATA")
    if not folder:
        raise BadInput("Set TILTH_DATA to the folder that holds eval/arc_easy.jsonl.zst and the other sets.")
    texts = []
    (place / "tasks").mkdir()
    for name in SETS:
        rows = read_rows(str(Path(folder) / "eval" / f"{name}.jsonl.zst"))
        texts += [row["query"] for row in rows]
        for part, some in (("asked", rows[:questions]), ("shots", rows[questions : questions + 50])):
            (place / f"{name}-{part}.jsonl").write_text("".join(json.dumps(
                {"query": row["query"], "choices": row["choices"], "gold": row["gold"]}) + "\n" for row in some))
        (place / "tasks" / f"{name}.yaml").write_text(json.dumps({
            "task": f"local_{name}", "dataset_path": "json", "test_split": "asked", "fewshot_split": "shots",
            "dataset_kwargs": {"data_files": {part: str(place / f"{name}-{part}.jsonl")
                                              for part in ("asked", "shots")}},
            "doc_to_text": "{{query}}\nAnswer:", "doc_to_choice": "{{choices}}", "doc_to_target": "gold",
            "output_type": "multiple_choice", "num_fewshot": shots, "fewshot_config": {"sampler": "first_n"},
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}], "metadata": {"version": 1.0}}))
    tokenizer = BpeTokenizer(vocab_size=4096).build(texts)
    model = TransformerConfig(layers=6, width=384, heads=6, feed_forward=1024, context=LENGTH,
                              vocab_size=tokenizer.vocab_size).build().initialize(0)
    save_model(place / "model", model, tokenizer)
    export(place / "model", place / "exported", "float32")
    return {"model": str(place / "exported"), "tilth": str(place / "model"), "tasks": str(place / "tasks"),
            "length": LENGTH, "batch": BATCH}


if __name__ == "__main__":
    sys.exit(main())
