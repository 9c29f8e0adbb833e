"""Learning rate and batch size from model size and tokens, by published laws, with the domain each law holds in.

Parameters exclude embeddings and the output matrix (`config.parameters(embeddings=False)`); of a mixture of experts
they are all of them, not those active for a token. Tokens are those trained on, batches are in tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from tilth.optim.optimizers import OptimizerConfig
from tilth.optim.schedules import Cosine, Power, Schedule


@dataclass(frozen=True)
class Advice:
    """Peak learning rate, and tokens of a step."""

    lr: float
    batch_tokens: float


@dataclass(frozen=True)
class PowerLaw:
    """lr = c N^alpha D^beta, batch_tokens = d D^gamma."""

    c: float
    alpha: float
    beta: float
    d: float
    gamma: float

    def __call__(self, parameters: float, tokens: float) -> Advice:
        return Advice(self.c * parameters**self.alpha * tokens**self.beta, self.d * tokens**self.gamma)


# Li et al. 2025, "Step Law", arXiv 2503.04715, equation 1; fitted on N 60M..1B and D 2B..100B, AdamW, a cosine to 1e-5.
STEP_LAW = PowerLaw(1.79, -0.713, 0.307, 0.58, 0.571)
# The means of the 1,000 bootstrap fits that the authors' tool uses.
STEP_LAW_BOOTSTRAP = PowerLaw(math.exp(0.586308), -0.7129, 0.3075, math.exp(-0.543542), 0.5709)
STEP_LAW_PARAMETERS = (6e7, 1.1e9)
STEP_LAW_TOKENS = (2e9, 1e11)
STEP_LAW_FLOOR = 1e-5
POWER_CAP = 0.02  # Shen et al. 2024: the highest rate of the power scheduler under muP
POWER_TOKENS = (2e9, 2.56e11)  # what its constants were fitted on


def step_law(parameters: float, tokens: float) -> Advice:
    """eta = 1.79 N^-0.713 D^0.307, B = 0.58 D^0.571 tokens."""
    return STEP_LAW(parameters, tokens)


def deepseek_law(parameters: float, tokens: float) -> Advice:
    """eta = 0.3118 C^-0.1250, B = 0.2920 C^0.3271 tokens with C = 6 N D (Bi et al. 2024, arXiv 2401.02954, eq. 1)."""
    compute = 6 * parameters * tokens
    return Advice(0.3118 * compute**-0.1250, 0.2920 * compute**0.3271)


def openai_law(parameters: float, tokens: float, loss: float) -> Advice:
    """eta = 0.003239 - 0.0001395 ln N (equation D.1), B = 2e8 L^(-1/0.21) tokens at the loss L reached, the critical
    batch (equation 1.4; Kaplan et al. 2020, arXiv 2001.08361)."""
    return Advice(0.003239 - 0.0001395 * math.log(parameters), 2e8 * loss ** (-1 / 0.21))


RIVALS: dict[str, Callable[[float, float], Advice]] = {"step law": step_law, "deepseek law": deepseek_law}

# What a wrong choice costs: median excess loss in percent of the 17 cells of Step Law's published dense grid, for a
# factor of the best rate (at the best batch), or of the best batch (at its rate). None: the run diverges.
COST_OF_LR: dict[float, float | None] = {0.25: 1.0, 0.5: 0.38, 1.0: 0.0, 2.0: 0.73, 4.0: 3.2, 8.0: None}
COST_OF_BATCH: dict[float, float | None] = {0.25: 1.6, 0.5: 0.44, 1.0: 0.0, 2.0: 0.49, 4.0: 1.3}


def cost(factor: float, table: dict[float, float | None]) -> float | None:
    """Percent of loss lost at `factor` times the optimum, linear in log factor; None outside what was measured."""
    known = sorted((math.log(at), value) for at, value in table.items() if value is not None)
    x = math.log(factor)
    for (low, below), (high, above) in pairwise(known):
        if low - 1e-12 <= x <= high + 1e-12:
            return below + (above - below) * (x - low) / (high - low)
    return None


def advise(parameters: float, tokens_of: Callable[[float], float], schedule: Schedule) -> Advice:
    """What Step Law recommends for a run whose tokens may depend on the batch (a budget in steps, or in minutes).

    tokens_of: tokens of the whole run, given the tokens of a step. B = 0.58 D(B)^0.571 is a contraction even where
    D grows in proportion to B, so repetition finds it. Under the power scheduler the rate is its cap, 0.02.
    """
    batch = 1.0
    for _ in range(200):
        new = step_law(parameters, tokens_of(batch)).batch_tokens
        if abs(new / batch - 1) < 1e-9:
            break
        batch = new
    advice = step_law(parameters, tokens_of(batch))
    return Advice(POWER_CAP if isinstance(schedule, Power) else advice.lr, advice.batch_tokens)


def whole_rows(batch_tokens: float, length: int) -> int:
    """The nearest batch that is a whole number of rows of `length`, at least one."""
    return max(1, round(batch_tokens / length)) * length


def doubts(parameters: float, tokens: float, epochs: float | None, schedule: Schedule, optimizer: OptimizerConfig,
           mup: bool, batch_tokens: float) -> list[str]:
    """Why the advice may not hold here, a sentence each; none where the run is like those behind the law."""
    if isinstance(schedule, Power):
        found = _power(schedule, tokens, batch_tokens, mup)
    else:
        found = [*_outside("parameters without embeddings", parameters, STEP_LAW_PARAMETERS),
                 *_outside("tokens", tokens, STEP_LAW_TOKENS), *_other_recipe(schedule, optimizer, mup)]
    if epochs is not None and epochs > 1:
        found.append(f"The data is repeated {epochs:.1f} times; the law was fitted on data seen once.")
    return found


def _power(schedule: Power, tokens: float, batch_tokens: float, mup: bool) -> list[str]:
    found = []
    if not mup:
        found.append("The power scheduler's constants are for muP (`model.mup`); with standard parameters its cap of "
                     "0.02 diverges for most models, and only the exponent carries over.")
    if not POWER_TOKENS[0] <= tokens <= POWER_TOKENS[1]:
        found.append(f"The power scheduler was fitted on {POWER_TOKENS[0]:.3g} to {POWER_TOKENS[1]:.3g} tokens, not on "
                     f"{tokens:.3g}.")
    if tokens <= schedule.warmup_tokens:
        found.append(f"The warm-up of {schedule.warmup_tokens:.3g} tokens is longer than the run: shorten "
                     f"`schedule.warmup_tokens`.")
    elif schedule.power(tokens, batch_tokens, POWER_CAP) == POWER_CAP:
        found.append(f"With {batch_tokens:.3g} tokens a step the power stays above the cap of {POWER_CAP} to the end: "
                     f"the rate is constant, and `schedule.a` has to be fitted anew.")
    return found


def _outside(what: str, value: float, domain: tuple[float, float]) -> list[str]:
    low, high = domain
    if low <= value <= high:
        return []
    return [f"{value:.3g} {what} are {'below' if value < low else 'above'} what Step Law was fitted on ({low:.3g} to "
            f"{high:.3g}){', where it extrapolates badly' if value < low else ''}."]


def _other_recipe(schedule: Schedule, optimizer: OptimizerConfig, mup: bool) -> list[str]:
    found = []
    if not isinstance(schedule, Cosine):
        found.append(f"Step Law was fitted under a cosine of the run's length, not under `{schedule.kind}`.")
    elif schedule.floor_lr != STEP_LAW_FLOOR:
        found.append("Step Law was fitted under a cosine that ends at the rate 1e-5 (`schedule.floor_lr: 1e-5`).")
    if optimizer.kind != "adamw":
        found.append(f"Step Law was fitted with AdamW, not `{optimizer.kind}`.")
    if mup:
        found.append("Step Law was fitted with standard parameters, not muP.")
    return found


def three_points(lr: float, schedule: Schedule) -> str:
    """Three values of what an advised rate rests on: half of it, it, and twice it. Under the power scheduler that is
    its factor `a`, since the rate is only a cap. As a change of a pretrain stage, for `tilth sweep`."""
    key, middle = ("schedule.a", schedule.a) if isinstance(schedule, Power) else ("optimizer.lr", lr)
    return f"{key}=" + ",".join(f"{factor * middle:.3g}" for factor in (0.5, 1, 2))


def price(what: str, chosen: float, advised: float, table: dict[float, float | None]) -> str | None:
    """What a choice costs by the published grid, if the advice is the optimum; None within a tenth of it."""
    factor = chosen / advised
    if abs(math.log(factor)) < math.log(1.1):
        return None
    percent = cost(factor, table)
    lost = "further off than was measured" if percent is None else f"about {percent:.2g} % more loss"
    return f"the recipe's {what} of {chosen:.3g} is {factor:.2g} times that: {lost}, where the law holds"
