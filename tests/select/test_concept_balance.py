"""Units are thinned by their concepts: the rare stay, the frequent come down to the cap, and the draw is the seed's."""

import numpy as np
import pytest

from tilth.curate.concepts import Concepts
from tilth.data.pool import Pool, PoolWriter, token_field
from tilth.data.tokenizer import BpeTokenizer
from tilth.recipe import BadInput, parse
from tilth.select.concepts import ConceptBalance, effective, occurrences, stays

COUNTS = {"dog": 400, "cat": 100, "owl": 20, "nothing": 80}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    texts = [f"the {word}s of number {at}" for word, count in COUNTS.items() for at in range(count)]
    texts += ["a dog and an owl"] * 5
    tokenizer = BpeTokenizer(vocab_size=300).build(texts)
    names = [str(at) for at in range(len(texts))]
    with PoolWriter(folder, {"tokens": token_field(tokenizer.vocab_size)}, vocab_size=tokenizer.vocab_size,
                    end_of_text=tokenizer.end_of_text) as writer:
        writer.append({"tokens": [np.array(tokenizer.encode(text)) for text in texts]},
                      {"unit_id": names, "record_id": names, "source": ["x"] * len(texts)})
    tokenizer.save(folder)
    (folder / "names.txt").write_text("dog\ncat\nowl\n")
    return Pool.open(folder)


def chosen(pool, seed=0, **fields):
    return parse(ConceptBalance, {"names": str(pool.folder / "names.txt"), **fields}).build(pool, seed)


def test_concepts_of_units(pool):
    unit, concept = occurrences(pool, Concepts(["dog", "cat", "owl"]))
    assert np.bincount(concept).tolist() == [405, 100, 25]
    assert len(np.unique(unit)) == 525


def test_the_rare_stay_and_the_frequent_come_down_to_the_cap(pool):
    selector = chosen(pool, cap=50)
    unit, concept = occurrences(pool, Concepts(["dog", "cat", "owl"]))
    after = np.bincount(concept[selector.mask[unit]])
    assert after[2] == 25, "below the cap: all stay, those beside a dog too"
    assert abs(after[1] - 50) < 4 * np.sqrt(25) and abs(after[0] - 55) < 4 * np.sqrt(45)
    assert selector.mask[520:600].all(), "units without a concept"
    figures = selector.report()
    assert figures["effective_concepts_after"] > 2.5 > figures["effective_concepts"]
    assert figures["most_frequent"] == 405 and figures["selected"] == selector.mask.sum()


def test_keep_is_met_and_others_are_thinned(pool):
    assert chosen(pool, keep=0.5).mask.mean() == pytest.approx(0.5, abs=0.07)
    assert not chosen(pool, cap=50, others=0).mask[520:600].any()
    with pytest.raises(BadInput, match="lower `others`"):
        chosen(pool, keep=0.1)


def test_the_draw_is_the_seeds(pool):
    masks = [chosen(pool, seed, cap=50).mask for seed in (0, 0, 1)]
    assert np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[0], masks[2])


def test_the_probability_of_a_unit_grows_with_its_concepts():
    unit, concept, counts = np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([100, 50])
    assert stays(10, 3, unit, concept, counts, 0.25) == pytest.approx([0.1, 1 - 0.9 * 0.8, 0.25])
    assert effective(np.array([5, 5, 5, 0])) == pytest.approx(3)


def test_what_selects_nothing_is_refused(pool, tmp_path):
    (tmp_path / "names.txt").write_text("zebra\n")
    with pytest.raises(BadInput, match="No unit of the pool holds any"):
        parse(ConceptBalance, {"names": str(tmp_path / "names.txt"), "cap": 5}).build(pool, 0)
    with pytest.raises(BadInput, match="either cap"):
        chosen(pool, cap=5, keep=0.5)
