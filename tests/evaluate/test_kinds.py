"""Written answers, probes, retrieval, and the shipped task files."""

import json
import os

import numpy as np
import pytest
import torch
from evaluate_toys import END, ByteTokenizer

from tilth.evaluate.answers import exact_match, last_number, number_match, word_match
from tilth.evaluate.features import Classification, Retrieval, probe, rank_of
from tilth.evaluate.generation import AnswerBits, Generation, write
from tilth.evaluate.likelihood import Likelihood
from tilth.evaluate.rows import shipped_tasks
from tilth.evaluate.score import Scorer
from tilth.evaluate.tasks import MultipleChoice, TaskFile, load_task
from tilth.models import TransformerConfig
from tilth.recipe import BadInput


class Bytes(ByteTokenizer):
    def decode(self, tokens):
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


def scorer(length=128, batch_tokens=512, seed=0):
    model = TransformerConfig(layers=2, width=32, heads=4, feed_forward=64, context=length, vocab_size=257).build()
    return Scorer(Likelihood(model.initialize(seed), length=length, batch_tokens=batch_tokens), Bytes(), quiet=True)


def test_numbers_are_read_as_people_write_them():
    assert last_number("There are 2... wait, 3 r's.") == 3
    assert last_number("twice") == 2
    assert last_number("It costs $1,234.50") == 1234.5
    assert last_number("-7 degrees") == -7
    assert last_number("no number, x2y") is None
    assert number_match("So 8 * 9 = 72.", ["... #### 72"])
    assert not number_match("", ["3"])


def test_text_is_compared_without_case_articles_and_punctuation():
    assert exact_match(" The Onion. ", ["Allium", "onion"])
    assert not exact_match("onions", ["onion"])
    assert word_match("Yes.", "yes", ["no"])
    assert not word_match("No idea", "no", ["yes"])
    assert not word_match("Now", "no")
    assert not word_match("No. Or yes?", "no", ["yes"])


def test_greedy_writing_is_the_same_in_any_batch():
    prompts = ["a", "bcd", "efg", "hi there"]
    written = write(scorer(), prompts, 12, ["\n"])
    assert written == write(scorer(batch_tokens=1), prompts, 12, ["\n"])
    asked = scorer()
    tokens = torch.tensor([[END, *b"bcd"]])
    with torch.no_grad():
        for _ in range(12):
            tokens = torch.cat([tokens, asked.likelihood.model(tokens)[:, -1:].argmax(-1)], 1)
    ids = tokens[0, 4:].tolist()
    whole = Bytes().decode(ids[: ids.index(END)] if END in ids else ids)
    assert written[1] == whole.split("\n")[0]


def test_a_generation_task_counts_what_matches():
    asked = scorer()
    [text] = write(asked, ["q"], 32, ["\n"])
    rows = [{"query": "q", "answer": text, "aliases": []}, {"query": "q", "answer": "other", "aliases": ["another"]}]
    result = Generation(name="t", rows=rows).run(asked)
    assert result.metrics["accuracy"]["value"] == (0.5 if text.strip() else 0.0)
    assert result.metrics["gold_bits_per_byte"]["value"] > 0
    numbers = Generation(name="n", rows=[{"question": "q", "answer": ["#### 5"]}], match="number", marker="####")
    assert numbers.run(asked).metrics["accuracy"]["n"] == 1
    with pytest.raises(BadInput, match="no room"):
        write(asked, ["q"], 128, [])


def test_answer_bits_are_those_of_the_likelihood():
    asked = scorer()
    found = AnswerBits(name="t", rows=[{"question": "abc", "answer": 12}]).run(asked)
    [[score]] = asked.score(AnswerBits(name="t", rows=[{"question": "abc", "answer": 12}]).items(), "t")
    assert found.metrics["gold_bits_per_byte"]["value"] == pytest.approx(-score.log_probability / np.log(2) / 2)


def test_a_probe_finds_what_is_linear_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    x = rng.standard_normal((300, 10))
    train, test = np.arange(150), np.arange(150, 300)
    assert probe(x, labels, train, test).mean() < 0.5
    assert probe(x + 3 * np.eye(10)[labels], labels, train, test).mean() > 0.9


def test_classification_and_retrieval_on_bytes():
    rows = [{"text": letter * (3 + at % 5), "label": letter} for at, letter in enumerate("abababababababab")]
    found = Classification(name="t", rows=rows).run(scorer())
    assert found.metrics["accuracy"]["value"] == 1.0 and found.metrics["accuracy"]["chance"] >= 0.5
    pairs = [{"query": letter * 5, "passage": letter * 6} for letter in "abcdefgh"]
    assert Retrieval(name="t", rows=pairs).run(scorer()).metrics["recall_at_1"]["value"] == 1.0
    assert rank_of(np.array([[3.0, 1.0, 2.0], [0, 0, 0]]), np.array([2, 0])).tolist() == [2, 2]


def test_fields_reach_into_groups_and_lists_and_join():
    task = MultipleChoice(name="t", rows=[{"a": {"b": ["x"]}, "c": "y", "gold": "no"}], options=["yes", "no"],
                          fields={"query": ["a.b.0", "c"]})
    [item] = task.items()
    assert item.options[1][:2] == ("x\ny", " no") and item.gold == 1
    with pytest.raises(BadInput, match="map the rows' names"):
        MultipleChoice(name="t", rows=[{"c": "y", "gold": 0}], options=["a", "b"], fields={"query": ["a", "c"]}).items()


def test_examples_may_have_to_share_a_subject():
    rows = [{"query": f"{subject}{at}", "choices": ["x", "y"], "gold": 0, "subject": subject}
            for at in range(3) for subject in "ab"]
    items = MultipleChoice(name="t", rows=rows, few_shot={"count": 2, "within": "subject"}).items()
    for row, item in zip(rows, items, strict=True):
        lines = item.options[0].context.split("\n\n")
        assert len(lines) == 3 and all(line.startswith(row["subject"]) for line in lines)
    with pytest.raises(BadInput, match="only 3 rows of"):
        MultipleChoice(name="t", rows=rows, few_shot={"count": 3, "within": "subject"}).items()


@pytest.mark.parametrize("name", sorted(shipped_tasks()))
def test_shipped_tasks_are_whole(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TILTH_DATA", str(tmp_path))
    task = load_task(name)
    assert task.name == name
    assert all(path.startswith(str(tmp_path / "eval")) for path in task.files())
    monkeypatch.delenv("TILTH_DATA")
    with pytest.raises(BadInput, match="TILTH_DATA"):
        load_task(name)


def test_a_shipped_task_runs_on_rows_of_its_form(monkeypatch, tmp_path):
    (tmp_path / "eval").mkdir()
    rows = [{"query": f"Question: {at}?", "choices": ["a", "bc"], "gold": at % 2} for at in range(6)]
    (tmp_path / "eval" / "arc_easy.jsonl.zst").write_bytes(
        __import__("pyarrow").compress("".join(json.dumps(row) + "\n" for row in rows).encode(), "zstd",
                                       asbytes=True))
    monkeypatch.setenv("TILTH_DATA", str(tmp_path))
    task = TaskFile(path="arc_easy", limit=4).ready(None)
    assert task.run(scorer()).metrics["accuracy"]["n"] == 4


@pytest.mark.skipif("TILTH_DATA" not in os.environ, reason="the rows of shipped tasks are not part of the package")
@pytest.mark.parametrize("name", sorted(shipped_tasks()))
def test_shipped_tasks_fit_their_rows(name):
    task = load_task(name)
    rows = task.some_rows()
    assert rows
    if task.kind not in ("classification", "retrieval"):
        assert len(task.items()) == len(rows)
