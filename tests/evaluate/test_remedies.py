"""Ways to ask, majorities, demonstrations, single characters, words of one length: each does what it says."""

import numpy as np
import pytest
from test_counting import words
from test_kinds import Bytes, scorer

from tilth.evaluate.counting import WordCounting
from tilth.evaluate.counting.items import Question, program, questions
from tilth.evaluate.counting.tasks import score, spelled
from tilth.evaluate.counting.ways import majority, said, worked
from tilth.evaluate.features import Classification
from tilth.evaluate.generation import Sampling, write
from tilth.recipe import BadInput

BERRY = Question("strawberry", "r", "?", "3", "3")


def test_worked_answers_end_in_the_right_one():
    assert worked(BERRY, "occurrence", "direct") == "3"
    assert worked(BERRY, "occurrence", "reason") == (
        "s, t, r (1), a, w, b, e, r (2), r (3), y. The answer is 3.")
    assert worked(BERRY, "occurrence", "code") == "load strawberry\ncount r\nanswer"
    for kind in ("occurrence", "substring", "length", "distinct"):
        for one in questions(kind, words(300), 60):
            for way in ("direct", "open", "reason", "code"):
                assert said(worked(one, kind, way), kind, way) == one.answer, (kind, way, one)


def test_what_a_text_says():
    assert said("There are 2... wait, 3 r's.", "occurrence", "open") == "3"
    assert said("so 3 (positions 3, 8). The answer is 3.", "occurrence", "reason") == "3"
    assert said("No idea", "substring", "direct") is None
    assert said("load strawberry\ncount r\nanswer", "occurrence", "code") == "3"
    assert said("import os", "occurrence", "code") is None and said("none at all?", "length", "open") == "0"


def test_the_majority_answers():
    assert majority(["2", "it is 3", "3"], "occurrence", "open") == "it is 3"
    assert majority(["?", "hm"], "occurrence", "open") == "?"


def test_sampled_text_is_the_same_in_any_batch_and_differs_by_seed():
    prompts = ["a", "bcd", "efg", "hi there"]
    first = write(scorer(), prompts, 12, [], Sampling(1.0, 40, 1))
    assert first == write(scorer(batch_tokens=1), prompts, 12, [], Sampling(1.0, 40, 1))
    assert first != write(scorer(), prompts, 12, [], Sampling(1.0, 40, 2))
    assert write(scorer(), prompts, 12, []) == write(scorer(), prompts, 12, [], Sampling(0.7, 1, 5))


def test_samples_follow_the_probabilities():
    import torch
    logits = torch.log(torch.tensor([[0.6, 0.3, 0.1]])).repeat(4000, 1)
    drawn = Sampling(1.0, 2).draw(logits, [np.random.default_rng([0, row]) for row in range(4000)])
    assert np.bincount(drawn.numpy(), minlength=3) / 4000 == pytest.approx([2 / 3, 1 / 3, 0], abs=0.03)


def test_demonstrations_are_of_other_words_and_worked_in_the_same_way():
    task = WordCounting(words=words(400), n=20, few_shot={"count": 4}, way="code")
    asked = task.drawn()
    shown = task.demonstrations(asked).split("\n\n")[:-1]
    assert len(shown) == 4 and all(one.endswith("\nanswer") and "load " in one for one in shown)
    assert not {one.split('"')[-2] for one in shown} & {one.word for one in asked}
    assert task.drawn() == WordCounting(words=words(400), n=20).drawn()  # the same questions with or without
    with pytest.raises(BadInput, match="makes its own examples"):
        WordCounting(words=words(50), few_shot={"count": 1, "source": "x"}).demonstrations([])


def test_words_of_one_length_or_with_so_many_letters_and_accuracy_apart():
    task = WordCounting(words=words(2000), n=30, length=8, max_tokens=2, by="distinct")
    assert {len(one.word) for one in task.drawn()} == {8}
    assert {len(set(one.word)) for one in task.model_copy(update={"length": None, "distinct": 4}).drawn()} == {4}
    result = task.run(scorer(length=256))
    apart = {name: one["n"] for name, one in result.metrics.items() if name.startswith("accuracy_distinct_")}
    assert sum(apart.values()) == 30 and len(apart) > 1
    with pytest.raises(BadInput, match="needs words"):
        WordCounting(words=words(50), length=17, distinct=1).drawn()


def test_a_word_as_single_characters_stands_in_the_same_place():
    class Pairs(Bytes):
        def __init__(self):
            super().__init__(*[bytes([a, b]) for a in range(97, 123) for b in range(97, 123)])

    plain = Pairs().encode('the "aword" end')
    ids = spelled(Pairs(), 'the "aword" end', "aword")
    assert len(ids) - 1 > len(plain)
    quote = ids.tolist().index(ord('"'))
    assert ids.tolist()[quote + 1 : quote + 6] == [*b"aword"] and ord("w") not in plain


@pytest.mark.parametrize("more", [{"way": "direct", "samples": 3}, {"way": "reason", "few_shot": {"count": 2}},
                                  {"way": "code", "refine": 1}, {"characters": True}])
def test_every_remedy_runs_and_is_the_same_twice(more):
    task = WordCounting(words=words(200), n=8, max_tokens=4, **more)
    first, second = (task.run(scorer(length=1024, batch_tokens=size)) for size in (4096, 700))
    assert first.metrics["accuracy"]["n"] == 8
    assert first.items["accuracy"].tolist() == second.items["accuracy"].tolist()


def test_programs_are_scored_by_what_they_give():
    metrics, _ = score([BERRY, BERRY], [program(BERRY, "occurrence"), "3"], "occurrence", "code")
    assert metrics["accuracy"]["value"] == 0.5 and metrics["accuracy"]["confusion"] == {"3": {"3": 1, "none": 1}}


def test_spelled_texts_can_be_probed():
    rows = [{"text": letter * (3 + at % 5), "label": letter} for at, letter in enumerate("abababababababab")]
    assert Classification(name="t", rows=rows, spell=" ").run(scorer()).metrics["accuracy"]["value"] == 1.0
