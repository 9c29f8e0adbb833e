"""What a stage is: a step of a recipe with typed fields, named inputs and a folder of its own."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from tilth.data.engines import Engine
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json
from tilth.recipe.frame import Config, nearest, one_of
from tilth.train.parallel import ParallelSettings
from tilth.train.processes import Processes


@dataclass
class Hardware:
    """Arguments of a run that are not part of what its result is. workers: processes for curation; engine: where
    they run; parallel: how training is spread over the processes that torchrun or srun started."""

    device: str = "auto"
    micro_rows: int | None = None
    workers: int = 1
    engine: Engine = "local"
    parallel: ParallelSettings = field(default_factory=ParallelSettings)


@dataclass
class Context:
    """What a stage gets beside its own fields. folder: the stage's; run: the run's; seed: the recipe's."""

    run: Path
    folder: Path
    seed: int = 0
    hardware: Hardware = field(default_factory=Hardware)
    command: str = ""
    processes: Processes = field(default_factory=Processes)

    def input(self, name: str) -> Path:
        """The folder of an earlier stage of the same run."""
        return self.run / name

    def summary(self, name: str) -> dict[str, Any]:
        """The summary that an earlier stage left in its manifest."""
        return read_json(self.input(name) / "manifest.json")["summary"]


class Stage(Config):
    """A stage of a recipe. `version` is raised by hand when the same fields begin to give another result."""

    version: ClassVar[int] = 1
    uses_seed: ClassVar[bool] = False
    every_process: ClassVar[bool] = False  # whether all processes of a run run it together, or the first alone
    kind: str = ""

    def reads(self) -> list[str]:
        """Names of the stages of the same recipe whose folders this one reads."""
        return []

    def files(self) -> Iterable[dict[str, Any]]:
        """`{path, size, sha256}` of the files from outside the run that this stage reads."""
        return []

    def run(self, context: Context) -> dict[str, Any]:
        """Do the work in `context.folder`, going on from what an interrupted run left there; returns a JSON summary."""
        raise TypeError(f"{type(self).__name__} does not define run.")


STAGES: dict[str, type[Stage] | str] = {
    "curate": "tilth.stages.curate:CurateStage",
    "tokenize": "tilth.stages.tokenize:TokenizeStage",
    "pretrain": "tilth.stages.pretrain:PretrainStage",
    "pairs": "tilth.stages.pairs:PairsStage",
    "train": "tilth.stages.train:TrainStage",
    "evaluate": "tilth.stages.evaluate:EvaluateStage",
    "compress": "tilth.stages.compress:CompressStage",
    "export": "tilth.stages.export:ExportStage",
}


class Recipe(Config):
    """The typed description of a whole run. Stage names are unique, and name the folders of the run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = 0
    stages: dict[str, one_of(Stage, STAGES)]  # type: ignore[valid-type]

    @field_validator("stages")
    @classmethod
    def _names(cls, stages: dict[str, Stage]) -> dict[str, Stage]:
        for name in stages:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in cls.model_fields:
                raise ValueError(f"'{name}' cannot name a stage (it becomes a folder, and part of a dotted key): use "
                                 f"letters, digits, - and _, and no field of the recipe")
        return stages

    def order(self) -> list[str]:
        """Stage names, each after the stages it reads; BadInput on an unknown name or a circle."""
        done: list[str] = []
        waiting = list(self.stages)
        while waiting:
            ready = [name for name in waiting if all(one in done for one in self._inputs_of(name))]
            if not ready:
                raise BadInput(f"The stages {', '.join(waiting)} wait for each other; break the circle of their "
                               f"inputs.")
            done.append(ready[0])
            waiting.remove(ready[0])
        return done

    def _inputs_of(self, name: str) -> list[str]:
        for one in self.stages[name].reads():
            if one not in self.stages:
                raise BadInput(f"The stage '{name}' reads a stage '{one}', which the recipe does not have"
                               f"{nearest(one, self.stages)} Its stages are {', '.join(self.stages)}.")
        return self.stages[name].reads()
