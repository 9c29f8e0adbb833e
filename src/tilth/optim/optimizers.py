"""Optimizers over named parameter groups, and how the parameters of a model fall into groups."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tilth.optim.muon import Muon as MatrixMuon
from tilth.recipe.errors import BadInput
from tilth.recipe.frame import Config, nearest, one_of


@dataclass
class ParameterGroup:
    """Parameters that share a rate and a decay. Names: `matrices`, `embeddings`, `vectors`, `routers`, or a learner's
    own. rate_factor: what the model's parametrization (muP) makes of the rate."""

    name: str
    parameters: list[Tensor]
    rate_factor: float = 1.0


def group_parameters(module: nn.Module) -> list[ParameterGroup]:
    """Hidden matrices, embeddings (the output head among them), vectors (norms, biases), and the routers of experts,
    whose few rows are scores and no map of features (Muon leaves them to AdamW); frozen ones left out."""
    embeddings = {id(parameter) for inner in module.modules() if isinstance(inner, nn.Embedding)
                  for parameter in inner.parameters(recurse=False)}
    groups: dict[str, list[Tensor]] = {"matrices": [], "embeddings": [], "vectors": [], "routers": []}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = name.split(".")[-2:-1]
        is_embedding = id(parameter) in embeddings or owner in (["unembedding"], ["lm_head"])
        kind = "embeddings" if is_embedding else "matrices" if parameter.ndim >= 2 else "vectors"
        groups["routers" if owner == ["router"] else kind].append(parameter)
    rate_factors: Callable[[], dict[str, float]] = getattr(module, "rate_factors", dict)
    factors = rate_factors()
    return [ParameterGroup(name, parameters, factors.get(name, 1.0)) for name, parameters in groups.items()
            if parameters]


class OptimizerConfig(Config):
    """`build(groups) -> torch.optim.Optimizer`; every group carries `peak_lr`, which the schedule multiplies."""

    kind: str = ""
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(3e-3, description="peak learning rate; auto: by a law")
    weight_decay: float = Field(0.1, ge=0)
    lr_scale: dict[str, float] = Field(default_factory=dict, description="a factor of lr for a group, by its name")
    group_decay: dict[str, float] = Field(default_factory=dict, description="the weight decay of a group, by its name")

    @property
    def rate(self) -> float:
        """`lr`, once it is a number."""
        if self.lr == "auto":
            raise BadInput("`optimizer.lr` is auto, which a pretrain stage settles before its first step; here it must "
                           "be a number.")
        return self.lr

    @property
    def state_bytes(self) -> float:
        """Bytes of state that a parameter takes, at most."""
        return 8.0

    def build(self, groups: Iterable[ParameterGroup]) -> torch.optim.Optimizer:
        raise TypeError(f"{type(self).__name__} does not define build.")

    def settings(self, groups: list[ParameterGroup]) -> list[dict[str, Any]]:
        """Torch parameter groups: decay on matrices only (norms, biases and embeddings do not shrink), unless
        `group_decay` says otherwise. `base_lr` is the recipe's rate, from which absolute schedules reckon."""
        names = [group.name for group in groups]
        for field in ("lr_scale", "group_decay"):
            for name in getattr(self, field):
                if name not in names:
                    raise BadInput(f"`optimizer.{field}` names the group '{name}', which this learner does not have"
                                   f"{nearest(name, names)} Its groups are {', '.join(names)}.")
        result = []
        for group in groups:
            lr = self.rate * self.lr_scale.get(group.name, 1.0) * self.parametrized(group)
            decay = 0.0 if group.name in ("vectors", "embeddings") else self.weight_decay
            result.append({"params": group.parameters, "name": group.name, "lr": lr, "peak_lr": lr,
                           "base_lr": self.rate, "weight_decay": self.group_decay.get(group.name, decay)})
        return result

    def parametrized(self, group: ParameterGroup) -> float:
        """The factor of the rate that the group's parametrization asks of this optimizer."""
        return group.rate_factor


class AdamW(OptimizerConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), fused where torch has it."""

    kind: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)

    def build(self, groups: Iterable[ParameterGroup]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.settings(list(groups)), lr=self.rate, betas=self.betas, eps=self.epsilon,
                                 fused=True)


class Muon(OptimizerConfig):
    """Muon for hidden matrices (Jordan et al. 2024: momentum orthogonalised by Newton-Schulz), AdamW for the rest.

    `lr` is AdamW's rate; Muon's is `lr * matrix_lr_scale`, times 0.2 sqrt(max(rows, columns)) (Liu et al. 2025), so
    that one rate suits both.
    """

    kind: str = "muon"
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = Field(1e-8, gt=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    matrix_lr_scale: float = Field(1.0, gt=0)

    def parametrized(self, group: ParameterGroup) -> float:
        """muP asks of an update a spectral norm that does not grow with the width. Adam's grows like m = width / base,
        hence rate / m; an orthogonal update times sqrt(max(rows, columns)) like sqrt(m), hence rate / sqrt(m)."""
        return group.rate_factor**0.5 if group.name == "matrices" else group.rate_factor

    def build(self, groups: Iterable[ParameterGroup]) -> torch.optim.Optimizer:
        settings = self.settings(list(groups))
        matrices = [group for group in settings if group["name"] == "matrices"]
        for group in matrices:
            group["lr"] = group["peak_lr"] = group["lr"] * self.matrix_lr_scale
            if any(parameter.ndim != 2 for parameter in group["params"]):
                raise BadInput("`optimizer.kind` muon needs hidden parameters with two dimensions; this model has "
                               "others. Use kind adamw.")
        rest = [group for group in settings if group["name"] != "matrices"]
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            on_gpu = matrices[0]["params"][0].is_cuda
            parts.append(MatrixMuon(matrices, lr=self.rate, momentum=self.momentum, weight_decay=self.weight_decay,
                                    dtype=torch.bfloat16 if on_gpu else torch.float32))
        if rest:
            parts.append(torch.optim.AdamW(rest, lr=self.rate, betas=self.betas, eps=self.epsilon, fused=True))
        return Several(parts)


class Several(torch.optim.Optimizer):
    """Optimizers over disjoint parameters, stepped and saved as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        self.defaults: dict[str, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


OPTIMIZERS: dict[str, type[OptimizerConfig] | str] = {"adamw": AdamW, "muon": Muon,
                                                    "coat_adamw": "tilth.optim.coat:CoatAdamW"}
OptimizerChoice = one_of(OptimizerConfig, OPTIMIZERS)
