"""Influence models: what they learn, how warm starts and limits work, that their state is exact, what they cost."""

import math

import numpy as np
import pytest
import torch
from select_toys import LENGTH, text_learner, text_probe, train

from tilth.curate.linear import Linear
from tilth.data.pool import Pool, PoolWriter, token_field
from tilth.data.records import record_batch
from tilth.data.tokenize import tokenize_documents
from tilth.data.tokenizer import TOKENIZERS
from tilth.recipe import BadInput, parse
from tilth.select.encoder import Encoder, mean_by, split
from tilth.select.hf_encoder import HuggingFaceEncoder
from tilth.select.policy import PolicyConfig
from tilth.select.protocols import Plan
from tilth.select.scorers import NGramScorer
from tilth.select.statistics import spearman

SMALL = {"kind": "encoder", "layers": 1, "width": 16, "heads": 2, "length": 32, "epochs": 6, "lr": 1e-2}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """400 units of 4 to 40 tokens; the target is how often token 7 follows token 3, which no single token tells."""
    folder, rng = tmp_path_factory.mktemp("toy"), np.random.default_rng(0)
    tokens = [rng.integers(1, 12, rng.integers(4, 41)) for _ in range(400)]
    with PoolWriter(folder, {"tokens": token_field(12)}, vocab_size=12, end_of_text=0) as writer:
        names = [str(number) for number in range(400)]
        writer.append({"tokens": tokens}, {"unit_id": names, "record_id": names, "source": ["a"] * 400})
    target = np.array([np.mean(one == 7) for one in tokens])
    return Pool.open(folder), (target - target.mean()) / target.std()


def test_an_encoder_learns_and_goes_on_from_where_it_was(toy):
    pool, target = toy
    units, others = np.arange(300), np.arange(300, 400)
    config = Encoder(layers=1, width=16, heads=2, length=32, epochs=8, lr=1e-2)
    model = config.build(pool, 1)
    assert not model.scores(others).any()  # an untrained one predicts the same for all, and so chooses at random
    first, flops = model.fit(units, target[units], 1)
    assert first["spearman"] > 0.6 and first["spearman_at_start"] == 0
    assert spearman(model.scores(others), target[others]) > 0.6
    second, _ = model.fit(units, target[units], 2)
    assert second["spearman_at_start"] > 0.6 and second["spearman"] >= second["spearman_at_start"]
    assert model.fit_flops(units) == flops
    cold = Encoder(layers=1, width=16, heads=2, length=32, epochs=1, lr=1e-2, warm_start=False).build(pool, 1)
    cold.fit(units, target[units], 1)
    assert cold.fit(units, target[units], 2)[0]["spearman_at_start"] == 0


def test_the_best_state_is_kept_and_the_state_is_exact(toy):
    pool, target = toy
    config = Encoder(layers=1, width=16, heads=2, length=32, epochs=5, lr=0.3)  # a rate at which it gets worse again
    model = config.build(pool, 1)
    found, _ = model.fit(np.arange(200), target[:200], 1)
    held, _ = split(200, np.random.default_rng([1, *_key("influence model"), 1]))
    assert spearman(model.scores(held), target[held]) == found["spearman"]
    other = config.build(pool, 5)
    other.load_state_dict(model.state_dict())
    assert (other.scores(np.arange(400)) == model.scores(np.arange(400))).all()
    before = torch.get_rng_state()
    again = config.build(pool, 1)
    assert again.fit(np.arange(200), target[:200], 1)[0] == found
    assert torch.equal(before, torch.get_rng_state())


def _key(purpose):
    import zlib
    return [zlib.crc32(purpose.encode())]


def test_a_unit_reads_the_same_alone_and_among_others_and_in_pieces(toy):
    pool, target = toy
    model = Encoder(layers=2, width=16, heads=2, length=16, epochs=1).build(pool, 1)
    model.fit(np.arange(100), target[:100], 1)
    units = np.argsort(-pool.lengths())[:5]  # of up to 40 tokens in rows of 16
    alone = np.concatenate([model.scores(units[place:place + 1]) for place in range(5)])
    assert np.allclose(model.scores(units), alone, atol=1e-5) and np.ptp(alone) > 0


def test_means_by_owner():
    rows = torch.arange(8.0).reshape(4, 2)
    assert mean_by(rows, torch.tensor([1, 0, 1, 3]), 3).tolist() == [[2, 3], [2, 3], [0, 0]]


def test_learning_is_held_to_its_share(toy):
    pool, target = toy
    model = Encoder(layers=1, width=16, heads=2, length=32, epochs=20).build(pool, 1)
    units = np.arange(100)
    one = model.fit_flops(units) / 20
    found, flops = model.fit(units, target[units], 1, 3.5 * one)
    assert found["epochs"] == 3 and flops == pytest.approx(3 * one) == model.fit_flops(units, 3.5 * one)
    with pytest.raises(BadInput, match=r"may take 0.05 of the run's FLOPs .* not pay for one pass over 100"):
        model.check(units, 0.5 * one)
    assert model.fit(units, target[units], 2, 0.5 * one)[1] == 0  # what it knew stays


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """100 units that count in the tokens 1 to 24, and 300 of noise in the others."""
    folder, rng = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    with PoolWriter(folder, {"tokens": token_field(50)}, vocab_size=50, end_of_text=0) as writer:
        for source, number in (("counts", 100), ("noise", 300)):
            names = [f"{source}{one}" for one in range(number)]
            tokens = [(rng.integers(0, 24) + np.arange(16)) % 24 + 1 if source == "counts" else
                      rng.integers(25, 50, 16) for _ in names]
            writer.append({"tokens": tokens}, {"unit_id": names, "record_id": names, "source": [source] * number})
    return Pool.open(folder)


def mates(kinds, **scorer):
    selector = {"kind": "mates", "share": 0.9, "reference": {"sources": ["counts"], "share": 0.2, "tokens": 200},
                "keep": 0.2, "probes": 60, "held_back": 0.2, "temperature": 0.2, "scorer": {**SMALL, **scorer}}
    policy = parse(PolicyConfig, {"selector": selector}).build(kinds, 1, 40)
    probe, spent = text_probe(kinds, learner=text_learner(50), rows=8)
    for _ in range(3):
        train(probe, np.random.default_rng(0).permutation(len(kinds)), 15)
    return policy, probe, spent


def test_mates_with_an_encoder_draws_what_helps_within_its_share(kinds):
    policy, probe, spent = mates(kinds, share=0.3, epochs=20, batch=4)
    plan = Plan(400, 8, LENGTH, probe.learner.flops_per_row, 3)
    policy.tell_plan(plan)
    policy.bind(probe)
    drawn = np.concatenate([policy.draw(stretch) for stretch in range(3)][1:])
    assert np.mean(kinds.source[drawn] == 0) > 0.5  # of the pool 0.25
    report = policy.report()["selector"]
    assert 0 < report["flops"]["learning"] <= 0.3 * plan.training_flops
    assert sum(report["flops"].values()) == pytest.approx(spent.flops)
    assert policy.selector.planned_flops(plan) == pytest.approx(spent.flops, rel=0.15)
    restored, _, _ = mates(kinds, share=0.3, epochs=20, batch=4)
    restored.tell_plan(plan)
    restored.load_state_dict(policy.state_dict())
    restored.bind(probe)
    assert restored.report() == policy.report() and (restored.draw(3) == policy.draw(3)).all()


def test_a_share_that_pays_for_nothing_is_refused_before_training(kinds):
    policy, probe, _ = mates(kinds, share=1e-6)
    policy.tell_plan(Plan(100, 8, LENGTH, probe.learner.flops_per_row, 3))
    with pytest.raises(BadInput, match="smaller encoder"):
        policy.bind(probe)


def test_the_linear_model_keeps_its_state(toy):
    pool, target = toy
    model = NGramScorer(bits=8).build(pool, 1)
    found, flops = model.fit(np.arange(300), target[:300], 1)
    assert found["spearman"] > 0.8 and flops == model.fit_flops(np.arange(300), math.inf)
    other = NGramScorer(bits=8).build(pool, 2)
    other.load_state_dict(model.state_dict())
    assert (other.scores(np.arange(400)) == model.scores(np.arange(400))).all()
    other.model = Linear(np.zeros_like(other.model.weights), 0.0)
    assert not other.scores(np.arange(10)).any()


@pytest.fixture(scope="module")
def folder_and_pool(tmp_path_factory):
    """A tiny BERT that was never trained, with a vocabulary of letters, and a pool of text as bytes."""
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    import polars as pl
    from tokenizers import BertWordPieceTokenizer

    folder = tmp_path_factory.mktemp("bert")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{one}" for one in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(tokenizer_object=BertWordPieceTokenizer(str(folder / "vocab.txt"))._tokenizer,
                                   model_max_length=16).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=32, max_position_embeddings=16)
    transformers.BertModel(config).save_pretrained(folder)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcd ef" if number % 2 else "wxyz uv"), 30)) for number in range(80)]
    records = [{"id": str(number), "text": text, "source": "a", "license": None, "attribution": None, "metadata": None}
               for number, text in enumerate(texts)]
    pl.from_arrow(record_batch(records)).write_parquet(folder / "documents.parquet")
    tokenize_documents([folder / "documents.parquet"], TOKENIZERS["bytes"]().build([]), folder / "pool", 512)
    return folder, Pool.open(folder / "pool")


def test_an_encoder_from_a_folder_reads_text_anew_and_learns(folder_and_pool):
    folder, pool = folder_and_pool
    config = HuggingFaceEncoder(folder=folder, tokens=40, epochs=6, lr=1e-2, batch=8)
    model = config.build(pool, 1)
    ids = model.reader.ids(np.array([1]))[0]
    assert {"config.json", "model.safetensors"} <= {path.name for path in config.files()}
    assert ids[0] == 2 and len(ids) > 16  # starts with [CLS], and takes two rows of 16 and more
    target = np.where(np.arange(80) % 2, 1.0, -1.0)
    found, flops = model.fit(np.arange(80), target, 1)
    assert found["spearman"] > 0.7 and flops == model.fit_flops(np.arange(80)) > 0
    alone = np.concatenate([model.scores(np.array([unit])) for unit in (3, 8)])
    assert np.allclose(model.scores(np.array([3, 8])), alone, atol=1e-5)
    other = config.build(pool, 3)
    other.load_state_dict(model.state_dict())
    assert (other.scores(np.arange(10)) == model.scores(np.arange(10))).all()


def test_a_folder_without_an_encoder_is_refused(folder_and_pool, tmp_path):
    with pytest.raises(BadInput, match="holds no encoder that transformers can load"):
        HuggingFaceEncoder(folder=tmp_path).build(folder_and_pool[1], 1)
