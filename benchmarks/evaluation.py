"""Evaluation: Tilth's backend in lm-evaluation-harness against the harness's own `hf`, on one exported model.

    TILTH_DATA=FOLDER python benchmarks/evaluation.py [--questions 60] [--rounds 3] [--shots 5]

Five multiple-choice sets of TILTH_DATA/eval, as task files of the harness over local JSON, with few-shot examples. The
model is a Llama-family transformer with random weights (its answers are as good as chance, its nearly equal choices
the hardest case for agreement), tokenized by a BPE learnt on the questions. Both backends run in one process of an
environment of its own (below TILTH_BENCH_ENVS), with one thread, the harness's own work counted on both sides.
`accuracy` must be identical, question by question, with the shared cache on; CPU-seconds are compared in paired turns.
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
from tilth.evaluate.rows import read_rows
from tilth.models import TransformerConfig
from tilth.recipe.errors import BadInput
from tilth.stages.export import export
from tilth.stages.model_folder import save_model
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
    return run_sections("evaluation", {"few_shot_choice": few_shot_choice}, parser,
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
