"""The lm-evaluation-harness on a Tilth model, and its tasks as tasks of Tilth.

`lm_eval.simple_evaluate(model=harness_model(likelihood, tokenizer), tasks=...)` runs any of the harness's tasks on a
model in memory, in a training run too; a task of kind `lm_eval` does so by name, from a recipe or the command line.
Text is cut into tokens as the harness's own Hugging Face backend does it, so both give the same numbers on one model;
that format has no end-of-text token in front, unless `begin` is set.
"""

from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tilth.evaluate.generation import write_after
from tilth.evaluate.likelihood import Likelihood, Request
from tilth.evaluate.score import Scorer, TaskResult
from tilth.evaluate.tasks import Task
from tilth.recipe import BadInput

MISSING = "lm-evaluation-harness is not installed: pip install 'tilth[lm-eval]'."
NAMES = {"acc": "accuracy", "acc_norm": "accuracy_normalised", "exact_match": "exact_match"}


def harness_model(likelihood: Likelihood, tokenizer: Any, begin: bool = False, max_tokens: int = 256) -> Any:
    """An `lm_eval` LM that answers through `likelihood`; BadInput where the extra is not installed.

    begin: put the end-of-text token before every context, as in training; max_tokens: of an answer whose task names no
    length.
    """
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError as error:
        raise BadInput(MISSING) from error

    class TilthLM(TemplateLM):
        """The harness's requests as those of `Likelihood`, which shares what they have in common."""

        tokenizer_name = "tilth"

        @property
        def eot_token_id(self) -> int:
            return tokenizer.end_of_text

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            ids = tokenizer.encode_batch([string])[0].tolist()
            return [tokenizer.end_of_text, *ids] if begin and add_special_tokens is not False else ids

        def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
            scored = likelihood.score([_request(context, continuation, likelihood.length)
                                       for _, context, continuation in requests])
            return [(-float(one.nats.sum()), bool(one.top.all())) for one in scored]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            found = []
            for (text,) in (request.args for request in requests):
                windows = get_rolling_token_windows(
                    token_list=self.tok_encode(text, add_special_tokens=False), prefix_token=tokenizer.end_of_text,
                    max_seq_len=likelihood.length, context_len=1)
                pieces = self._loglikelihood_tokens([(None, *make_disjoint_window(one)) for one in windows])
                found.append(sum(value for value, _ in pieces))
            return found

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            asked = [request.args for request in requests]
            groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
            for number, (_, settings) in enumerate(asked):
                groups[_stops(settings, max_tokens, likelihood.length)].append(number)
            written = [""] * len(asked)
            for (until, tokens), numbers in groups.items():
                prompts = [np.array((self.tok_encode(asked[one][0]) or [tokenizer.end_of_text])[
                    -(likelihood.length - tokens):], np.int64) for one in numbers]
                for one, text in zip(numbers, write_after(likelihood, tokenizer, prompts, tokens, until), strict=True):
                    written[one] = text
            return written

    return TilthLM()


def _request(context: Sequence[int], continuation: Sequence[int], length: int) -> Request:
    """The last `length` + 1 tokens of both, as the harness cuts them."""
    kept = max(1, length + 1 - len(continuation))
    return Request(np.array(context[-kept:], np.int64), np.array(continuation, np.int64))


def _stops(settings: dict[str, Any], max_tokens: int, length: int) -> tuple[tuple[str, ...], int]:
    """Where an answer ends: its stop texts and its tokens; BadInput for sampled answers."""
    if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
        raise BadInput("The harness asks for sampled text; only greedy answers (do_sample: false) are the same twice.")
    until = settings.get("until") or []
    tokens = min(int(settings.get("max_gen_toks", max_tokens)), length - 1)
    return ((until,) if isinstance(until, str) else tuple(until)), tokens


class HarnessTask(Task):
    """A task of lm-evaluation-harness by its name; `folder`: task files to look in, in place of the harness's own."""

    kind: str = "lm_eval"
    name: str
    folder: str | None = None
    shots: int | None = Field(default=None, ge=0)
    begin: bool = False

    def ready(self, held_out_texts: Sequence[str] | None) -> Task:
        """Itself; BadInput before anything is measured where the extra is not installed."""
        if find_spec("lm_eval") is None:
            raise BadInput(MISSING)
        return self

    def files(self) -> list[str]:
        """Everything in `folder`: task files, and data that lies beside them."""
        return [] if self.folder is None else [str(path) for path in sorted(Path(self.folder).rglob("*"))
                                               if path.is_file() and "__pycache__" not in path.parts]

    def run(self, scorer: Scorer) -> TaskResult:
        model = harness_model(scorer.likelihood, scorer.tokenizer, self.begin)
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
        manager = TaskManager(include_path=self.folder, include_defaults=self.folder is None)
        found = simple_evaluate(model=model, tasks=[self.name], num_fewshot=self.shots, limit=self.limit,
                                task_manager=manager)
        return harness_result(found, self.name)


def harness_result(found: Any, task: str) -> TaskResult:
    """The metrics of one task under Tilth's names, with their version; items by question where the harness logs any."""
    results, samples = found["results"][task], found.get("samples", {}).get(task, [])
    version = found.get("versions", {}).get(task)
    metrics, items = {}, {}
    for key, value in results.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = results.get(f"{name}_stderr,{filtered}")
        metrics[NAMES.get(name, name)] = {"value": float(value), "n": len(samples) or None, "version": version,
                                          "stderr": error if isinstance(error, float) else None}
        if samples and isinstance(samples[0].get(name), int | float):
            items[NAMES.get(name, name)] = np.array([sample[name] for sample in samples], np.float64)
    if not metrics:
        raise BadInput(f"lm-evaluation-harness measured nothing for the task '{task}'.")
    return TaskResult(metrics, items)
