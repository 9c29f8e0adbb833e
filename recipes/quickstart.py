"""A small language model of the Python standard library: real text that every machine with Python carries."""

from tilth.curate.rules import Keep, Normalize
from tilth.data.stdlib import StdlibInput
from tilth.data.tokenizer import BpeTokenizer
from tilth.models import TransformerConfig
from tilth.optim import WSD, Muon
from tilth.stages import Recipe
from tilth.stages.building import Budget
from tilth.stages.curate import CurateStage
from tilth.stages.evaluate import EvaluateStage
from tilth.stages.export import ExportStage
from tilth.stages.pretrain import PretrainStage
from tilth.stages.tokenize import TokenizeStage


def recipe() -> Recipe:
    """Sized for two CPU cores and about ten minutes."""
    return Recipe(name="quickstart", stages={
        "curate": CurateStage(inputs=[StdlibInput()], rules=[Normalize(), Keep(attribute="characters", minimum=200)]),
        "tokenize": TokenizeStage(tokenizer=BpeTokenizer(vocab_size=4096), unit_tokens=512),
        "pretrain": PretrainStage(
            model=TransformerConfig(layers=4, width=192, heads=3, feed_forward=512, context=1024),
            optimizer=Muon(lr=1e-2), schedule=WSD(warmup=0.02, decay=0.6), length=512, batch_tokens=4096,
            budget=Budget(tokens=2e6)),
        "evaluate": EvaluateStage(stride=256),
        "export": ExportStage(),
    })
