"""Counting words: exact answers, perturbations, balance, strict parsing, the constant answer, the code arm."""

from collections import Counter

import numpy as np
import pytest
from test_kinds import scorer

from tilth.evaluate.counting import WordCounting, count, distinct, perturb
from tilth.evaluate.counting.items import Question, as_published, program, questions, run_program
from tilth.evaluate.counting.tasks import confusion, matches, score
from tilth.evaluate.counting.words import PERTURBATIONS, left_shift, mapped, right_shift, split_words, swap, usable
from tilth.evaluate.statistics import wilson
from tilth.recipe import BadInput


def words(n=3000):
    """Made-up words with repeated letters as often as in English: a mean occurrence near 1.22."""
    rng = np.random.default_rng(0)
    frequencies = np.array([8.2, 1.5, 2.8, 4.3, 12.7, 2.2, 2, 6.1, 7, .15, .77, 4, 2.4, 6.7, 7.5, 1.9, .1, 6, 6.3, 9.1,
                            2.8, .98, 2.4, .15, 2, .07])
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return usable(["".join(rng.choice(letters, rng.integers(4, 15), p=frequencies / frequencies.sum()))
                   for _ in range(n)])


def test_counts_are_exact():
    assert (count("strawberry", "r"), len("strawberry"), distinct("strawberry")) == (3, 10, 8)
    assert "raw" in "strawberry" and "rae" not in "strawberry"
    assert (count("mississippi", "s"), len("mississippi"), distinct("mississippi")) == (4, 11, 4)


def test_perturbations_worked_by_hand():
    rng = np.random.default_rng(0)
    assert left_shift("strawberry") == "trawberrys"
    assert right_shift("strawberry") == "ystrawberr"
    assert swap("strawberry", 3, 9) == "strywberra"
    assert mapped("strawberry") == "abcdefgcch"
    assert perturb("strawberry", "dash", rng) == "s-t-r-a-w-b-e-r-r-y"
    for kind in ("shuffle", "left_shift", "right_shift", "swap", "dash", "space", "comma"):
        assert count(perturb("strawberry", kind, rng), "r") == 3, kind
    assert len(perturb("strawberry", "dash", rng)) != 10
    assert distinct(perturb("strawberry", "symbols", rng)) == 8
    assert {len(perturb("strawberry", kind, rng)) for kind in ("insert", "repeat")} == {11}
    assert len(perturb("strawberry", "delete", rng)) == 9


@pytest.mark.parametrize("kind", ["occurrence", "substring", "length", "distinct"])
def test_answers_are_balanced_and_right(kind):
    known = words()
    asked = questions(kind, known, 10_000, seed=1)
    shares = np.array(list(Counter(one.label for one in asked).values())) / 10_000
    assert np.abs(shares - 1 / len(shares)).max() < 0.02
    assert asked == questions(kind, known, 10_000, seed=1)
    for one in asked[:200]:
        assert run_program(program(one, kind)) == one.answer
    assert {len(one.x) for one in asked} == ({1} if kind == "occurrence" else {0} if kind != "substring" else
                                            {len(one.x) for one in asked})


def test_training_and_held_out_words_are_disjoint():
    train, held_out = split_words([*words(500), "Apple", "apple"], 100)
    assert len(held_out) == 100 and not {w.lower() for w in train} & {w.lower() for w in held_out}
    assert usable(["Apple", "it's", "co-op", "ab", "fine"]) == ["fine"]


def test_always_one_is_the_majority_of_the_published_sampler():
    asked = as_published(words(), 5000)
    occurrence = np.mean([int(one.answer) for one in asked])
    constant = np.mean([one.answer == "1" for one in asked])
    assert 1.15 < occurrence < 1.32 and 0.72 < constant < 0.87
    balanced = questions("occurrence", words(), 5000)
    assert max(Counter(one.answer for one in balanced).values()) / 5000 < 0.27


def test_answers_are_parsed_strictly():
    assert matches("There are 2... wait, 3 r's.", "3") and matches("twice", "2")
    assert not matches("No idea", "No") and matches("No.", "No") and not matches("Yes and no", "Yes")
    asked = [Question("a", "a", "?", "2", "2"), Question("b", "b", "?", "1", "1")]
    metrics, arrays = score(asked, ["so 2", "1."])
    assert metrics["accuracy"]["value"] == 1.0 and metrics["strict"]["value"] == 0.5
    assert arrays["accuracy"].tolist() == [1.0, 1.0] and metrics["constant"]["value"] == 0.5
    assert confusion(asked, ["2", "2"]) == {"2": {"2": 1}, "1": {"2": 1}}


def test_intervals_of_shares():
    assert wilson(173, 500) == pytest.approx((0.3056, 0.3887), abs=5e-5)
    assert wilson(412, 500) == pytest.approx((0.7882, 0.8549), abs=5e-5)


@pytest.mark.parametrize("text", ["", "load a\ncount b", "load a\nrun x\nanswer", "load a\ncount bb\nanswer",
                                  "load a\nlength 3\nanswer", "import os\nlength\nanswer"])
def test_what_is_no_program_does_not_run(text):
    assert run_program(text) is None


def test_the_task_runs_on_a_model_and_refuses_what_it_cannot_ask():
    result = WordCounting(words=words(300), n=20, max_tokens=4, perturbation="dash").run(scorer())
    assert result.metrics["accuracy"]["n"] == 20 and result.metrics["gold_bits_per_byte"]["value"] > 0
    with pytest.raises(BadInput, match="perturbation"):
        WordCounting(words=["fine"], perturbation="no").drawn()
    with pytest.raises(BadInput, match="needs words"):
        WordCounting(words=["No-word"]).drawn()
    assert set(PERTURBATIONS) >= {"none", "delete", "symbols", "comma"}
