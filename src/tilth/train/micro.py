"""The largest micro-batch that fits, from a count of what one row keeps for its backward pass."""

import torch

from tilth.train.device import SavedBytes, autocast, memory_total
from tilth.train.learner import Learner
from tilth.train.loop import Stream, seeded

CPU_ACTIVATIONS = 128 * 1024**2


def activation_budget(learner: Learner, device: torch.device, state_bytes: float = 8.0) -> int:
    """Bytes that activations may take: what is left of the device beside weights, and for each parameter that is
    trained a gradient and `state_bytes` of the optimizer's.

    A CPU keeps to 128 MiB of activations: larger micro-batches leave its caches and pay for fresh pages (a 4 M
    parameter model on one core: 3,250 tokens per CPU-second at 100 MB, 2,660 at 400 MB).
    """
    states = sum(parameter.numel() * (parameter.element_size() + parameter.requires_grad * (
        parameter.element_size() + state_bytes)) for parameter in learner.modules.parameters())
    free = int(0.85 * memory_total(device) - states)
    return max(min(free, CPU_ACTIVATIONS) if device.type == "cpu" else free, 1)


def row_bytes(learner: Learner, stream: Stream, precision: str, device: torch.device) -> int:
    """Bytes that autograd keeps for one row under the first update; the stream is put back where it was."""
    before = stream.state_dict()
    batch = {name: tensor.to(device) for name, tensor in stream.next(1).items()}
    stream.load_state_dict(before)
    if learner.first_pass is not None:
        with torch.no_grad(), autocast(precision, device):
            seen = learner.first_pass.first(learner, learner.updates[0], batch, seeded(0, device=device))
        batch = {**batch, **learner.first_pass.between([seen], [batch])[0]}
    weights = {parameter.untyped_storage().data_ptr() for parameter in learner.modules.parameters()}
    with SavedBytes(weights) as saved, autocast(precision, device):
        learner.loss(learner.updates[0], batch, seeded(0, device=device))
    return saved.bytes


def largest_micro_batch(learner: Learner, stream: Stream, rows: int, precision: str, device: torch.device,
                        state_bytes: float = 8.0) -> int:
    """The largest divisor of `rows` whose activations fit the budget (at least 1)."""
    fit = activation_budget(learner, device, state_bytes) // max(row_bytes(learner, stream, precision, device), 1)
    return max(divisor for divisor in range(1, rows + 1) if rows % divisor == 0 and divisor <= max(fit, 1))
