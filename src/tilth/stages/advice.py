"""`lr: auto` and `batch_tokens: auto` of a pretrain stage, settled once before step 0; what `tilth plan` advises."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tilth.models import ModelConfig
from tilth.optim.advisor import COST_OF_BATCH, COST_OF_LR, advise, doubts, price, step_law, three_points, whole_rows
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
    batch = whole_rows(advised.batch_tokens, stage.length)
    power = isinstance(stage.schedule, Power)
    return {"law": "power scheduler's cap; Step Law's batch" if power else "Step Law", "lr": advised.lr,
            "batch_tokens": batch, "step_law_lr": step_law(parameters, tokens).lr, "parameters": parameters,
            "tokens": tokens, "doubts": doubts(parameters, tokens, epochs, stage.schedule, stage.optimizer,
                                               getattr(config, "mup", None) is not None,
                                               batch if stage.batch_tokens == "auto" else stage.batch_tokens),
            "prices": _prices(stage, advised.lr, batch),
            "cost": {"batch": _curve(COST_OF_BATCH)} if power else {"rate": _curve(COST_OF_LR),
                                                                    "batch": _curve(COST_OF_BATCH)},
            "check": three_points(advised.lr, stage.schedule)}


def _curve(table: dict[float, float | None]) -> list[list[float | None]]:
    """[factor of the optimum, percent of loss lost (null: diverges)], for the report's plot."""
    return [[factor, percent] for factor, percent in table.items()]


def _prices(stage: "PretrainStage", lr: float, batch: int) -> list[str]:
    """What the recipe's own choices cost against the advice."""
    found = []
    if stage.optimizer.lr != "auto" and not isinstance(stage.schedule, Power):
        found.append(price("rate", stage.optimizer.lr, lr, COST_OF_LR))
    if stage.batch_tokens != "auto":
        found.append(price("batch", stage.batch_tokens, batch, COST_OF_BATCH))
    return [one for one in found if one]


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
    """The advice for people; what other choices cost; where it may not hold, why, and the command that checks it.
    recipe: as on the command line, with its changes."""
    lines = [f"peak rate {advice['lr']:.3g}, {quantity(advice['batch_tokens'])} tokens a step ({advice['law']}, for "
             f"{quantity(advice['parameters'])} parameters without embeddings and {quantity(advice['tokens'])} tokens)"]
    lines += [f"  {price}" for price in advice["prices"]]
    if advice["doubts"]:
        lines += [f"  but: {doubt}" for doubt in advice["doubts"]]
        lines.append(f"  so check it at three points: tilth sweep {recipe} {stage}.{advice['check']}")
    return lines


def tell(advice: dict[str, Any], stage: str) -> None:
    """Say it as a run begins, which does not know by what name and changes its recipe was asked for."""
    for line in advice_lines(advice, "RECIPE", stage):
        say(f"  {line}")
