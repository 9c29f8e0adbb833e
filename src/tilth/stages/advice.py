"""`lr: auto` and `batch_tokens: auto` of a pretrain stage, settled once before step 0; what `tilth plan` advises."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tilth.models import ModelConfig
from tilth.optim.advisor import advise, doubts, step_law, three_points, whole_rows
from tilth.optim.schedules import Power
from tilth.recipe.console import quantity, say
from tilth.recipe.errors import BadInput

if TYPE_CHECKING:
    from tilth.stages.pretrain import PretrainStage

SecondsPerStep = Callable[[float], float]  # given the tokens of a step


def advice_for(stage: "PretrainStage", config: ModelConfig, pool_tokens: int | None,
               seconds_per_step: SecondsPerStep) -> dict[str, Any]:
    """What Step Law (or, for the cap of its rate, the power scheduler) advises for this stage: lr, batch_tokens in
    whole rows, the parameters and tokens they are for, and the doubts that apply. A batch that the recipe gives is kept
    in working out the tokens."""
    parameters = config.parameters(embeddings=False)
    flops = config.flops_per_token(stage.length)

    def tokens_of(batch: float) -> float:
        given = batch if stage.batch_tokens == "auto" else float(stage.batch_tokens)
        seconds = seconds_per_step(given) if stage.budget.minutes else None
        return stage.budget.in_tokens(given, flops, pool_tokens, seconds)

    advised = advise(parameters, tokens_of, stage.schedule)
    tokens = tokens_of(advised.batch_tokens)
    epochs = tokens / pool_tokens if pool_tokens else None
    law = "power scheduler's cap; Step Law's batch" if isinstance(stage.schedule, Power) else "Step Law"
    return {"law": law, "lr": advised.lr, "batch_tokens": whole_rows(advised.batch_tokens, stage.length),
            "step_law_lr": step_law(parameters, tokens).lr, "parameters": parameters, "tokens": tokens,
            "doubts": doubts(parameters, tokens, epochs, stage.schedule, stage.optimizer,
                             mup=getattr(config, "mup", None) is not None)}


def wants_advice(stage: "PretrainStage") -> bool:
    return stage.batch_tokens == "auto" or stage.optimizer.lr == "auto"


def settled(stage: "PretrainStage", advice: dict[str, Any]) -> "PretrainStage":
    """The stage with what it left to the advisor filled in."""
    if stage.branch_from is not None:
        raise BadInput("A branch goes on from a run that has its rate and batch: give `optimizer.lr` and "
                       "`batch_tokens`, the laws are for whole runs.")
    if stage.optimizer.lr == "auto":
        stage = stage.model_copy(update={"optimizer": stage.optimizer.model_copy(update={"lr": advice["lr"]})})
    if stage.batch_tokens == "auto":
        stage = stage.model_copy(update={"batch_tokens": advice["batch_tokens"]})
    return stage


def advice_lines(advice: dict[str, Any], recipe: str, stage: str) -> list[str]:
    """The advice for people; where it may not hold, why, and the command that checks it."""
    lines = [f"peak rate {advice['lr']:.3g}, {quantity(advice['batch_tokens'])} tokens a step ({advice['law']}, for "
             f"{quantity(advice['parameters'])} parameters without embeddings and {quantity(advice['tokens'])} tokens)"]
    if advice["doubts"]:
        lines += [f"  but: {doubt}" for doubt in advice["doubts"]]
        lines.append(f"  so check it at three points: {three_points(recipe, stage, advice['lr'])}")
    return lines


def tell(advice: dict[str, Any], recipe: str, stage: str) -> None:
    for line in advice_lines(advice, recipe, stage):
        say(f"  {line}")
