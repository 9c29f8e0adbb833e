"""The model card: front matter that parses, and data that cannot break out of its cells."""

import yaml

from tilth.models import TransformerConfig, model_card


def card(**changes) -> str:
    facts = {"name": "small-python", "model": TransformerConfig(vocab_size=50).model_dump(), "parameters": 12345,
             "sources": [{"source": "python", "license": "PSF-2.0", "documents": 3, "bytes": 1000},
                         {"source": "prose", "license": "CC-BY-4.0"}],
             "languages": ["en"], "training": {"tokens": 1000000, "flops": 1.5e15, "seconds": None},
             "recipe": {"optimizer": {"lr": 0.001}},
             "scores": {"held_out": {"bits_per_byte": {"value": 1.4321, "stderr": 0.01, "n": 9}}}}
    return model_card(**{**facts, **changes})


def test_front_matter_is_yaml_with_licences_and_languages():
    front = yaml.safe_load(card().split("---")[1])
    assert front["license"] == ["cc-by-4.0", "other"] and front["license_name"] == "CC-BY-4.0, PSF-2.0"
    assert front["language"] == ["en"] and front["library_name"] == "transformers"


def test_facts_appear_in_tables():
    text = card()
    for fact in ("12,345 parameters", "| python | PSF-2.0 | 3 | 1,000 |", "| tokens | 1,000,000 |", "1.5e+15",
                 "| optimizer.lr | 0.001 |", "| 1.4321 | 0.01 | 9 |", "## Limitations"):
        assert fact in text.replace("&#95;", "_")
    assert "seconds" not in text


def test_names_from_data_are_plain_text():
    text = card(sources=[{"source": "a|b\n# <script>alert(1)</script> [x](y)", "license": 'x"\n- evil: 1'}])
    assert "<script>" not in text and "a&#124;b" in text
    assert yaml.safe_load(text.split("---")[1])["license"] == ["other"]


def test_nothing_known_is_said():
    text = model_card(name="m", model={}, parameters=1, sources=[])
    assert text.count("Not recorded.") == 4 and "None measured." in text
