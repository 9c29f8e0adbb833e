"""What a recipe will take, before anything is spent: size, tokens, FLOPs, memory, time from a short measured probe."""

from pathlib import Path
from typing import Any

from tilth.models import import_llama
from tilth.models.config import ModelConfig
from tilth.recipe.console import duration, quantity
from tilth.recipe.errors import BadInput
from tilth.recipe.files import read_json
from tilth.stages.advice import advice_for, advice_lines, settled, wants_advice
from tilth.stages.building import Probe, counted, probe_speed, random_batch
from tilth.stages.pretrain import PretrainStage
from tilth.stages.stage import Hardware, Recipe
from tilth.train.device import matmul_peak, memory_total, pick_device, resolve_precision
from tilth.train.learner import Learner

PROBE_TOKENS = 4096  # a micro-batch of about this size tells the speed of a step in a few seconds


def plan_recipe(recipe: Recipe, folder: Path, hardware: Hardware) -> list[dict[str, Any]]:
    """One plan for each pretrain stage. Sizes of the data are taken from `folder` where a run has tokenized already."""
    found = [plan_stage(recipe, name, stage, folder, hardware) for name, stage in recipe.stages.items()
             if isinstance(stage, PretrainStage)]
    if not found:
        raise BadInput(f"The recipe '{recipe.name}' has no stage of kind pretrain, which alone can be planned (a stage "
                       f"of kind train says its steps itself).")
    return found


def plan_stage(recipe: Recipe, name: str, stage: PretrainStage, folder: Path, hardware: Hardware) -> dict[str, Any]:
    device = pick_device(hardware.device)
    precision = resolve_precision(stage.precision, device)
    vocabulary, pool_tokens = data_facts(recipe, stage, folder)
    learner = stage.learner(vocabulary, recipe.seed)
    learner.to(device)
    config: ModelConfig = learner.modules["model"].config  # type: ignore[assignment, union-attr]
    rows = max(1, PROBE_TOKENS // stage.length)
    rows = rows if stage.batch_tokens == "auto" else min(stage.rows, rows)
    probe = probe_speed(learner, stage.optimizer, random_batch(vocabulary, rows, stage.length, device), precision,
                        device)
    micro = hardware.micro_rows or rows
    advice = None  # the laws are for whole runs, not for branches or adapters
    if wants_advice(stage) or (stage.branch_from is None and stage.lora is None):
        advice = advice_for(stage, config, pool_tokens, lambda batch: probe.seconds_per_step(batch / stage.length))
    if advice and wants_advice(stage):
        stage = settled(stage, advice)
    seconds = probe.seconds_per_step(stage.rows)
    flops = (learner.flops_per_row or 0.0) * stage.rows
    batch = stage.rows * stage.length
    steps = stage.budget.in_steps(batch, flops or 1.0, pool_tokens, seconds)
    peak = matmul_peak(device, precision)
    return {"stage": name, "parameters": config.parameters(),
            "parameters_non_embedding": config.parameters(embeddings=False),
            "parameters_active": config.parameters(active=True),
            "parameters_trained": None if stage.lora is None else counted(learner.modules["model"])[1],
            "vocabulary": vocabulary,
            "pool_tokens": pool_tokens, "steps": steps, "tokens": steps * batch,
            "epochs": steps * batch / pool_tokens if pool_tokens else None,
            "flops": steps * flops, "seconds": steps * seconds, "tokens_per_second": batch / seconds,
            "utilisation": flops / seconds / peak, "memory": memory(learner, probe, micro),
            "memory_total": memory_total(device), "device": str(device), "precision": precision,
            "lr": stage.optimizer.rate, "batch_tokens": batch, "advice": advice, "recipe": recipe.name}


def data_facts(recipe: Recipe, stage: PretrainStage, folder: Path) -> tuple[int, int | None]:
    """Vocabulary size, and tokens of the pool if it is there already."""
    report = folder / stage.input / "report.json"
    if report.exists():
        facts = read_json(report)
        return facts["vocab_size"], facts["tokens"]
    if stage.start_from is not None:
        return import_llama(stage.start_from)[0].sizes().vocabulary, None
    tokenizer = getattr(recipe.stages.get(stage.input), "tokenizer", None)
    size = getattr(stage.model, "vocab_size", None) or getattr(tokenizer, "vocab_size", None)
    return size or (257 if getattr(tokenizer, "kind", "") == "bytes" else 32_000), None


def memory(learner: Learner, probe: Probe, micro_rows: int) -> dict[str, int]:
    """Bytes: weights, and gradients of those that are trained, in float32; the optimizer's state, and what `micro_rows`
    rows keep for the backward pass, both as the probe found them."""
    weights, trained = counted(learner.modules["model"])
    return {"weights": 4 * weights, "gradients": 4 * trained, "moments": probe.state_bytes,
            "activations": probe.row_bytes * micro_rows}


def plan_text(plan: dict[str, Any]) -> str:
    """The plan for people."""
    parts = plan["memory"]
    known = f"{quantity(plan['pool_tokens'])} tokens in the pool" if plan["pool_tokens"] else (
        "the pool is not made yet, so a budget in epochs is not counted")
    trained = f"; {quantity(plan['parameters_trained'])} trained" if plan["parameters_trained"] is not None else ""
    epochs = f", {plan['epochs']:.2f} epochs" if plan["epochs"] else ""
    active = f"; {quantity(plan['parameters_active'])} active for a token" if (
        plan["parameters_active"] != plan["parameters"]) else ""
    return "\n".join([
        f"stage {plan['stage']} on {plan['device']} in {plan['precision']}",
        f"  parameters  {quantity(plan['parameters'])} ({quantity(plan['parameters_non_embedding'])} without "
        f"embeddings{active}{trained}), vocabulary {plan['vocabulary']}",
        f"  data        {known}",
        f"  training    {plan['steps']} steps, {quantity(plan['tokens'])} tokens{epochs}",
        f"  chosen      peak rate {plan['lr']:.3g}, {quantity(plan['batch_tokens'])} tokens a step",
        *(["  advised     " + "\n              ".join(advice_lines(plan["advice"], plan["recipe"], plan["stage"]))]
          if plan["advice"] else []),
        f"  compute     {quantity(plan['flops'], 'FLOP')} at {100 * plan['utilisation']:.0f} % of the measured "
        f"matrix-product peak",
        f"  memory      {quantity(sum(parts.values()), 'B')} of {quantity(plan['memory_total'], 'B')}: "
        + ", ".join(f"{name} {quantity(size, 'B')}" for name, size in parts.items()),
        f"  time        about {duration(plan['seconds'])} of training ({quantity(plan['tokens_per_second'])} tokens/s, "
        f"from a probe of a few steps just now; curation and evaluation come on top)",
    ])
