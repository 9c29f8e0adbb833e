"""Llama folders: equal logits in transformers both ways, bit-equal round trips, refusals by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tilth.models import TransformerConfig, export_llama, import_llama
from tilth.recipe import BadInput

END = "<|endoftext|>"
SHAPES = {
    "grouped, tied": {"kv_heads": 2},
    "untied": {"tied": False, "rope_theta": 500000.0},
    "wide heads": {"head_width": 24, "kv_heads": 1, "norm_epsilon": 1e-6},
    "biases": {"biases": True, "feed_forward": 40, "tied": False},
}


def small(**changes):
    fields = {"vocab_size": 300, "layers": 2, "width": 32, "heads": 4, "context": 64, "init_std": 0.2}
    model = TransformerConfig(**{**fields, **changes}).build().initialize(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # norms and biases too must matter
    return model


@pytest.fixture(scope="module")
def hf():
    return pytest.importorskip("transformers", reason="compares with transformers: pip install 'tilth[hf]'")


@pytest.fixture
def tokenizer_json(tmp_path):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(["to till the field", "the tilth of a field"], trainers.BpeTrainer(
        vocab_size=290, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    tokenizer.save(str(tmp_path / "source.json"))
    return tmp_path / "source.json"


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_computes_the_same_logits(hf, tmp_path, shape):
    model, tokens = small(**SHAPES[shape]).eval(), torch.randint(0, 300, (2, 40))
    export_llama(model, tmp_path)
    theirs, info = hf.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.allclose(theirs(tokens).logits, model(tokens), atol=1e-4)


@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_their_folders_compute_the_same_logits_here(hf, tmp_path, family):
    fields = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    fields |= {"sliding_window": None} if family == "Mistral" else {"attention_bias": True, "mlp_bias": True}
    torch.manual_seed(0)
    config = getattr(hf, f"{family}Config")(initializer_range=0.2, **fields)
    theirs = getattr(hf, f"{family}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours_config, ours = import_llama(tmp_path)
    tokens = torch.randint(0, 300, (2, 40))
    with torch.no_grad():
        assert torch.allclose(theirs(tokens).logits, ours(tokens), atol=1e-4)
    assert ours_config.layers == 3 and ours_config.norm_epsilon == 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_a_round_trip_keeps_every_bit(tmp_path, shape):
    model = small(**SHAPES[shape])
    export_llama(model, tmp_path)
    config, back = import_llama(tmp_path)
    assert config.sizes() == model.config.sizes() and config.parameters() == model.config.parameters()
    state = back.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_the_tokenizer_comes_along(hf, tmp_path, tokenizer_json):
    export_llama(small(), tmp_path / "out", tokenizer_json_path=tokenizer_json, end_of_text=END, dtype="bfloat16")
    theirs, ours = hf.AutoTokenizer.from_pretrained(tmp_path / "out"), Tokenizer.from_file(str(tokenizer_json))
    for text in ("the tilth", " a\n\tfield – über", END):
        ids = ours.encode(text).ids
        assert theirs(text)["input_ids"] == ids and theirs.decode(ids) == text
    assert theirs.eos_token_id == theirs.bos_token_id == ours.token_to_id(END)
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16 and model.generation_config.eos_token_id == ours.token_to_id(END)


@pytest.mark.parametrize("changes, field", [
    ({"positions": "learned"}, "positions"), ({"norm": "layer"}, "norm"), ({"activation": "gelu"}, "activation"),
    ({"qk_norm": True}, "qk_norm"), ({"attention": "prefix"}, "attention"),
    ({"cross_attention": True}, "cross_attention"),
])
def test_what_is_no_llama_is_refused_and_nothing_written(tmp_path, changes, field):
    with pytest.raises(BadInput, match=f"`{field}`"):
        export_llama(small(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model_is_refused(tmp_path, tokenizer_json):
    with pytest.raises(BadInput, match="vocab_size is 100"):
        export_llama(small(vocab_size=100), tmp_path / "out", tokenizer_json_path=tokenizer_json)
    with pytest.raises(BadInput, match="no token '<eos>'"):
        export_llama(small(), tmp_path / "out", tokenizer_json_path=tokenizer_json, end_of_text="<eos>")


@pytest.mark.parametrize("changes, key", [
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_parameters"),
    ({"hidden_act": "gelu"}, "hidden_act"), ({"attention_bias": True}, "attention_bias"),
    ({"architectures": ["GPT2LMHeadModel"]}, "architectures"), ({"sliding_window": 16}, "sliding_window"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"), ({"hidden_size": None}, "hidden_size"),
])
def test_what_cannot_be_imported_is_refused_by_key(tmp_path, changes, key):
    export_llama(small(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(BadInput, match=f"`{key}`"):
        import_llama(tmp_path)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    export_llama(small(), tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "model.norm.weight": torch.ones(3)}, path)
    with pytest.raises(BadInput, match=r"model\.norm\.weight has shape"):
        import_llama(tmp_path)
    save_file({name: tensor for name, tensor in weights.items() if name != "model.norm.weight"}, path)
    with pytest.raises(BadInput, match=r"lacks 1 weights.*model\.norm\.weight"):
        import_llama(tmp_path)
    save_file({**weights, "extra": torch.ones(1)}, path)
    with pytest.raises(BadInput, match="extra"):
        import_llama(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match="not a whole safetensors file"):
        import_llama(tmp_path)


def test_pickles_and_paths_outside_are_never_opened(tmp_path):
    export_llama(small(), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInput, match="pickle"):
        import_llama(tmp_path)
    index = {"weight_map": {"model.norm.weight": "../other/model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match="beside it"):
        import_llama(tmp_path)
