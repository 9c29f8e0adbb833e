"""Whole models: calibration block by block, the folder and its accounting, the command, the stage."""

import json
import shutil

import pytest
import torch
from precision_toys import small, texts, tokens
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tilth.cli import app
from tilth.data.tokenizer import BytesTokenizer
from tilth.models import export_llama
from tilth.precision.calibrate import compress_model, linears
from tilth.precision.hessian import Hessian, factorize
from tilth.precision.linear import CompressedLinear, compressed_layers, expand
from tilth.precision.weights import GPTQ, RoundToNearest, SpQR
from tilth.recipe import BadInput, parse
from tilth.recipe.files import read_json
from tilth.stages import Recipe
from tilth.stages.compressed_folder import load_compressed, save_compressed
from tilth.stages.model_folder import load_model, save_model
from tilth.stages.runner import run_recipe

METHODS = {"spqr": SpQR(bits=3, tau=0.1), "gptq": GPTQ(bits=4, group=16), "rtn": RoundToNearest(bits=4, group=16)}
LAYERS = ["attention.query", "attention.key", "attention.value", "attention.out", "feed_forward.gate",
          "feed_forward.up", "feed_forward.down"]


def run(*arguments):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_folder_gives_back_the_model_to_the_bit_and_its_bits_are_those_on_disk(method, tmp_path):
    model = small()
    reports = compress_model(model, method, [{"tokens": tokens()}])
    assert list(reports) == [f"blocks.{index}.{name}" for index in range(2) for name in LAYERS]
    logits = model(tokens())
    bits = save_compressed(tmp_path / "out", model, None, method, "float32")
    back = load_compressed(tmp_path / "out")
    assert torch.equal(back(tokens()), logits)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert sum(bits["bytes"].values()) == size
    assert bits["parameters"] == sum(parameter.numel() for parameter in small().parameters())
    assert bits["per_parameter"] == 8 * size / bits["parameters"]
    assert bits["per_weight"] == 8 * (size - bits["bytes"]["rest"]) / bits["weights"]
    assert bits["weights"] == sum(layer.weight.numel() for layer in linears(small().blocks).values())
    assert torch.allclose(expand(back)(tokens()), logits, atol=1e-5) and not compressed_layers(back)


def test_each_layer_sees_what_the_compressed_ones_before_it_put_out():
    """The last block's query, done by hand: its inputs come from the model whose earlier layers are compressed."""
    model, batches = small(), [{"tokens": tokens()[:3]}, {"tokens": tokens()[3:]}]
    compress_model(model, SpQR(bits=3), batches)
    weight = small().blocks[1].attention.query.weight.detach()
    hessian = Hessian(weight.shape[1])
    inputs = []
    handle = model.blocks[1].attention.query.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    for batch in batches:
        with torch.no_grad():
            model(batch["tokens"])
        hessian.add(inputs.pop().flatten(0, 1), len(batch["tokens"]))
    handle.remove()
    expected = SpQR(bits=3).compress(weight, factorize(hessian.matrix, 0.01)).matrix
    assert torch.equal(model.blocks[1].attention.query.matrix.weight(), expected.weight())


def test_layers_that_read_one_tensor_share_an_order_and_it_is_stored_once(tmp_path):
    model = small()
    compress_model(model, SpQR(bits=3), [{"tokens": tokens()}])
    orders = [model.blocks[0].get_submodule(name).matrix.tensors["order"] for name in LAYERS[:3]]
    assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])
    save_compressed(tmp_path / "out", model, None, SpQR(bits=3))
    stored = [name for name in load_file(tmp_path / "out" / "model.safetensors") if name.endswith("order")]
    assert len(stored) == 8


def test_padding_and_neighbouring_units_do_not_count():
    text = tokens()[:1, :40]
    alone, padded = small(), small()
    compress_model(alone, SpQR(bits=3), [{"tokens": text}])
    units = torch.cat([torch.zeros(1, 40, dtype=torch.long), torch.full((1, 24), -1)], 1)
    batch = {"tokens": torch.cat([text, tokens()[1:2, :24]], 1), "unit_index": units,
             "positions": torch.cat([torch.arange(40), torch.arange(24)])[None]}
    compress_model(padded, SpQR(bits=3), [batch])
    for one, other in zip(compressed_layers(alone).values(), compressed_layers(padded).values(), strict=True):
        assert torch.allclose(one.matrix.weight(), other.matrix.weight(), atol=1e-4)


def test_the_same_text_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        model = small()
        compress_model(model, SpQR(bits=3), [{"tokens": tokens()}])
        save_compressed(tmp_path / name, model, None, SpQR(bits=3))
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_more_bits_lose_less_and_biases_stay():
    reference = small(biases=True)
    logits = reference(tokens())
    lost = []
    for method in (SpQR(bits=2, tau=None), SpQR(bits=3), SpQR(bits=4), SpQR(bits=8)):
        model = small(biases=True)
        compress_model(model, method, [{"tokens": tokens()}])
        layer = model.blocks[1].feed_forward.down
        assert torch.equal(layer.bias, reference.blocks[1].feed_forward.down.bias)
        lost.append(float((model(tokens()) - logits).detach().norm()))
    assert lost == sorted(lost, reverse=True)


def test_what_cannot_be_compressed_is_refused():
    with pytest.raises(BadInput, match="choose rtn"):
        compress_model(small(), SpQR())
    with pytest.raises(BadInput, match="cross_attention"):
        compress_model(small(cross_attention=True), SpQR(), [{"tokens": tokens()}])
    with pytest.raises(BadInput, match="no `blocks`"):
        compress_model(torch.nn.Linear(2, 2), RoundToNearest())
    model = small()
    model.blocks[1].attention.out.weight.data[0, 0] = torch.nan
    with pytest.raises(BadInput, match=r"blocks\.1\.attention\.out\.weight"):
        compress_model(model, RoundToNearest())
    assert not compressed_layers(model), "and nothing was changed"
    model = small()
    model.embedding.weight.data[5] = 1e5
    compress_model(model, RoundToNearest())
    with pytest.raises(BadInput, match=r"embedding.*float16 does not hold"):
        save_compressed("nowhere", model, None, RoundToNearest())


def test_damaged_folders_are_refused(tmp_path):
    model = small()
    compress_model(model, SpQR(bits=3, tau=0.1), [{"tokens": tokens()}])
    save_compressed(tmp_path / "out", model, None, SpQR(bits=3))
    path = tmp_path / "out" / "model.safetensors"
    whole = load_file(path)
    pointers = next(name for name in whole if name.endswith("outlier_rows"))
    last = whole[pointers].clone()
    last[-1] += 1
    order = next(name for name in whole if name.endswith("order"))
    for change in ({pointers: last}, {order: whole[order].fill_(255)},
                   {"blocks.0.attention.key.codes": torch.zeros(3, dtype=torch.uint8)}):
        save_file({**load_file(path), **whole, **change}, tmp_path / "bad.safetensors")
        shutil.copytree(tmp_path / "out", tmp_path / "copy", dirs_exist_ok=True)
        (tmp_path / "bad.safetensors").replace(tmp_path / "copy" / "model.safetensors")
        with pytest.raises(BadInput, match="do not fit its layout"):
            load_compressed(tmp_path / "copy")
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "norm.weight"},
              tmp_path / "copy" / "model.safetensors")
    with pytest.raises(BadInput, match=r"lacks norm\.weight"):
        load_compressed(tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(BadInput, match="cannot be read"):
        load_compressed(tmp_path / "copy")


def test_a_compressed_layer_multiplies_as_its_weight_does():
    torch.manual_seed(0)
    weight, x = torch.randn(10, 24), torch.randn(2, 3, 24)
    hessian = Hessian(24)
    hessian.add(torch.randn(50, 24), 2)
    matrix = SpQR(bits=3, tau=0.05).compress(weight, factorize(hessian.matrix)).matrix
    layer = CompressedLinear(matrix, torch.ones(10))
    assert torch.allclose(layer(x), x @ matrix.weight().T + 1, atol=1e-4)
    assert layer(x.bfloat16()).dtype == torch.bfloat16 and "3 bits" in repr(layer)


def test_the_stage_compresses_what_a_recipe_trained(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(24):
        (corpus / f"{number}.txt").write_text(texts(number)[:1500])
    recipe = parse(Recipe, {"name": "tiny", "stages": {
        "curate": {"kind": "curate", "inputs": [{"kind": "files", "path": str(corpus)}],
                   "held_out": {"minimum_bytes": 600, "share": 0.3}},
        "tokenize": {"kind": "tokenize", "tokenizer": {"kind": "bytes"}, "unit_tokens": 40},
        "pretrain": {"kind": "pretrain", "model": {"kind": "transformer", "layers": 1, "width": 32, "heads": 2,
                                                   "feed_forward": 32, "context": 64},
                     "length": 32, "batch_tokens": 128, "budget": {"steps": 3}, "precision": "fp32"},
        "compress": {"kind": "compress", "method": {"kind": "spqr", "bits": 3}, "rows": 4},
        "export": {"kind": "export", "evaluation": None}}})
    summary = run_recipe(recipe, tmp_path / "run")["compress"]
    assert 3 < summary["bits"] < 8 and summary["bits_per_byte"]["before"] != summary["bits_per_byte"]["after"]
    assert compressed_layers(load_model(tmp_path / "run" / "compress")[0])
    # what a run means stays a plain model, and the command finds the run's text by itself, also from an export
    assert not compressed_layers(load_model(tmp_path / "run")[0])
    report = json.loads(run("compress", tmp_path / "run", "--bits", 3, "--rows", 4, "--length", 32, "-o",
                            tmp_path / "out", "--json").stdout.splitlines()[-1])
    assert report["before"]["held_out"]["bits_per_byte"]["value"] == pytest.approx(
        summary["bits_per_byte"]["before"], rel=1e-6)
    assert report["calibration_tokens"] == 4 * 32


class TestCommand:
    @pytest.fixture
    def folders(self, tmp_path):
        model = small(vocab_size=257, context=128)
        save_model(tmp_path / "tilth", model, BytesTokenizer().build([]))
        export_llama(model, tmp_path / "llama", tokenizer_json_path=tmp_path / "tilth" / "tokenizer.json",
                     end_of_text="<|endoftext|>")
        for name, seed in (("calibrate", 0), ("measure", 1)):
            (tmp_path / f"{name}.txt").write_text(texts(seed))
        return tmp_path

    @pytest.mark.parametrize("kind", ["tilth", "llama"])
    @pytest.mark.parametrize("method", ["spqr", "gptq", "rtn"])
    def test_compresses_measures_and_runs(self, folders, kind, method):
        group = [] if method == "spqr" else ["group=16"]
        text = [] if method == "rtn" else ["--calibration", folders / "calibrate.txt"]
        result = run("compress", folders / kind, *group, "--bits", 4, "--method", method, *text, "--data",
                     folders / "measure.txt", "--rows", 4, "-o", folders / "out", "--json")
        report = json.loads(result.stdout.splitlines()[-1])
        assert report == read_json(folders / "out" / "results.json")
        assert report["method"]["kind"] == method and 4 < report["bits"]["per_weight"] < 7
        before, after = (report[side]["held_out"]["bits_per_byte"]["value"] for side in ("before", "after"))
        assert before != after and abs(after / before - 1) < 0.05
        assert "bits a weight" in result.stderr and report["peak_memory_bytes"] > 0
        scored = run("evaluate", folders / "out", "--data", folders / "measure.txt", "--json")
        again = json.loads(scored.stdout.splitlines()[-1])["held_out"]["bits_per_byte"]["value"]
        assert again == pytest.approx(after, rel=1e-3)  # what is not compressed is in 16 bits on disk
        assert run("generate", folders / "out", "--prompt", "a", "--tokens", 3).exit_code == 0

    def test_both_kinds_of_folder_give_one_result(self, folders):
        for kind in ("tilth", "llama"):
            run("compress", folders / kind, "--calibration", folders / "calibrate.txt", "--rows", 4, "-o",
                folders / f"{kind}-out")
        stored = [load_file(folders / f"{kind}-out" / "model.safetensors") for kind in ("tilth", "llama")]
        assert stored[0].keys() == stored[1].keys()
        assert all(torch.equal(tensor, stored[1][name]) for name, tensor in stored[0].items())

    @pytest.mark.parametrize("arguments, says", [
        ([], "--calibration FILE"), (["tua=1"], "did you mean 'tau'"), (["--method", "awq"], "one of rtn, gptq, spqr"),
        (["--rest", "int8"], "float16, bfloat16, float32"),
        (["--calibration", "measure.txt", "--data", "measure.txt"], "scores would flatter"),
    ])
    def test_bad_input_is_told(self, folders, arguments, says, monkeypatch):
        monkeypatch.chdir(folders)
        with pytest.raises(BadInput, match=says):
            run("compress", "tilth", *arguments, "-o", "out")
        assert not (folders / "out").exists()

    def test_a_compressed_model_is_not_compressed_again_but_exported(self, folders):
        run("compress", folders / "tilth", "--method", "rtn", "-o", folders / "out")
        with pytest.raises(BadInput, match="compressed already"):
            run("compress", folders / "out", "--method", "rtn", "-o", folders / "twice")
        run("export", folders / "out", "-o", folders / "plain")
        same = [load_model(folders / name)[0](tokens()) for name in ("out", "plain")]
        assert torch.allclose(*same, atol=1e-4)
