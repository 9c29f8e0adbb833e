"""Baselines that read text or ask the model: what they select, what they hold back, and that they resume exactly."""

import json

import numpy as np
import polars as pl
import pytest
from select_toys import text_probe, train

from tilth.data.pool import Pool, PoolWriter, token_field
from tilth.data.records import record_batch
from tilth.data.tokenize import tokenize_documents
from tilth.data.tokenizer import TOKENIZERS
from tilth.models import TransformerConfig
from tilth.recipe import BadInput, parse
from tilth.select.perplexity import band
from tilth.select.policy import PolicyConfig
from tilth.select.protocols import Plan
from tilth.stages.losses import write_losses
from tilth.stages.model_folder import save_model

PROSE = "the cat sat on the mat and looked at the rain until the rain stopped falling on the roof of the old house "
NOISE = "x9 qz 77 kk#w 0f zzq 13 vv 4x jq qj 88 wq xz 09 "


def policy_of(pool, seed=3, **choices):
    return parse(PolicyConfig, choices).build(pool, seed)


def texts(words, count, seed):
    rng, words = np.random.default_rng(seed), words.split()
    return [" ".join(rng.choice(words, 30)) for _ in range(count)]


@pytest.fixture(scope="module")
def text_pool(tmp_path_factory):
    """60 units of prose and 60 of noise, with the bytes as tokens."""
    folder = tmp_path_factory.mktemp("text")
    records = [{"id": f"{source}{number}", "text": text, "source": source, "license": None, "attribution": None,
                "metadata": None} for source, words in (("prose", PROSE), ("noise", NOISE))
               for number, text in enumerate(texts(words, 60, 1))]
    pl.from_arrow(record_batch(records)).write_parquet(folder / "documents.parquet")
    tokenize_documents([folder / "documents.parquet"], TOKENIZERS["bytes"]().build([]), folder / "pool", 512)
    return Pool.open(folder / "pool")


@pytest.fixture(scope="module")
def prose_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("target") / "prose.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(PROSE, 30, 9)))
    return str(path)


@pytest.mark.parametrize("choice", [{"kind": "importance", "reference": {"sources": ["prose"], "share": 0.2}},
                                    {"kind": "importance", "average": True, "temperature": 0.1}, {"kind": "quality"}])
def test_what_is_like_the_target_is_chosen(text_pool, prose_file, choice):
    if choice["kind"] == "quality":
        choice = {**choice, "positive": prose_file}
    elif "reference" not in choice:
        choice = {**choice, "reference": {"path": prose_file}}
    policy = policy_of(text_pool, selector={**choice, "keep": 0.3})
    drawn = policy.draw(0)
    report = policy.report()["selector"]
    assert np.mean([text_pool.sources[source] == "prose" for source in text_pool.source[drawn]]) > 0.95
    assert report["selected"] == len(drawn) and report["selectivity"] > 0.5
    assert report["held_back"] == (0 if "path" in choice.get("reference", {"path": 0}) else
                                   int(parse(PolicyConfig, {"selector": {**choice, "keep": 0.3}}).selector.reference
                                       .held_back(text_pool, 3).sum()))
    assert (policy_of(text_pool, selector={**choice, "keep": 0.3}).draw(0) == drawn).all()


def test_quality_against_text_of_another_kind(text_pool, prose_file, tmp_path):
    (tmp_path / "noise.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts(NOISE, 30, 8)))
    selector = {"kind": "quality", "positive": str(tmp_path / "noise.jsonl"), "negative": prose_file, "keep": 0.3}
    drawn = policy_of(text_pool, selector=selector).draw(0)
    assert {text_pool.sources[source] for source in text_pool.source[drawn]} == {"noise"}
    lengths = text_pool.lengths()
    assert lengths[drawn].sum() / lengths.sum() == pytest.approx(0.3, abs=0.02)
    assert len(parse(PolicyConfig, {"selector": selector}).files()) == 2


def test_shuffled_scores_choose_at_random(pool, tmp_path):
    ids = pool.column("unit_id")
    pl.DataFrame({"unit_id": ids, "score": np.arange(len(ids)) * 1.0}).write_parquet(tmp_path / "s.parquet")
    selector = {"kind": "scores", "path": str(tmp_path / "s.parquet"), "keep": 0.2, "temperature": 1.0}
    report = policy_of(pool, selector=selector).report()["selector"]
    assert report["selected"] == 17 and 0.2 < report["selectivity"] < 0.95


def test_the_band_asks_the_model_once_and_resumes(pool):
    choices = {"selector": {"kind": "perplexity", "low": 0.2, "high": 0.6, "start": 1}, "stretch_units": 16}
    policy = policy_of(pool, **choices)
    probe, spent = text_probe(pool)
    train(probe, np.arange(80), 8)
    policy.bind(probe)
    policy.draw(0)
    assert spent.flops == 0
    losses = probe.losses(np.arange(len(pool)))
    spent.flops = 0.0
    drawn = policy.draw(1)
    inside = band(losses, 0.2, 0.6)
    assert inside[drawn].all() and policy.report()["selector"]["selected"] == inside.sum() == pytest.approx(34, abs=2)
    cost = spent.flops
    assert cost > 0
    restored = policy_of(pool, **choices)
    restored.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    assert (restored.draw(2) == policy.draw(2)).all() and spent.flops == cost
    plan = Plan(100, 4, 24, probe.learner.flops_per_row, 20)
    assert policy.selector.planned_flops(plan) == pytest.approx(cost, rel=0.1)


def test_the_band_without_a_model_is_an_error(pool):
    with pytest.raises(BadInput, match="asks the model being trained"):
        policy_of(pool, selector={"kind": "perplexity", "start": 0}).draw(0)
    with pytest.raises(BadInput, match="must be below high"):
        policy_of(pool, selector={"kind": "perplexity", "low": 0.8})


def test_losses_of_finished_models(text_pool, tmp_path):
    """`tilth losses` writes what the band and PreSelect read."""
    config = TransformerConfig(vocab_size=257, layers=1, width=16, heads=2, feed_forward=24, context=64)
    models = [config.build().initialize(seed) for seed in (0, 1)]
    for number, model in enumerate(models):
        save_model(tmp_path / f"m{number}" / "model", model, text_pool.tokenizer())
    made = write_losses([tmp_path / "m0", tmp_path / "m1"], text_pool.folder, tmp_path / "ladder.parquet", 0.5)
    alone = write_losses([tmp_path / "m1"], text_pool.folder, tmp_path / "one.parquet")
    forward = int(text_pool.lengths().sum()) * config.flops_per_token(64, training=False)
    assert 1 <= alone["flops"] / forward < 1.3 and 0.5 < made["flops"] / forward < 1.5  # some of each row is padding
    ladder, one = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("ladder", "one"))
    assert ladder.columns == ["unit_id", "m0", "m1"] and 30 < len(ladder) < 90 and len(one) == len(text_pool)
    joined = ladder.join(one, on="unit_id")
    assert np.allclose(joined["m1"], joined["score"], atol=1e-4) and (joined["m0"] != joined["m1"]).all()
    selector = {"kind": "perplexity", "path": str(tmp_path / "one.parquet"), "low": 0.5, "high": 1.0}
    drawn = policy_of(text_pool, selector=selector).draw(0)
    assert one["score"].to_numpy()[drawn].min() >= np.median(one["score"])
    ladder = {"kind": "preselect", "losses": str(tmp_path / "ladder.parquet"), "models": ["m0", "m1"], "keep": 0.3}
    assert len(policy_of(text_pool, selector=ladder).draw(0))


def test_losses_need_the_models_own_tokens(pool, tmp_path):
    config = TransformerConfig(vocab_size=257, layers=1, width=16, heads=2, feed_forward=24, context=64)
    save_model(tmp_path / "model", config.build().initialize(0), TOKENIZERS["bytes"]().build([]))
    with pytest.raises(BadInput, match="do not have the same tokenizer"):
        write_losses([tmp_path], pool.folder, tmp_path / "l.parquet")


def told(policy, losses):
    """The policy told that every unit of source s was trained with loss losses[s]."""
    units = np.arange(len(policy.pool))
    policy.observe(units, np.array(losses)[policy.pool.source[units]].astype(np.float32))


def test_doremi_moves_towards_excess_loss(pool):
    mixture = {"kind": "doremi", "step": 1.0, "smoothing": 0.0, "reference": {"big": 1.0, "small": 2.0, "tiny": 5.0}}
    policy = policy_of(pool, mixture=mixture)
    start = policy.mixture.weights(0).copy()
    told(policy, [1.5, 3.0, 4.0])  # excess 0.5, 1.0 and (below its reference) 0
    expected = start * np.exp([0.5, 1.0, 0.0])
    assert policy.mixture.weights(0) == pytest.approx(start)
    assert policy.mixture.weights(1) == pytest.approx(expected / expected.sum())
    restored = policy_of(pool, mixture=mixture)
    told(policy, [1.2, 2.0, 5.0])
    restored.load_state_dict(json.loads(json.dumps(policy.state_dict())))
    assert (restored.mixture.weights(2) == policy.mixture.weights(2)).all()
    assert restored.report() == policy.report()
    assert sum(policy.metrics().values()) == pytest.approx(1)


def test_doremi_smooths_and_keeps_what_it_has_not_seen(pool):
    policy = policy_of(pool, mixture={"kind": "doremi", "step": 50, "smoothing": 0.3})
    policy.mixture.weights(0)
    told(policy, [9.0, 1.0, 1.0])
    assert policy.mixture.weights(1) == pytest.approx([0.8, 0.1, 0.1])
    assert (policy.mixture.weights(2) == policy.mixture.weights(1)).all()


@pytest.mark.parametrize(("reference", "message"), [({"bigg": 1.0}, "'bigg'.*did you mean 'big'"),
                                                    ({"big": 1.0}, "no reference loss for small, tiny")])
def test_reference_losses_that_do_not_fit(pool, reference, message):
    with pytest.raises(BadInput, match=message):
        policy_of(pool, mixture={"kind": "doremi", "reference": reference})


def test_a_pool_of_token_ids_alone_is_enough(tmp_path):
    """Importance needs no tokenizer: tokens made elsewhere will do."""
    rng = np.random.default_rng(0)
    with PoolWriter(tmp_path, {"tokens": token_field(50)}, vocab_size=50, end_of_text=0) as writer:
        for source, low in (("a", 1), ("b", 25)):
            names = [f"{source}{number}" for number in range(40)]
            writer.append({"tokens": [rng.integers(low, low + 24, 20) for _ in names]},
                          {"unit_id": names, "record_id": names, "source": [source] * 40})
    pool = Pool.open(tmp_path)
    selector = {"kind": "importance", "keep": 0.3, "reference": {"sources": ["b"], "share": 0.25}}
    assert (pool.source[policy_of(pool, selector=selector).draw(0)] == 1).all()
