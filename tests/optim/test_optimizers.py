"""Parameter groups, Muon against torch's own, and states that round-trip."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tilth.models import TransformerConfig
from tilth.optim import AdamW, Muon, ParameterGroup, group_parameters
from tilth.optim.muon import Muon as MatrixMuon
from tilth.optim.muon import orthogonalize
from tilth.recipe import BadInput


def model(**more):
    return TransformerConfig(vocab_size=11, layers=2, width=16, heads=2, context=8, **more).build().initialize(0)


@pytest.mark.parametrize("tied", [True, False])
def test_groups_hold_every_trained_parameter_once_and_only_matrices_decay(tied):
    module = model(tied=tied, biases=True, norm="layer", positions="learned")
    module.blocks[0].requires_grad_(False)
    groups = group_parameters(module)
    found = [id(parameter) for group in groups for parameter in group.parameters]
    assert len(found) == len(set(found))
    assert set(found) == {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    by_name = {group["name"]: group for group in AdamW(weight_decay=0.3).build(groups).param_groups}
    assert {name: group["weight_decay"] for name, group in by_name.items()} == {
        "matrices": 0.3, "embeddings": 0.0, "vectors": 0.0}
    assert all(parameter.ndim == 2 for parameter in by_name["matrices"]["params"])
    tables = [module.embedding.weight, module.position_embedding.weight]
    tables += [] if tied else [module.unembedding.weight]
    assert {id(one) for one in by_name["embeddings"]["params"]} == {id(one) for one in tables}


@pytest.mark.parametrize("config", [AdamW, Muon])
def test_decay_alone_shrinks_matrices_by_lr_times_decay_and_leaves_the_rest(config):
    module = model()
    before = copy.deepcopy(module)
    optimizer = config(lr=0.1, weight_decay=0.5).build(group_parameters(module))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for (name, new), old in zip(module.named_parameters(), before.parameters(), strict=True):
        factor = 0.95 if new.ndim == 2 and "embedding" not in name else 1.0
        torch.testing.assert_close(new, old * factor)


@pytest.mark.parametrize("config", [AdamW, Muon])
def test_lr_scale_multiplies_the_peak_rate_of_its_group(config):
    optimizer = config(lr=0.01, lr_scale={"embeddings": 3.0, "matrices": 0.5})
    groups = optimizer.build(group_parameters(model())).param_groups
    rates = {group["name"]: group["peak_lr"] for group in groups}
    assert rates == pytest.approx({"matrices": 0.005, "embeddings": 0.03, "vectors": 0.01})
    assert all(group["lr"] == group["peak_lr"] for group in groups)


@pytest.mark.parametrize("config", [AdamW, Muon])
def test_lr_scale_of_an_unknown_group_names_the_nearest(config):
    with pytest.raises(BadInput, match=r"'embedings'.*did you mean 'embeddings'\?"):
        config(lr_scale={"embedings": 2.0}).build(group_parameters(model()))


@pytest.mark.parametrize("config", [AdamW, Muon])
def test_a_groups_own_decay_replaces_the_default_and_its_name_is_checked(config):
    groups = config(weight_decay=0.1, group_decay={"embeddings": 0.02, "matrices": 0.0}).build(
        group_parameters(model())).param_groups
    assert {group["name"]: group["weight_decay"] for group in groups} == {
        "matrices": 0.0, "embeddings": 0.02, "vectors": 0.0}
    with pytest.raises(BadInput, match=r"group_decay.*'matrix'"):
        config(group_decay={"matrix": 0.2}).build(group_parameters(model()))


def test_muon_matrix_rate_follows_its_scale_and_other_shapes_are_refused():
    groups = Muon(lr=0.01, matrix_lr_scale=4).build(group_parameters(model())).param_groups
    assert {group["name"]: group["peak_lr"] for group in groups}["matrices"] == pytest.approx(0.04)
    with pytest.raises(BadInput, match="two dimensions"):
        Muon().build(group_parameters(nn.Conv2d(1, 2, 3)))


def test_muon_equals_torchs_muon_in_bfloat16():
    torch.manual_seed(0)
    shapes = [(24, 8), (8, 24), (16, 16), (24, 8)]
    ours = [nn.Parameter(torch.randn(shape) * 0.1) for shape in shapes]
    theirs = [nn.Parameter(one.detach().clone()) for one in ours]
    start = [one.detach().clone() for one in ours]
    mine = MatrixMuon(ours, lr=0.02, momentum=0.9, weight_decay=0.1, dtype=torch.bfloat16)
    peer = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True,
                            adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        mine.step()
        peer.step()
    for one, other, begin in zip(ours, theirs, start, strict=True):
        moved = (other - begin).norm()
        assert (one - other).norm() < 0.05 * moved  # a rounding of bfloat16 (0.4 %) at each of fifteen products


def test_muon_follows_its_formula_exactly_in_float64():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(6, 4, dtype=torch.float64))
    expected, buffer = parameter.detach().clone(), torch.zeros(6, 4, dtype=torch.float64)
    optimizer = MatrixMuon([parameter], lr=0.02, momentum=0.9, weight_decay=0.1, dtype=torch.float64)
    for _ in range(3):
        parameter.grad = torch.randn_like(parameter)
        buffer = 0.9 * buffer + 0.1 * parameter.grad
        x = (0.1 * parameter.grad + 0.9 * buffer).T
        x = x / x.norm()
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * 0.2 * 6 ** 0.5 * x.T
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 24), columns=st.integers(1, 24), scale=st.sampled_from([1e-4, 1.0, 1e4]),
       seed=st.integers(0, 10**6))
def test_orthogonalized_singular_values_are_near_one_at_any_scale(rows, columns, scale, seed):
    torch.manual_seed(seed)
    # Of known spectrum: Newton-Schulz lifts only what is not tiny beside the norm.
    size = min(rows, columns)
    left, right = torch.linalg.qr(torch.randn(rows, size))[0], torch.linalg.qr(torch.randn(columns, size))[0]
    matrix = left @ torch.diag(torch.empty(size).uniform_(0.2, 1.0)) @ right.T * scale
    found = torch.linalg.svdvals(orthogonalize(matrix[None])[0])
    assert found.min() > 0.6 and found.max() < 1.3
    twice = orthogonalize(torch.stack([matrix, matrix * 2]))
    torch.testing.assert_close(twice[0], twice[1], atol=1e-4, rtol=1e-4)


def test_orthogonalize_keeps_the_singular_vectors():
    torch.manual_seed(0)
    matrix = torch.randn(12, 20)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalize(matrix[None])[0] @ v.T
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-4
    assert inner.diagonal().min() > 0.5


@pytest.mark.parametrize("config", [AdamW(lr=0.01), Muon(lr=0.01)], ids=["adamw", "muon"])
def test_state_round_trips_so_that_the_next_steps_are_bit_identical(config):
    torch.manual_seed(0)
    module = model()
    optimizer = config.build(group_parameters(module))

    def step(one, optimizer, number):
        torch.manual_seed(number)
        for parameter in one.parameters():
            parameter.grad = torch.randn(parameter.shape)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] / (1 + number)
        optimizer.step()

    for number in range(3):
        step(module, optimizer, number)
    other = copy.deepcopy(module)
    loaded = config.build(group_parameters(other))
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for number in range(3, 6):
        step(module, optimizer, number)
        step(other, loaded, number)
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_learners_own_group_names_keep_their_scale_and_decay():
    parameters = [ParameterGroup("generator", [nn.Parameter(torch.ones(2, 2))])]
    group = AdamW(lr=0.1, weight_decay=0.2, lr_scale={"generator": 2}).build(parameters).param_groups[0]
    assert (group["name"], group["peak_lr"], group["weight_decay"]) == ("generator", 0.2, 0.2)
