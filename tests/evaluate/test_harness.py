"""lm-evaluation-harness on a Tilth model: the same numbers as its own backend on the exported model.

Needs the extra: skipped where `lm_eval` is not installed.
"""

import json

import pytest

lm_eval = pytest.importorskip("lm_eval")

from tilth.data.tokenizer import BpeTokenizer  # noqa: E402
from tilth.evaluate.harness import HarnessTask, harness_model  # noqa: E402
from tilth.evaluate.likelihood import Likelihood  # noqa: E402
from tilth.evaluate.score import Scorer  # noqa: E402
from tilth.models import TransformerConfig  # noqa: E402
from tilth.recipe import BadInput  # noqa: E402
from tilth.stages.export import export  # noqa: E402
from tilth.stages.model_folder import save_model  # noqa: E402

SHAPES = {
    "choices": {"doc_to_text": "Question: {{q}}\nAnswer:", "doc_to_choice": "{{c}}", "doc_to_target": "g",
                "output_type": "multiple_choice", "num_fewshot": 3, "metric_list": [{"metric": "acc"},
                                                                                    {"metric": "acc_norm"}]},
    "letters": {"doc_to_text": "{{q}}\nA or B:", "doc_to_choice": ["A", "B"], "doc_to_target": "{{g % 2}}",
                "output_type": "multiple_choice", "metric_list": [{"metric": "acc"}]},
    "cloze": {"doc_to_text": "{{q}}", "doc_to_target": "{{c[g]}}", "output_type": "loglikelihood",
              "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}]},
    "text": {"doc_to_text": "", "doc_to_target": "{{q}}", "output_type": "loglikelihood_rolling",
             "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}]},
    "writing": {"doc_to_text": "{{q}}", "doc_to_target": "{{c[g]}}", "output_type": "generate_until",
                "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
                "metric_list": [{"metric": "exact_match"}]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("harness")
    text = "the rain in spain falls mainly on a plain while seven green kites rise over still water"
    words = text.split()
    rows = [{"q": " ".join(words[at % 5 : at % 5 + 3 + at % 7]), "c": [words[at % 16], words[(3 * at + 1) % 17],
                                                                      "so it is"], "g": at % 3} for at in range(30)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, shape in SHAPES.items():
        task = {"task": f"local_{name}", "dataset_path": "json", "test_split": "test",
                "dataset_kwargs": {"data_files": {"test": str(path / "rows.jsonl")}}, "metadata": {"version": 2.0},
                **({"fewshot_split": "test"} if name == "choices" else {}), **shape}
        (path / f"{name}.yaml").write_text(json.dumps(task))
    tokenizer = BpeTokenizer(vocab_size=300).build([text] * 4)
    model = TransformerConfig(layers=2, width=32, heads=4, feed_forward=64, context=128,
                              vocab_size=tokenizer.vocab_size).build().initialize(0)
    save_model(path / "model", model, tokenizer)
    export(path / "model", path / "exported", "float32")
    return path, model.eval(), tokenizer


def evaluate(model, path):
    from lm_eval.tasks import TaskManager
    manager = TaskManager(include_path=str(path), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=[f"local_{name}" for name in SHAPES], task_manager=manager,
                                    bootstrap_iters=0)
    return {task: {name: value for name, value in metrics.items() if isinstance(value, float)}
            for task, metrics in found["results"].items()}


def test_both_backends_agree_on_five_tasks(folder):
    from lm_eval.models.huggingface import HFLM
    path, model, tokenizer = folder
    ours = evaluate(harness_model(Likelihood(model, length=128), tokenizer), path)
    theirs = evaluate(HFLM(pretrained=str(path / "exported"), device="cpu", dtype="float32", max_length=128,
                           batch_size=4), path)
    assert set(ours) == set(theirs) and len(ours) == 5
    for task, metrics in theirs.items():
        for name, value in metrics.items():
            exact = name.startswith(("acc", "exact_match"))
            assert ours[task][name] == pytest.approx(value, rel=0 if exact else 1e-5, abs=0), (task, name)


def test_a_harness_task_is_a_task(folder, monkeypatch):
    path, model, tokenizer = folder
    scorer = Scorer(Likelihood(model, length=128), tokenizer, quiet=True)
    result = HarnessTask(name="local_choices", folder=str(path), limit=8).run(scorer)
    assert result.metrics["accuracy"]["n"] == 8 and result.metrics["accuracy"]["version"] == 2.0
    assert result.items["accuracy"].mean() == pytest.approx(result.metrics["accuracy"]["value"])
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", None)
    with pytest.raises(BadInput, match=r"tilth\[lm-eval\]"):
        harness_model(scorer.likelihood, tokenizer)
