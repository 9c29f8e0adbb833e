"""lm-evaluation-harness with either backend on one exported model: its own `hf`, or Tilth's.

The job: {"model": exported folder, "tilth": model folder, "tasks": folder of task files, "length", "batch"}. A request
{"side": "hf" or "tilth", "tasks": [...], "limit"} is answered with {"seconds" of CPU, "accuracy": {task: value},
"items": {task: [...]}}. Models are loaded before the first request, the harness's own work is timed on both sides.
"""

import json
import sys
import time

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    backends = {"hf": theirs(job), "tilth": ours(job)}
    manager = TaskManager(include_path=job["tasks"], include_defaults=False)
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.process_time()
        found = simple_evaluate(model=backends[asked["side"]], tasks=asked["tasks"], limit=asked["limit"],
                                task_manager=manager, bootstrap_iters=0)
        seconds = time.process_time() - start
        print(json.dumps({
            "seconds": seconds, "accuracy": {task: found["results"][task]["acc,none"] for task in asked["tasks"]},
            "items": {task: [one["acc"] for one in sorted(found["samples"][task], key=lambda one: one["doc_id"])]
                      for task in asked["tasks"]}}), file=answers, flush=True)


def theirs(job):
    return HFLM(pretrained=job["model"], device="cpu", dtype="float32", max_length=job["length"],
                batch_size=job["batch"])


def ours(job):
    from tilth.evaluate.harness import harness_model
    from tilth.evaluate.likelihood import Likelihood
    from tilth.stages.model_folder import load_model
    model, tokenizer = load_model(job["tilth"])
    return harness_model(Likelihood(model, length=job["length"]), tokenizer)


if __name__ == "__main__":
    main()
