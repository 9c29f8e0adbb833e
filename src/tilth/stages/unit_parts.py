"""What a `train` stage can name: streams of units, and what is measured of the model at the end."""

from tilth.data.functions import FunctionsConfig
from tilth.data.streams import StreamConfig
from tilth.evaluate.measures import Measure
from tilth.recipe.frame import one_of

STREAMS: dict[str, "type[StreamConfig] | str"] = {"functions": FunctionsConfig,
                                                  "pairs": "tilth.stages.pairs:PairsStream"}
StreamChoice = one_of(StreamConfig, STREAMS)
MEASURES: dict[str, "type[Measure] | str"] = {"in_context": "tilth.evaluate.in_context:InContext",
                                              "zero_shot": "tilth.analyze.zero_shot:ZeroShot",
                                              "pair_retrieval": "tilth.analyze.pair_retrieval:PairRetrieval"}
