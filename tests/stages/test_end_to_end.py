"""The whole road on a tiny corpus: pretraining, going on from an exported model, pools of tokens made elsewhere."""

import struct

import numpy as np
import pytest
from safetensors.torch import load_file
from stage_toys import LossWeigher, curve, tiny, write_corpus

from tilth.data.pool import Pool
from tilth.data.tokenizer import BytesTokenizer
from tilth.recipe import BadInput, Interrupted, parse
from tilth.recipe.files import read_json
from tilth.stages import Hardware, Recipe
from tilth.stages.building import Budget
from tilth.stages.runner import run_recipe


def changed(recipe: Recipe, name: str = "pretrain", **fields) -> Recipe:
    """The recipe with other fields of one stage."""
    data = recipe.model_dump(mode="json")
    data["stages"][name] |= fields
    return parse(Recipe, data)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus):
    """A finished run with an exported Llama folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    data = tiny(corpus).model_dump(mode="json")
    data["stages"]["export"] = {"kind": "export", "evaluation": None}
    recipe = parse(Recipe, data)
    run_recipe(recipe, folder)
    return recipe, folder


def test_run_trains_and_writes_what_it_promises(trained):
    _, folder = trained
    lines = curve(folder / "pretrain")
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, 13))
    assert training[-1]["loss"] < training[0]["loss"]
    assert [line["step"] for line in lines if "held_out" in line] == [5, 10, 12]
    summary = read_json(folder / "pretrain" / "manifest.json")["summary"]
    assert summary["steps"] == 12 and summary["tokens"] == training[-1]["tokens"]
    assert summary["held_out_bits_per_byte"] == lines[-1]["held_out"]["bits_per_byte"]
    for name in ("report.html", "recipe.yaml", "pretrain/model/model.safetensors", "export/model/config.json"):
        assert (folder / name).is_file()


def test_same_recipe_gives_the_same_bytes_and_micro_rows_do_not_matter_much(tmp_path, trained):
    recipe, folder = trained
    run_recipe(recipe, tmp_path / "again")
    assert curve(tmp_path / "again" / "pretrain") == curve(folder / "pretrain")
    model = "pretrain/model/model.safetensors"
    assert (tmp_path / "again" / model).read_bytes() == (folder / model).read_bytes()
    run_recipe(recipe, tmp_path / "split", Hardware(micro_rows=1))
    for one, other in zip(curve(tmp_path / "split" / "pretrain"), curve(folder / "pretrain"), strict=True):
        assert one["step"] == other["step"]
        assert "loss" not in one or one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_export_stores_the_trained_weights(trained):
    _, folder = trained
    ours = load_file(folder / "pretrain" / "model" / "model.safetensors")
    theirs = load_file(folder / "export" / "model" / "model.safetensors")
    assert (ours["embedding.weight"] == theirs["model.embed_tokens.weight"]).all()


def test_continued_pretraining_starts_where_the_exported_model_ended(tmp_path, trained):
    recipe, folder = trained
    model = str(folder / "export" / "model")
    onward = changed(changed(recipe, "tokenize", tokenizer={"kind": "file", "path": model}),
                     start_from=model, optimizer={"kind": "adamw", "lr": 1e-9}, budget={"steps": 1})
    run_recipe(onward, tmp_path / "onward")
    end = curve(folder / "pretrain")[-1]["held_out"]
    start = curve(tmp_path / "onward" / "pretrain")[-1]["held_out"]
    assert start["bits_per_byte"] == pytest.approx(end["bits_per_byte"], rel=1e-5)
    fresh = changed(onward, start_from=None)
    run_recipe(fresh, tmp_path / "fresh")
    untrained = curve(tmp_path / "fresh" / "pretrain")[-1]["held_out"]["bits_per_byte"]
    assert start["bits_per_byte"] < untrained - 0.1


def test_start_from_a_model_of_a_smaller_vocabulary_is_refused(tmp_path, trained):
    recipe, folder = trained
    data = changed(recipe, start_from=str(folder / "export" / "model"), budget={"steps": 1}).model_dump(mode="json")
    data["stages"]["tokenize"]["tokenizer"] = {"kind": "bpe", "vocab_size": 270}
    with pytest.raises(BadInput, match=r"knows 257 tokens.*tokenize with the model's own"):
        run_recipe(parse(Recipe, data), tmp_path)


def test_changed_corpus_trains_again(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus")
    recipe = tiny(corpus, held_out=False, budget={"steps": 2})
    run_recipe(recipe, tmp_path / "run")
    before = curve(tmp_path / "run" / "pretrain")
    run_recipe(recipe, tmp_path / "run")
    assert "pretrain: finished before" in capsys.readouterr().err
    (corpus / "000.txt").write_text("Something else entirely, for a change. " * 40)
    run_recipe(recipe, tmp_path / "run")
    said = capsys.readouterr().err
    for stage, why in (("curate", "000.txt"), ("tokenize", "curate"), ("pretrain", "tokenize")):
        line = next(line for line in said.splitlines() if line.startswith(f"{stage}: run again"))
        assert why in line
    assert curve(tmp_path / "run" / "pretrain") != before


def test_weigher_from_outside_that_asks_for_losses_sees_the_global_batch(tmp_path, corpus, monkeypatch):
    seen = []
    plain = LossWeigher.weights
    monkeypatch.setattr(LossWeigher, "weights", lambda self, batch, losses: (
        seen.append((len(losses), len(batch["unit_id"]))), plain(self, batch, losses))[1])
    recipe = tiny(corpus, held_out=False, budget={"steps": 3}, policy={"weigher": {"kind": "stage_toys:ByLoss"}})
    run_recipe(recipe, tmp_path / "run", Hardware(micro_rows=2))
    assert len(seen) == 3, "once a step, not once a micro-batch"
    assert all(losses == units > 2 for losses, units in seen)
    plain_recipe = tiny(corpus, held_out=False, budget={"steps": 3})
    run_recipe(plain_recipe, tmp_path / "plain", Hardware(micro_rows=2))
    weighed, unweighed = curve(tmp_path / "run" / "pretrain"), curve(tmp_path / "plain" / "pretrain")
    assert weighed[0]["loss"] == pytest.approx(unweighed[0]["loss"]), "the loss reported is not the weighted one"
    assert weighed[0]["gradient_norm"] != pytest.approx(unweighed[0]["gradient_norm"], rel=1e-4)


# Tokens made elsewhere.


def documents(corpus):
    tokenizer = BytesTokenizer().build([])
    return tokenizer, [np.append(tokenizer.encode(path.read_text()), tokenizer.end_of_text)
                       for path in sorted(corpus.glob("*.txt"))]


def write_megatron(stem, parts, dtype=np.uint16, code=8):
    np.concatenate(parts).astype(dtype).tofile(f"{stem}.bin")
    sizes = np.array([len(part) for part in parts], np.int32)
    pointers = (np.cumsum(sizes, dtype=np.int64) - sizes) * np.dtype(dtype).itemsize
    with open(f"{stem}.idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(parts), len(parts) + 1))
        file.write(sizes.tobytes() + pointers.tobytes() + np.arange(len(parts) + 1, dtype=np.int64).tobytes())


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory, corpus):
    """The corpus as .npy, as Megatron's pair, and its tokenizer."""
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer, parts = documents(corpus)
    tokenizer.save(folder / "tokenizer")
    np.save(folder / "corpus.npy", np.concatenate(parts).astype(np.uint16))
    write_megatron(folder / "corpus", parts)
    return folder, tokenizer.end_of_text


@pytest.mark.parametrize("form", ["npy", "megatron"])
def test_tokens_made_elsewhere_train_like_the_text(tmp_path, corpus, tokenized, form):
    folder, end = tokenized
    files = {"npy": {"path": str(folder / "corpus.npy"), "document_end": end},
             "megatron": {"path": str(folder / "corpus")}}
    data = tiny(corpus).model_dump(mode="json")
    del data["stages"]["curate"]
    data["stages"]["tokenize"] |= {"input": None, "tokens": [files[form]], "held_out_share": 0.2,
                                   "tokenizer": {"kind": "file", "path": str(folder / "tokenizer")}}
    run_recipe(parse(Recipe, data), tmp_path / "run")
    pool, held_out = (Pool.open(tmp_path / "run" / "tokenize" / part) for part in ("", "held_out"))
    _, parts = documents(corpus)
    assert len(pool.values("tokens")) + len(held_out.values("tokens")) == sum(map(len, parts))
    lines = curve(tmp_path / "run" / "pretrain")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 12 and losses[-1] < losses[0]
    assert 0 < lines[-1]["held_out"]["bits_per_byte"] < 8


def test_both_forms_of_the_same_tokens_give_the_same_pool(tmp_path, corpus, tokenized):
    folder, end = tokenized
    pools = []
    for name, item in (("a", {"path": str(folder / "corpus.npy"), "document_end": end}),
                       ("b", {"path": str(folder / "corpus.idx")})):
        stage = {"kind": "tokenize", "input": None, "unit_tokens": 40, "held_out_share": 0.2, "tokens": [item],
                 "tokenizer": {"kind": "file", "path": str(folder / "tokenizer")}}
        run_recipe(parse(Recipe, {"name": "tokens", "stages": {"tokenize": stage}}), tmp_path / name)
        pools.append([Pool.open(tmp_path / name / "tokenize" / part).values("tokens").tolist()
                      for part in ("", "held_out")])
    assert pools[0] == pools[1]


def test_tokens_without_their_tokenizer_are_refused(tmp_path, tokenized):
    stage = {"kind": "tokenize", "input": None, "tokens": [{"path": str(tokenized[0] / "corpus.npy")}]}
    with pytest.raises(BadInput, match="name it, with tokenizer"):
        run_recipe(parse(Recipe, {"name": "tokens", "stages": {"tokenize": stage}}), tmp_path)


# Budgets.


@pytest.mark.parametrize(("budget", "steps"), [
    ({"steps": 7}, 7), ({"tokens": 1000}, 10), ({"tokens": 1099}, 10), ({"epochs": 2}, 100), ({"flops": 450}, 9),
    ({"minutes": 1}, 30), ({"steps": 7, "tokens": 1000, "epochs": 2, "flops": 450, "minutes": 1}, 7),
    ({"steps": 70, "tokens": 1000, "epochs": 2, "flops": 450, "minutes": 1}, 9),
    ({"steps": 70, "tokens": 1000, "epochs": 0.1, "flops": 1e9}, 5), ({"tokens": 3}, 1)])
def test_smallest_limit_counts(budget, steps):
    assert Budget(**budget).in_steps(batch_tokens=100, flops_per_step=50, pool_tokens=5000,
                                     seconds_per_step=2.0) == steps


def test_budget_without_a_limit_is_refused():
    with pytest.raises(BadInput, match="at least one of tokens, epochs, steps"):
        parse(Budget, {})


@pytest.mark.parametrize("budget", [{"tokens": 3 * 128, "steps": 50}, {"epochs": 0.1}, {"minutes": 0.001}])
def test_budget_is_decided_once_and_written_down(tmp_path, corpus, budget):
    recipe = tiny(corpus, held_out=False, budget=budget)
    (tmp_path / "run").mkdir()
    run_recipe(recipe, tmp_path / "run")
    decided = read_json(tmp_path / "run" / "pretrain" / "budget.json")
    assert len(curve(tmp_path / "run" / "pretrain")) == decided["steps"]
    if "epochs" in budget:
        tokens = read_json(tmp_path / "run" / "tokenize" / "manifest.json")["summary"]["tokens"]
        assert decided["steps"] == int(0.1 * tokens / 128)
    if "tokens" in budget:
        assert decided["steps"] == 3


def test_stopped_run_says_the_command_to_go_on(tmp_path, corpus, monkeypatch):
    import signal

    from tilth.stages.held_out import HeldOutHook
    real = HeldOutHook.__call__
    monkeypatch.setattr(HeldOutHook, "__call__", lambda self, loop: (
        signal.raise_signal(signal.SIGUSR1) if loop.at.step == 5 else None, real(self, loop))[1])
    with pytest.raises(Interrupted, match=r"SIGUSR1 at step 5 of 12.*tilth run tiny"):
        run_recipe(tiny(corpus), tmp_path / "run", command="tilth run tiny")
    assert (tmp_path / "run" / "pretrain" / "checkpoints" / "step-00000005").is_dir()
