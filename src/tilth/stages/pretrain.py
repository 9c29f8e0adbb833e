"""The recipe of the stage that trains: data and policy, model and objective, optimizer, budget, and what is kept."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tilth.adapt.lora import Lora, training_flops
from tilth.analyze.sharpness import Sharpness
from tilth.models import MODELS, ModelConfig, TransformerConfig, import_llama
from tilth.objectives import OBJECTIVES, Causal, Objective
from tilth.optim import AdamW, Cosine, OptimizerChoice, ScheduleChoice
from tilth.precision.activations import use_mode
from tilth.precision.simulated import Simulated
from tilth.recipe.errors import BadInput
from tilth.recipe.frame import Config, one_of
from tilth.select.policy import PolicyConfig
from tilth.stages.branching import BranchFrom
from tilth.stages.building import Budget, build_learner
from tilth.stages.in_run import InRunEvaluation
from tilth.stages.simulating import SimulatedLearner
from tilth.stages.stage import Context, Stage
from tilth.train import Learner
from tilth.train.averaging import AverageChoice
from tilth.train.device import Precision, mode_of
from tilth.train.stability import Stability
from tilth.train.survive.members import Survive


class CheckpointConfig(Config):
    """When to write checkpoints (besides the last step) and how many to keep: the newest `keep`, for ever one each
    `keep_every` steps, from which other stages can branch, and the best by held-out bits per byte, if `keep_best`.
    background: write from copies in memory while training goes on."""

    seconds: float = Field(120.0, gt=0)
    steps: int | None = Field(None, ge=1)
    keep: int = Field(2, ge=1)
    keep_every: int | None = Field(None, ge=1)
    keep_best: bool = False
    background: bool = False

    @model_validator(mode="after")
    def _meets(self) -> "CheckpointConfig":
        if self.keep_every and self.steps and self.keep_every % self.steps:
            raise ValueError(f"keep_every ({self.keep_every}) must be a multiple of steps ({self.steps})")
        return self


class PretrainStage(Stage):
    """Train a model on the pool of the stage `input`.

    length: positions of a row; batch_tokens: positions of a step, a multiple of length, or auto (like optimizer.lr:
    settled by the advisor before step 0, and written down in budget.json); start_from: a Llama-family
    folder on disk whose weights and shape replace `model` (continued pretraining; tokenize with its tokenizer);
    lora: train adapters of that model only, and merge them into its weights at the end;
    branch_from: a kept checkpoint of another pretrain stage to go on from, for a budget of its own;
    held_out_every: a share of the run (below 1) or steps between looks at held_out_tokens of the held-out text;
    evaluation: tasks scored while training goes on, within a budget;
    average: weights averaged over the run, beside the last ones or in their place;
    survive: snapshots in memory, from which a run goes on after a crash.
    """

    uses_seed: ClassVar[bool] = True
    every_process: ClassVar[bool] = True
    kind: str = "pretrain"
    input: str = "tokenize"
    model: one_of(ModelConfig, MODELS) = TransformerConfig()  # type: ignore[valid-type]
    start_from: str | None = None
    lora: Lora | None = None
    branch_from: BranchFrom | None = None
    objective: one_of(Objective, OBJECTIVES) = Causal()  # type: ignore[valid-type]
    policy: PolicyConfig = PolicyConfig()
    optimizer: OptimizerChoice = AdamW()
    schedule: ScheduleChoice = Cosine()
    length: int = Field(1024, ge=2)
    batch_tokens: Annotated[int, Field(ge=2)] | Literal["auto"] = 32768
    budget: Budget
    clip: float | None = Field(1.0, gt=0)
    stability: Stability | None = None
    precision: Precision = "auto"
    simulated: Simulated | None = None
    sharpness: Sharpness | None = None
    held_out_every: float = Field(0.1, gt=0)
    held_out_tokens: int = Field(32768, ge=1)
    evaluation: InRunEvaluation | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    average: AverageChoice | None = None
    survive: Survive | None = None

    @model_validator(mode="after")
    def _one_rounding(self) -> "PretrainStage":
        if self.simulated is not None and self.precision in ("fp8", "coat"):
            raise ValueError(f"simulated formats go with fp32 or bf16, not with precision {self.precision}")
        return self

    @model_validator(mode="after")
    def _whole(self) -> "PretrainStage":
        for field in ("lora", "average"):
            if self.simulated is not None and getattr(self, field) is not None:
                raise ValueError(f"simulated formats are for studies of whole training runs; drop simulated or {field}")
        if self.lora is not None and self.start_from is None:
            raise ValueError("lora adapts a model that exists; set start_from, or drop lora")
        if self.lora is not None and self.optimizer.lr == "auto":
            raise ValueError("the laws behind optimizer.lr: auto are for training all weights; with lora, give a rate")
        return self

    def reads(self) -> list[str]:
        return [self.input, *([self.branch_from.stage] if self.branch_from else [])]

    def files(self) -> list[dict[str, Any]]:
        from tilth.data import locations
        folder = [] if self.start_from is None else [
            path for path in sorted(Path(self.start_from).glob("*")) if path.suffix in (".safetensors", ".json")]
        return [locations.fingerprint(str(path)) for path in [*self.policy.files(), *folder]]

    @property
    def rows(self) -> int:
        if self.batch_tokens == "auto":
            raise BadInput("`batch_tokens` is auto, which the stage settles before its first step.")
        if self.batch_tokens % self.length:
            raise BadInput(f"`batch_tokens` ({self.batch_tokens}) must be a multiple of `length` ({self.length}).")
        return self.batch_tokens // self.length

    def run(self, context: Context) -> dict[str, Any]:
        from tilth.stages.pretraining import Pretraining
        return Pretraining(self, context).run()

    def learner(self, vocab_size: int, seed: int) -> Learner:
        """A fresh learner, its layers in the stage's precision: initialised, or from `start_from`."""
        learner = self._learner(vocab_size, seed)
        use_mode(learner.modules["model"], mode_of(self.precision))
        return learner if self.simulated is None else SimulatedLearner(learner, self.simulated)

    def _learner(self, vocab_size: int, seed: int) -> Learner:
        if self.start_from is None:
            return build_learner(self.model, self.objective, vocab_size, self.length, seed)
        config, model = import_llama(self.start_from)
        if config.sizes().vocabulary < vocab_size:
            raise BadInput(f"The model {self.start_from} knows {config.sizes().vocabulary} tokens, the pool uses "
                           f"{vocab_size}: tokenize with the model's own tokenizer (tokenize.tokenizer="
                           f"{{kind: file, path: {self.start_from}}}).")
        flops = config.flops_per_token(self.length)
        if self.lora is not None:
            self.lora.adapt(model, seed)
            flops = training_flops(model, self.length)
        return Learner(model, self.objective, flops_per_row=self.length * flops)
