"""Chunked token losses equal cross entropy over full logits, in value and in both derivatives."""

import pytest
import torch
import torch.nn.functional as F

from tilth.models import output, token_losses


@pytest.mark.parametrize("keep", [0, 1 << 20], ids=["computed twice", "kept"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_equal_those_of_full_logits(monkeypatch, keep, dtype):
    monkeypatch.setattr(output, "CHUNK_LOGITS", 5 * 30)
    monkeypatch.setattr(output, "KEEP_LOGITS", keep)
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 7, 16).to(dtype).requires_grad_(), torch.randn(30, 16, requires_grad=True)
    targets, scale = torch.randint(0, 30, (3, 7)), torch.rand(3, 7)
    targets[0, :3] = -100
    ours = token_losses(hidden, weight, targets)
    logits = F.linear(hidden.float(), weight.to(dtype).float())
    theirs = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(3, 7)
    near = {"atol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.05}
    assert ours.dtype == torch.float32 and torch.allclose(ours, theirs, **near)
    assert (ours[0, :3] == 0).all()
    for a, b in zip(torch.autograd.grad(ours, (hidden, weight), scale, retain_graph=True),
                    torch.autograd.grad(theirs, (hidden, weight), scale), strict=True):
        assert a.dtype == b.dtype and torch.allclose(a, b, **near)
    again = torch.autograd.grad(ours, hidden, scale)[0]
    assert again.isfinite().all()


def test_derivatives_of_first_and_second_order():
    hidden, weight = (torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((4, 3), (5, 3)))
    targets = torch.tensor([0, 4, -100, 2])
    assert torch.autograd.gradcheck(lambda h, w: token_losses(h, w, targets), (hidden, weight))
    assert torch.autograd.gradgradcheck(lambda h, w: token_losses(h, w, targets), (hidden, weight))
