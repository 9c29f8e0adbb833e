"""The streams that a `train` stage can name."""

from tilth.data.functions import FunctionsConfig
from tilth.data.streams import StreamConfig
from tilth.recipe.frame import one_of

STREAMS: dict[str, "type[StreamConfig] | str"] = {"functions": FunctionsConfig}
StreamChoice = one_of(StreamConfig, STREAMS)
