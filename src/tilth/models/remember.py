"""Activation checkpointing: what a block keeps for its backward pass, and what it computes again.

all: everything; products: the results of matrix products and of attention ("selective", Korthikanti et al. 2022, arXiv
2205.05198); inputs: only the block's inputs (Chen et al. 2016, arXiv 1604.06174).
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Remember = Literal["all", "products", "inputs"]

_ATEN = torch.ops.aten
PRODUCTS = {_ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN._scaled_dot_product_flash_attention.default,
            _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
            _ATEN._scaled_dot_product_efficient_attention.default,
            _ATEN._scaled_dot_product_cudnn_attention.default}


def remembering(remember: Remember, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`function(*inputs)`, keeping for its backward pass what `remember` says."""
    if remember == "all" or not torch.is_grad_enabled():
        return function(*inputs)
    # The blocks draw no random numbers, so there is no state of a generator to bring back.
    more: dict[str, Any] = {} if remember == "inputs" else {"context_fn": _products_kept}
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **more)


def _products_kept() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
