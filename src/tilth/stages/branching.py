"""Branches: a pretrain stage that goes on from a kept checkpoint of another, with its weights, optimizer and stream.

A stable phase at a constant rate goes on for ever; a branch at any of its kept checkpoints gives a decayed model, which
may see an enriched mixture (Hu et al. 2024, arXiv 2404.06395; Shen et al. 2024, arXiv 2408.13359). Where input, length
and policy are those of the source, the branch at step k is the run that would have decayed at k, bit for bit.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field

from tilth.data.stream import PackedStream
from tilth.data.trace import FOLDER, PIECE, DrawnLog
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json, writing
from tilth.recipe.frame import Config
from tilth.train.checkpoint import Checkpoints, Layout, load_state

if TYPE_CHECKING:
    from tilth.stages.pretrain import PretrainStage

BEGINNING: dict[str, Any] = {"first_step": 0, "first_row": 0, "tokens_before": 0.0, "advice": None}  # without a branch


class BranchFrom(Config):
    """`stage`: a pretrain stage of the same recipe; `step`: one of its kept checkpoints (default: its last)."""

    stage: str
    step: int | None = Field(None, ge=1)


class Branch:
    """The checkpoint that a stage goes on from, and what of it carries over."""

    def __init__(self, stage: "PretrainStage", source: Path):
        assert stage.branch_from is not None
        self.stage, self.source = stage, source
        self.fields = read_json(source / "manifest.json")["fields"]
        self.decided = {**BEGINNING, **read_json(source / "budget.json")}
        self._check()
        kept = Checkpoints(source / "checkpoints", {})
        steps = kept.steps()
        self.step = stage.branch_from.step or (steps[-1] if steps else 0)
        if self.step not in steps:
            raise BadInput(f"The stage '{stage.branch_from.stage}' kept no checkpoint of step {self.step}, only of "
                           f"{', '.join(map(str, steps)) or 'none'}. Branch from one of these, or let it keep more "
                           f"(checkpoint.keep_every).")
        self.folder = kept.path(self.step)

    def beginning(self) -> dict[str, Any]:
        """Steps, positions and rows of the stream before the branch's own."""
        rows = (self.step - self.decided["first_step"]) * self.decided["rows"]
        goes_on = self._same("input", "length")
        return {**BEGINNING, "first_step": self.step, "first_row": self.decided["first_row"] + rows if goes_on else 0,
                "tokens_before": self.decided["tokens_before"] + rows * self.fields["length"]}

    def origin(self, stream: PackedStream, optimizers: dict[str, torch.optim.Optimizer], drawn: Path,
               layout: Layout | None = None, main: bool = True) -> dict[str, Any]:
        """The state to begin from. Rates and decays are this stage's; where the policy differs, what is left of the
        source's stretch is handed back and drawn anew by the new policy; another input is read from its beginning. The
        first process (`main`) carries over the log of what was drawn."""
        state = load_state(self.folder, layout)
        for name, optimizer in optimizers.items():
            state["optimizers"][name] = with_settings(state["optimizers"][name], optimizer.state_dict())
        if main:
            shutil.rmtree(drawn, ignore_errors=True)
        if self._same("input", "length"):
            if main:
                shutil.copytree(self.source / FOLDER, drawn)
            if not self._same("policy"):
                state["stream"] = hand_back(stream, state["stream"], drawn if main else None)
        else:
            state["stream"] = stream.state_dict()
        # How long the source could pay for choosing says nothing of a branch, which has a budget of its own.
        state["stream"]["policy"] |= {"last_stretch": None, "planned_at": -1}
        return state

    def _same(self, *fields: str) -> bool:
        ours = self.stage.model_dump(mode="json")
        return all(ours[field] == self.fields.get(field) for field in fields)

    def _check(self) -> None:
        for field in ("model", "start_from", "lora", "average"):
            if not self._same(field):
                raise BadInput(f"A branch trains the model of the stage it branches from, but `{field}` differs from "
                               f"that of '{self.source.name}'. Make them equal.")
        if self.stage.optimizer.kind != self.fields["optimizer"]["kind"]:
            raise BadInput(f"A branch goes on with the optimizer's state of '{self.source.name}', so "
                           f"`optimizer.kind` must be {self.fields['optimizer']['kind']}.")


def with_settings(saved: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's saved moments under the settings (rates, decays, betas) of a fresh one."""
    if "parts" in saved:
        parts = [with_settings(one, other) for one, other in zip(saved["parts"], fresh["parts"], strict=True)]
        return {**saved, "parts": parts}
    return {**saved, "param_groups": fresh["param_groups"]}


def _free(policy: Any, units: np.ndarray) -> None:
    """Take back the drawing of `units` (rows of the pool)."""
    policy.drawn[units] = False
    sources = len(policy.passes)
    policy.units_drawn -= np.bincount(policy.source[units], minlength=sources)
    policy.tokens_drawn -= np.bincount(policy.source[units], policy.tokens[units], sources).astype(np.int64)


def hand_back(stream: PackedStream, state: dict[str, Any], drawn: Path | None) -> dict[str, Any]:
    """The state of a stream in the middle of a stretch, under another policy: units that were drawn but not yet served
    are free again, the log is cut after what was served, and the next row begins a stretch of the new policy."""
    fresh = stream.policy.state_dict()
    shared = {key: value for key, value in state["policy"].items() if key not in ("mixture", "selector", "weigher")}
    parts = {key: fresh[key] for key in ("mixture", "selector", "weigher")}
    stream.load_state_dict({**state, "policy": {**shared, **parts, "owed": fresh["owed"], "budget": fresh["budget"]}})
    _free(stream.policy, stream.give_up_rest())
    end = stream.rows
    for _, path in DrawnLog(drawn).files()[-1:] if drawn else []:
        table = np.load(path, allow_pickle=False).astype(PIECE)
        with writing(path) as file:
            np.save(file, table[table["row"] < end])
    return stream.state_dict()
