"""Tasks: how text is cut, scores worked by hand, rows and files, few-shot examples, the built-in task, the whole."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from evaluate_toys import END, Bigram, ByteTokenizer, Recurrent, Uniform, byte_pool

from tilth.evaluate.continuation import HeldOutCloze, continuation_task, indentation
from tilth.evaluate.evaluate import EvaluateConfig, evaluate_model, measure, summary
from tilth.evaluate.likelihood import Likelihood
from tilth.evaluate.score import Option, OptionScore, Scorer, brier, choice_result, cloze_result, credit
from tilth.evaluate.statistics import paired_difference
from tilth.evaluate.tasks import Cloze, FewShot, MinimalPair, MultipleChoice, Task, TaskFile, load_task
from tilth.recipe import BadInput, parse


def scorer(model=None, length=64, tokenizer=None) -> Scorer:
    return Scorer(Likelihood(model or Uniform(300), length=length), tokenizer or ByteTokenizer(), quiet=True)


def biased(**likely: float) -> Bigram:
    """Any byte is followed by the named ones with these probabilities; the rest is shared by all others."""
    rest = (1 - sum(likely.values())) / (257 - len(likely))
    row = torch.full((257,), math.log(rest))
    for byte, probability in likely.items():
        row[ord(byte)] = math.log(probability)
    return Bigram(row.expand(257, 257).clone())


@pytest.mark.parametrize(("context", "continuation", "kept", "scored"), [
    ("foo", " bar", "foo", [257, *b"ar"]),          # the space joins the word
    ("foo ", "bar", "foo", [257, *b"ar"]),          # so it does when the task put it before the border
    ("foo ", "car", "foo ", [*b"car"]),             # a space of its own stays in the context
    ("", "bar", "", [*b"bar"]),
])
def test_the_border_is_the_longest_common_token_prefix(context, continuation, kept, scored):
    [(sequence, first)] = scorer(tokenizer=ByteTokenizer(b" b")).sequences([Option(context, continuation)])
    assert sequence[0] == END
    assert sequence[1:first].tolist() == list(kept.encode())
    assert sequence[first:].tolist() == scored


def test_a_long_context_keeps_its_right_end_and_a_long_continuation_is_scored_whole():
    asker = scorer(length=8)
    [cut] = asker._requests(np.arange(30), 25)
    assert cut.context.tolist() == [0, 22, 23, 24]
    assert cut.continuation.tolist() == [25, 26, 27, 28, 29]
    pieces = asker._requests(np.arange(30), 2)
    assert np.concatenate([piece.continuation for piece in pieces]).tolist() == list(range(2, 30))
    assert max(piece.inputs for piece in pieces) <= 8


def test_multiple_choice_worked_by_hand():
    """p(a) = 0.5, p(b) = 0.25: 'b' beats 'aaa' as a whole, loses by byte."""
    task = MultipleChoice(name="t", rows=[{"query": "x", "choices": ["aaa", "b"], "gold": 0},
                                          {"query": "x", "choices": ["aaa", "b"], "gold": 1}], separator="")
    found = task.run(scorer(biased(a=0.5, b=0.25)))
    assert found.items["accuracy_sum"].tolist() == [0, 1]
    assert found.items["accuracy_per_byte"].tolist() == found.items["accuracy_per_token"].tolist() == [1, 0]
    assert found.items["accuracy"].tolist() == [1, 0]
    assert found.metrics["accuracy"] == {"value": 0.5, "stderr": pytest.approx(0.5), "n": 2, "chance": 0.5}
    np.testing.assert_allclose(found.items["gold_log_probability"], [3 * math.log(0.5), math.log(0.25)], rtol=1e-5)
    assert found.metrics["gold_bits_per_byte"]["value"] == pytest.approx((3 + 2) / 4)
    # Shares 0.125 : 0.25, so 1/3 and 2/3.
    np.testing.assert_allclose(found.items["brier"], [2 * (2 / 3) ** 2, 2 * (1 / 3) ** 2], rtol=1e-5)


def test_byte_and_token_normalisation_differ_where_tokens_are_wide():
    scores = [OptionScore(-4.0, 2, 8, False), OptionScore(-3.0, 3, 3, False)]
    item = MultipleChoice(name="t").item({"query": "q", "choices": ["x", "y"], "gold": 0}, "row")
    found = choice_result([item], [scores], "byte").metrics
    assert [found[f"accuracy_{name}"]["value"] for name in ("sum", "per_byte", "per_token")] == [0, 1, 0]


def test_ties_share_the_credit_so_that_knowing_nothing_is_chance():
    assert credit(np.array([1.0, 1.0, 0.0]), 1) == 0.5
    assert credit(np.array([1.0, 1.0, 0.0]), 2) == 0
    task = MinimalPair(name="t", rows=[{"sentence_good": "abc", "sentence_bad": "cba"}] * 3)
    assert task.run(scorer()).metrics["accuracy"]["value"] == 0.5
    assert brier(np.array([-1000.0, -1000.0]), 0) == pytest.approx(0.5)


def test_contexts_may_differ_in_place_of_continuations():
    """A bigram model knows the last byte of the context: after b comes c, after anything else mostly a."""
    model = biased(a=0.9)
    with torch.no_grad():
        model.table[ord("b"), ord("c")] = 5.0
    task = MultipleChoice(name="t", separator="", rows=[
        {"context_options": ["xa", "xb"], "continuation": "cc", "gold": 1}])
    assert task.run(scorer(model)).metrics["accuracy"]["value"] == 1


def test_minimal_pairs_compare_whole_sentences():
    task = MinimalPair(name="t", rows=[{"good": "aa", "bad": "ab"}, {"good": "b", "bad": "a"}],
                       fields={"sentence_good": "good", "sentence_bad": "bad"})
    assert task.run(scorer(biased(a=0.5, b=0.25))).items["accuracy"].tolist() == [1, 0]


def test_cloze_needs_every_token_to_be_the_first_choice():
    task = Cloze(name="t", separator="", rows=[{"context": "x", "continuation": "aa"},
                                               {"context": "x", "continuation": "ab"}])
    found = task.run(scorer(biased(a=0.5, b=0.25)))
    assert found.items["accuracy"].tolist() == [1, 0]
    assert found.metrics["gold_log_probability"]["value"] == pytest.approx(math.log(0.25 * 0.125) / 2, rel=1e-5)
    assert cloze_result([OptionScore(-1.0, 1, 1, True)]).metrics["accuracy"]["value"] == 1


def test_white_space_stands_between_context_and_continuation_once():
    task = Cloze(name="t", before="Q: ", after="\nA:")
    assert task.option("1 + 1 =", "2") == Option("Q: 1 + 1 =\nA:", " 2", 1)
    assert task.option("x", " 2") == Option("Q: x\nA:", " 2", 2)
    assert Cloze(name="t").option("Input: ", "é") == Option("Input: ", "é", 2)


def test_few_shot_examples_are_the_same_for_all_but_never_the_question_itself():
    rows = [{"query": f"q{number}", "choices": [f"yes{number}", "no"], "gold": 0} for number in range(5)]
    items = MultipleChoice(name="t", rows=rows, few_shot=FewShot(count=2, separator="|")).items()
    contexts = [item.options[0].context for item in items]
    for number, context in enumerate(contexts):
        *shots, query = context.split("|")
        assert query == f"q{number}"
        assert len(shots) == 2
        assert all(not shot.startswith(f"q{number} ") and "yes" in shot for shot in shots)
    assert len({context.rsplit("|", 1)[0] for context in contexts}) <= 3
    with pytest.raises(BadInput, match="only 5 rows"):
        MultipleChoice(name="t", rows=rows, few_shot=FewShot(count=5)).items()


@pytest.mark.parametrize(("row", "message"), [
    ({"query": "q", "choices": ["a"], "gold": 1}, "none of the 1 choices"),
    ({"query": "q", "choices": ["a", 1], "gold": 0}, "list of texts"),
    ({"question": "q", "choices": ["a"], "gold": 0}, "row 1: `query` should be a text.*fields"),
    ({"query": "q", "choices": [], "gold": 0}, "list of texts"),
])
def test_rows_that_cannot_be_used_are_named(row, message):
    with pytest.raises(BadInput, match=message):
        MultipleChoice(name="t", rows=[row]).items()


def test_the_right_answer_may_be_an_index_a_letter_or_a_text():
    task = MultipleChoice(name="t", fields={"gold": "answer.key"})
    for given in (1, "1", "B", "b", "two"):
        row = {"query": "q", "choices": ["one", "two"], "answer": {"key": given}}
        assert task.item(row, "row").gold == 1


def test_a_task_file_reads_compressed_rows_beside_it(tmp_path):
    rows = "".join(json.dumps({"question": f"q{n}", "choices": ["a", "b"], "gold": n % 2}) + "\n" for n in range(10))
    (tmp_path / "rows.jsonl.zst").write_bytes(pa.Codec("zstd").compress(rows.encode()).to_pybytes())
    file = tmp_path / "task.yaml"
    file.write_text("kind: multiple_choice\nname: small\nversion: 3\ndata: rows.jsonl.zst\nlimit: 5\n"
                    "fields: {query: question}\nfew_shot: {count: 1, source: rows.jsonl.zst}\n")
    task = load_task(file)
    assert task.files() == [str(tmp_path / "rows.jsonl.zst")] * 2
    items = task.items()
    assert [item.options[0].context.rsplit("\n\n", 1)[1] for item in items] == ["q0", "q2", "q4", "q6", "q8"]
    ready = parse(EvaluateConfig, {"tasks": [{"kind": "file", "path": str(file)}]}).tasks[0].ready(None)
    assert isinstance(ready, MultipleChoice)
    assert (ready.name, ready.version) == ("small", 3)
    assert TaskFile(path=str(file)).files()[0] == str(file)


def test_broken_files_and_keys_are_bad_input(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"context": "a", "continuation": "b"}\n{"context"\n')
    with pytest.raises(BadInput, match="line 2"):
        Cloze(name="t", data=str(file)).items()
    with pytest.raises(BadInput, match="Could not read"):
        Cloze(name="t", data=str(tmp_path / "none.jsonl.zst")).items()
    (tmp_path / "task.yaml").write_text("kind: cloze\nname: t\nfew_shots: 3\n")
    with pytest.raises(BadInput, match="few_shot"):
        load_task(tmp_path / "task.yaml")
    with pytest.raises(BadInput, match="either"):
        Cloze(name="t").items()


TEXTS = ["".join(f"    value_{n} = compute({n}, {seed})\n" if n % 3 else f"def function_{n}_{seed}(x):\n"
                 for n in range(40)) for seed in range(3)]


def test_the_built_in_task_is_deterministic_and_its_wrong_lines_are_wrong():
    rows = continuation_task(TEXTS, 7, 30).rows
    assert rows == continuation_task(TEXTS, 7, 30).rows
    assert rows != continuation_task(TEXTS, 8, 30).rows
    assert len(rows) == 30
    whole = "".join(TEXTS)
    for row in rows:
        right = row["choices"][row["gold"]]
        assert row["query"] + right in whole
        assert len(set(row["choices"])) == 4
        assert {indentation(line) for line in row["choices"]} == {indentation(right)}
    assert {row["gold"] for row in rows} == {0, 1, 2, 3}
    with pytest.raises(BadInput, match="too small"):
        continuation_task(["a\nb\n"], 0, 5)
    with pytest.raises(BadInput, match="held-out text"):
        HeldOutCloze().ready(None)


def test_task_scores_do_not_depend_on_the_batch():
    task, model = continuation_task(TEXTS, 0, 10), Recurrent(257)
    scores = [task.run(Scorer(Likelihood(model, length=64, batch_tokens=batch), ByteTokenizer(), quiet=True))
              for batch in (1, 5000)]
    for name, values in scores[0].items.items():
        np.testing.assert_allclose(scores[1].items[name], values, rtol=1e-6, atol=1e-6 if name == "brier" else 0)


def test_evaluate_model_fills_the_results_that_other_rooms_read():
    config = EvaluateConfig(tasks=[HeldOutCloze(n=8)], batch_tokens=512)
    parts = {"length": 64, "config": config, "held_out": byte_pool([text.encode() for text in TEXTS]),
             "held_out_texts": TEXTS, "train_texts": TEXTS, "quiet": True}
    found = measure(Recurrent(257), ByteTokenizer(), **parts)
    results = found.results
    assert list(results["held_out"]) == ["bits_per_byte", "xz", "xz_256k", "zstd", "unigram", "byte_5gram"]
    for metrics in results.values():
        for entry in metrics.values():
            assert {"value", "n"} <= entry.keys()
            assert math.isfinite(entry["value"])
    assert results["held_out_cloze"]["accuracy"]["version"] == 1
    json.dumps(results, allow_nan=False)
    assert results == evaluate_model(Recurrent(257), ByteTokenizer(), **parts)
    assert any("held_out_cloze  accuracy" in line for line in summary(results))
    worse = measure(Recurrent(257, seed=1), ByteTokenizer(), **parts)
    bits, sizes = found.items["held_out"]["bits"], found.items["held_out"]["bytes"]
    difference = paired_difference(bits, worse.items["held_out"]["bits"], sizes)["value"]
    assert difference == pytest.approx(results["held_out"]["bits_per_byte"]["value"]
                                       - worse.results["held_out"]["bits_per_byte"]["value"])


def test_what_does_not_fit_together_is_refused():
    pool = byte_pool([b"other text"])
    parts = {"length": 64, "quiet": True}
    with pytest.raises(BadInput, match="not the same"):
        measure(Uniform(257), ByteTokenizer(), config=EvaluateConfig(tasks=[]), held_out=pool,
                held_out_texts=TEXTS, train_texts=TEXTS, **parts)
    rows = [{"context": "a", "continuation": "b"}]
    twice = EvaluateConfig(tasks=[Cloze(name="t", rows=rows), Cloze(name="t", rows=rows)])
    with pytest.raises(BadInput, match="one name"):
        measure(Uniform(257), ByteTokenizer(), config=twice, **parts)
    with pytest.raises(BadInput, match="Choose one of accuracy"):
        measure(Uniform(257), ByteTokenizer(), config=EvaluateConfig(tasks=[
            Cloze(name="t", rows=rows, metric="f1")]), **parts)
    with pytest.raises(BadInput, match="at most"):
        measure(Uniform(257), ByteTokenizer(), config=EvaluateConfig(length=65, tasks=[]), **parts)


REAL: list[tuple[str, type[Task], dict[str, str]]] = [
    ("copa", MultipleChoice, {}), ("winogrande", MultipleChoice, {}), ("arithmetic", Cloze, {}),
    ("blimp", MinimalPair, {}), ("xcopa", MultipleChoice, {"query": "premise", "gold": "gold"})]


@pytest.mark.skipif("TILTH_DATA" not in os.environ, reason="TILTH_DATA does not name a folder of real evaluation sets")
@pytest.mark.parametrize(("name", "kind", "fields"), REAL)
def test_real_rows_are_understood(name, kind, fields):
    path = Path(os.environ["TILTH_DATA"]) / "eval" / f"{name}.jsonl.zst"
    found = kind(name=name, data=str(path), fields=fields, limit=5).run(scorer(Uniform(257), length=256))
    assert found.metrics["accuracy"]["n"] == 5
    assert found.metrics["gold_log_probability"]["value"] < 0
