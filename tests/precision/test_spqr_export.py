"""The layout of SpQR's inference library: read back by its own rules, and loaded by transformers' integration."""

import importlib
import json
import sys
import types

import numpy as np
import pytest
import torch
from precision_toys import small, tokens
from safetensors.torch import load_file

from tilth.data.tokenizer import BytesTokenizer
from tilth.precision.calibrate import compress_model
from tilth.precision.spqr_words import misfit, to_words
from tilth.precision.weights import GPTQ, RoundToNearest, SpQR
from tilth.recipe import BadInput
from tilth.stages.compressed_folder import load_compressed, save_compressed
from tilth.stages.export import export


def read_words(rows, columns, dense_weights, row_offsets, col_vals, in_perm):
    """The matrix, (rows, columns) float16 in the layer's own order, by a plain reading of the library's rules."""
    words, result = dense_weights.numpy().view(np.uint64), np.zeros((rows, columns), np.float16)

    def bits(word, at, count):
        return int(word) >> at & (1 << count) - 1

    for tile in range(rows * columns // 256):
        first_row, first_column = tile // (columns // 16) * 16, tile % (columns // 16) * 16
        part = words[16 * tile : 16 * tile + 16]
        whole = sum(bits(part[2 * byte], 54, 8) << 8 * byte for byte in range(8))
        assert all(bits(part[2 * byte], 54, 10) == bits(part[2 * byte + 1], 54, 8) for byte in range(8))
        ss, zs, sz, zz = np.array([whole >> 16 * place & 0xFFFF for place in range(4)], np.uint16).view(np.float16)
        for row in range(16):
            s = ss * (np.float16(bits(part[row], 0, 3)) - sz)
            z = zs * (np.float16(bits(part[row], 3, 3)) - zz)
            for column in range(16):
                code = np.float16(bits(part[row], 6 + 3 * column, 3))
                result[first_row + row, first_column + column] = s * (code - z)
    pairs, ends = col_vals.numpy().view(np.uint32), row_offsets.numpy()
    for row in range(rows):
        for pair in pairs[ends[row] : ends[row + 1]]:
            result[row, int(pair) & 0xFFFF] += np.array([int(pair) >> 16], np.uint16).view(np.float16)[0]
    order = in_perm.numpy().view(np.uint16)
    own = np.empty_like(result)
    own[:, order if len(order) else slice(None)] = result
    return torch.from_numpy(own)


class QuantizedLinear(torch.nn.Module):
    """Stands in for `spqr_quant.QuantizedLinear`, whose kernels need a GPU."""

    def __init__(self, rows, cols, shapes):
        super().__init__()
        self.rows, self.cols = rows, cols
        for name, (shape, dtype) in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False))

    @staticmethod
    def create_placeholder(rows, cols, bits, beta1, beta2, dense_weights_shape, row_offsets_shape, col_vals_shape,
                           in_perm_shape):
        assert (bits, beta1, beta2) == (3, 16, 16)
        return QuantizedLinear(rows, cols, {
            "dense_weights": (dense_weights_shape, torch.int64), "row_offsets": (row_offsets_shape, torch.int32),
            "col_vals": (col_vals_shape, torch.int32), "in_perm": (in_perm_shape, torch.int32)})

    def forward(self, x):
        return x @ read_words(self.rows, self.cols, *self.parameters()).to(x.dtype).T


class Nested(dict):
    """Children of a module, and those of its children by their dotted names."""

    def __init__(self, children, model):
        super().__init__(children)
        self.model = model

    def __missing__(self, name):
        return self.model.get_submodule(name)


@pytest.fixture
def folder(tmp_path):
    model = small(vocab_size=257)
    method = SpQR(bits=3, tau=0.1)
    compress_model(model, method, [{"tokens": tokens()}])
    save_compressed(tmp_path / "model", model, BytesTokenizer().build([]), method)
    return tmp_path / "model"


def test_words_hold_the_matrix_to_16_bits(folder):
    layer = load_compressed(folder).blocks[0].feed_forward.down
    words = to_words(layer.matrix)
    assert layer.matrix.outliers and len(words["in_perm"]) == layer.in_features // 2
    found = read_words(layer.out_features, layer.in_features, *words.values()).float()
    assert torch.allclose(found, layer.matrix.weight(), atol=4e-3 * float(found.abs().max()))


def test_transformers_integration_loads_the_export_and_computes_the_same(folder, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="pip install 'tilth[hf]'")
    importlib.import_module("transformers.quantizers.auto")  # else its integrations import one another in a circle
    from transformers.integrations import spqr as integration
    monkeypatch.setitem(sys.modules, "spqr_quant", types.SimpleNamespace(QuantizedLinear=QuantizedLinear))
    monkeypatch.setattr(integration, "is_spqr_available", lambda: True)
    export(folder, tmp_path / "out", layout="spqr")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    settings = transformers.SpQRConfig(**{key: value for key, value in written.pop("quantization_config").items()
                                          if key != "quant_method"})
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**written)).eval()
    # transformers 5.24 looks the dotted name up among the model's direct children
    theirs._modules = Nested(theirs._modules, theirs)
    integration.replace_with_spqr_linear(theirs, settings.modules_to_not_convert, settings)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    missing, unexpected = theirs.load_state_dict(stored, strict=False, assign=True)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    text = tokens()[:1, :6]
    with torch.no_grad():
        assert torch.allclose(theirs.float()(text).logits, load_compressed(folder)(text), atol=0.05, rtol=0.02)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("a b")["input_ids"]


@pytest.mark.parametrize("method, says", [
    (SpQR(bits=4), "bits is 4"), (SpQR(bits=3, group=32), "group is 32"), (SpQR(bits=3, tile_rows=32), "tile_rows"),
    (GPTQ(bits=3, group=16), "tile_rows is None"), (RoundToNearest(bits=3, group=16), "tile_rows is None"),
    (SpQR(bits=3, zero_bits=4), "zero_bits is 4"),
])
def test_what_the_layout_does_not_hold_is_refused_by_name(method, says, tmp_path):
    model = small(vocab_size=257)
    compress_model(model, method, [{"tokens": tokens()}])
    save_compressed(tmp_path / "model", model, BytesTokenizer().build([]), method)
    with pytest.raises(BadInput, match=says):
        export(tmp_path / "model", tmp_path / "out", layout="spqr")
    assert not (tmp_path / "out").exists()


def test_shapes_and_plain_models_are_refused(tmp_path):
    assert "not a multiple of 16" in misfit(SpQR(bits=3).layout(32, 40, 1.0))
    assert misfit(SpQR(bits=3).layout(32, 48, 1.0)) is None
    from tilth.stages.model_folder import save_model
    save_model(tmp_path / "plain", small(vocab_size=257), BytesTokenizer().build([]))
    with pytest.raises(BadInput, match="make one with tilth compress"):
        export(tmp_path / "plain", tmp_path / "out", layout="spqr")
    with pytest.raises(BadInput, match="choose llama or spqr"):
        export(tmp_path / "plain", tmp_path / "out", layout="gguf")
