"""A mixture of experts against a loop over tokens; its penalties, capacity, counts, gradients; Mixtral folders."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tilth.models import Experts, TransformerConfig, export_llama, import_llama
from tilth.models.experts import MixtureOfExperts
from tilth.objectives import Causal
from tilth.optim import Muon, group_parameters
from tilth.precision.activations import use_mode
from tilth.precision.calibrate import compress_model
from tilth.recipe import BadInput, parse
from tilth.stages.compress import method_of
from tilth.train import Learner, seeded

WIDTH = 16


def config(**experts) -> TransformerConfig:
    fields = {"count": 4, "active": 2, **experts}
    return TransformerConfig(vocab_size=50, layers=2, width=WIDTH, heads=2, feed_forward=24, context=64, init_std=0.4,
                             experts=fields)


def mixture(**experts) -> MixtureOfExperts:
    model = config(**experts).build().initialize(0).double()
    return model.blocks[0].feed_forward


def routed(block: MixtureOfExperts, x, used=None):
    block.ask_routed()
    return block(x, used), block.take_routed()


def one_by_one(block: MixtureOfExperts, x_BLD: torch.Tensor) -> torch.Tensor:
    """Each token alone: its own softmax, its own choice, its own sum."""
    out = []
    for token in x_BLD.reshape(-1, WIDTH):
        p = torch.softmax(block.router.weight @ token, 0)
        chosen = sorted(range(block.config.count), key=lambda expert: -p[expert])[: block.config.active]
        total = sum(p[expert] for expert in chosen)
        answer = sum(p[expert] / total * block.experts[expert](token) for expert in chosen)
        out.append(answer + block.shared(token) if block.config.shared else answer)
    return torch.stack(out).view(x_BLD.shape)


@given(count=st.integers(2, 5), active=st.integers(1, 5), shared=st.sampled_from([None, 8]), rows=st.integers(1, 3),
       length=st.integers(1, 7), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_it_is_what_each_token_alone_would_get(count, active, shared, rows, length, seed):
    block = mixture(count=count, active=min(active, count), hidden=12, shared=shared)
    x = torch.randn(rows, length, WIDTH, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(block(x), one_by_one(block, x), rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_each_token_alone():
    block = mixture(shared=8)
    x = torch.randn(2, 5, WIDTH, dtype=torch.double, requires_grad=True)
    inputs = [x, *block.parameters()]
    found, expected = (torch.autograd.grad(out.square().sum(), inputs) for out in (block(x), one_by_one(block, x)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_gradients_of_penalties_are_numerically_right():
    block = mixture()

    def penalty(x):
        left = routed(block, x)[1]
        return left.balance + left.router_z

    assert torch.autograd.gradcheck(penalty, torch.randn(1, 6, WIDTH, dtype=torch.double, requires_grad=True), eps=1e-7)


def test_all_experts_active_are_a_dense_weighted_mixture():
    block = mixture(active=4)
    x = torch.randn(2, 7, WIDTH, dtype=torch.double)
    p = torch.softmax(x @ block.router.weight.T, -1)
    dense = sum(p[..., [expert]] * block.experts[expert](x) for expert in range(4))
    torch.testing.assert_close(block(x), dense)


def test_equal_experts_are_the_dense_map_whatever_the_router_says():
    block = mixture()
    for expert in block.experts[1:]:
        expert.load_state_dict(block.experts[0].state_dict())
    x = torch.randn(2, 7, WIDTH, dtype=torch.double)
    torch.testing.assert_close(block(x), block.experts[0](x))


def test_balance_is_1_where_routing_is_uniform_and_the_number_of_experts_where_one_takes_all():
    block = mixture(active=1, balance=1.0, router_z=1.0)
    x = torch.rand(1, 64, WIDTH, dtype=torch.double) + 0.1
    with torch.no_grad():
        block.router.weight.zero_()
        left = routed(block, x)[1]
        assert (float(left.balance), float(left.router_z)) == pytest.approx((1.0, math.log(4) ** 2))
        block.router.weight[2] = 50.0
        left = routed(block, x)[1]
        assert float(left.balance) == pytest.approx(4.0)
        assert left.load.tolist() == [0, 0, 1, 0]
    assert float(left.router_z) == pytest.approx(float((50 * x.sum(-1)).square().mean()), rel=1e-6)


def test_padding_is_asked_nowhere_and_counted_nowhere():
    block = mixture(capacity=0.75)
    x = torch.randn(2, 8, WIDTH, dtype=torch.double)
    used = torch.arange(8) < torch.tensor([[8], [3]])
    y, left = routed(block, x, used)
    alone, expected = routed(block, x[used][None])
    torch.testing.assert_close(y[used], alone[0])
    assert not y[~used].any()
    for one, other in zip(left, expected, strict=True):
        torch.testing.assert_close(one, other)


@given(capacity=st.sampled_from([0.25, 0.5, 1.0, 1.25]), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_over_capacity_the_first_positions_keep_their_expert(capacity, seed):
    block = mixture(capacity=capacity)
    x = torch.randn(1, 12, WIDTH, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    y, left = routed(block, x)
    room, asked, dropped = math.ceil(capacity * 12 * 2 / 4), [0] * 4, 0
    for place, token in enumerate(x[0]):
        p = torch.softmax(block.router.weight @ token, 0)
        values, chosen = p.topk(2)
        answer = torch.zeros(WIDTH, dtype=torch.double)
        for value, expert in zip(values / values.sum(), chosen.tolist(), strict=True):
            asked[expert] += 1
            if asked[expert] <= room:
                answer = answer + value * block.experts[expert](token)
            else:
                dropped += 1
        torch.testing.assert_close(y[0, place], answer)
    assert float(left.dropped) == pytest.approx(dropped / 24)
    assert left.load.tolist() == pytest.approx([one / 24 for one in asked])


def test_nothing_is_dropped_outside_training_and_no_token_depends_on_a_later_one():
    model = config(capacity=0.3).build().initialize(0)
    row = torch.randint(0, 50, (1, 20), generator=torch.Generator().manual_seed(0))
    whole = model.train()(row)
    # The room depends on how many tokens there are, so a later token is exchanged, not left out.
    changed = row.clone()
    changed[0, 12:] = (row[0, 12:] + 7) % 50
    torch.testing.assert_close(model(changed)[:, :12], whole[:, :12])
    assert model.penalties()[1]["expert_dropped"] > 0
    free = config().build().initialize(0)
    torch.testing.assert_close(model.eval()(row), free(row))
    assert "expert_dropped" not in free.penalties()[1]


def test_an_expert_nobody_asks_has_a_gradient_of_zero():
    block = mixture()
    with torch.no_grad():
        block.router.weight[3] = 0
        block.router.weight[:3] = torch.tensor([[3.0], [2.0], [1.0]])
    block(torch.ones(1, 6, WIDTH, dtype=torch.double)).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in block.experts[3].parameters())
    assert block.experts[0].down.weight.grad.any()


@given(st.builds(TransformerConfig, vocab_size=st.integers(1, 40), layers=st.integers(1, 2), width=st.just(16),
                 heads=st.just(2), feed_forward=st.sampled_from([None, 24]), biases=st.booleans(),
                 activation=st.sampled_from(["swiglu", "gelu"]), context=st.just(8), experts=st.builds(
                     Experts, count=st.integers(2, 4), active=st.integers(1, 2), hidden=st.sampled_from([None, 12]),
                     shared=st.sampled_from([None, 8]))))
@settings(max_examples=30, deadline=None)
def test_total_and_active_parameters_are_counted(config):
    with torch.device("meta"):
        model = config.build()
    assert config.parameters() == sum(parameter.numel() for parameter in model.parameters())
    idle = config.experts.count - config.experts.active
    one = sum(parameter.numel() for parameter in model.blocks[0].feed_forward.experts[0].parameters())
    assert config.parameters(active=True) == config.parameters() - config.layers * idle * one


def test_two_experts_are_twice_the_feed_forward_weights():
    dense = TransformerConfig(layers=6, width=256, heads=4, feed_forward=1024)
    twice = dense.model_copy(update={"experts": Experts(count=2, active=1)})
    assert twice.parameters() - dense.parameters() - 6 * 2 * 256 == 4_718_592 == 9_437_184 // 2
    assert twice.parameters(active=True) - dense.parameters() == 6 * 2 * 256, "the routers"


def test_flops_are_those_of_the_experts_asked():
    fields = {"count": 6, "active": 2, "hidden": 12, "shared": 8}
    with FlopCounterMode(display=False) as counter:
        mixture(**fields)(torch.randn(1, 32, WIDTH, dtype=torch.double))
    dense = config().model_copy(update={"experts": None, "feed_forward": 1})
    mixed = config(**fields)
    without = dense.flops_per_token(8, training=False) - 2 * dense.layers * 3 * WIDTH
    ours = (mixed.flops_per_token(8, training=False) - without) / mixed.layers
    assert counter.get_total_flops() == pytest.approx(32 * ours)


def test_initialisation_knows_experts_by_name():
    few, many = (config(count=count).build().initialize(3) for count in (2, 8))
    for name in ("gate", "up", "down"):
        ours, theirs = (getattr(one.blocks[1].feed_forward.experts[1], name).weight for one in (few, many))
        assert torch.equal(ours, theirs)
    down, up = (getattr(many.blocks[0].feed_forward.experts[0], name).weight for name in ("down", "up"))
    assert down.std().item() == pytest.approx(up.std().item() / 2, rel=0.15), "outputs of branches are scaled down"


def test_routers_are_a_group_of_their_own_which_muon_leaves_to_adamw():
    model = config().build().initialize(0)
    groups = {group.name: group.parameters for group in group_parameters(model)}
    assert [id(one) for one in groups["routers"]] == [id(block.feed_forward.router.weight) for block in model.blocks]
    optimizer = Muon().build(group_parameters(model))
    assert "routers" in [group["name"] for group in optimizer.parts[1].param_groups]


def test_routers_stay_in_float32_under_autocast_and_experts_run_in_fp8():
    model = config().build().initialize(0)
    row = torch.randint(0, 50, (2, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.hidden(row)
    terms, figures = model.penalties()
    assert terms["balance_loss"].dtype == torch.float32 and figures["expert_load"].shape == (2, 4)
    wide = TransformerConfig(vocab_size=50, width=32, heads=2, feed_forward=32, experts={"count": 16, "active": 1})
    block = wide.build().initialize(0).blocks[0].feed_forward
    x = torch.randn(1, 3, 32)  # most experts see no token
    plain = block(x)
    use_mode(block, "fp8")
    low = block(x)
    low.sum().backward()
    assert not torch.equal(low, plain) and torch.allclose(low, plain, atol=0.1 * plain.abs().max().item())


def test_penalties_join_any_objective_once():
    model = config().build().initialize(0)
    row = torch.randint(1, 50, (2, 16))
    batch = {"tokens": row, "targets": row, "unit_index": torch.arange(2)[:, None].expand(2, 16),
             "positions": torch.arange(16).expand(2, 16), "unit_id": torch.arange(2), "weight": torch.ones(2)}
    loss = Learner(model, Causal(z_loss=1e-3)).loss("main", batch, seeded(0))
    assert set(loss.terms) == {"z_loss", "balance_loss", "router_z_loss"}
    torch.testing.assert_close(loss.figures["expert_load"].sum(-1), torch.ones(2))
    assert model.penalties() == ({}, {})


def test_experts_are_compressed_without_calibration_only():
    row = torch.randint(0, 50, (2, 16))
    batch = {"tokens": row, "unit_index": torch.zeros_like(row), "positions": torch.arange(16).expand(2, 16)}
    with pytest.raises(BadInput, match="choose rtn"):
        compress_model(config().build().initialize(0), method_of("gptq", 4, []), [batch])
    model = config().build().initialize(0)
    before = model.blocks[0].feed_forward.router.weight.clone()
    layers = compress_model(model, method_of("rtn", 4, []), [])
    assert len(layers) == 2 * (4 + 3 * 4) and torch.equal(model.blocks[0].feed_forward.router.weight, before)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(BadInput, match="active is 9, but there are only 8"):
        parse(TransformerConfig, {"experts": {"active": 9}})
    with pytest.raises(BadInput, match="mup has no rule for a router"):
        parse(TransformerConfig, {"experts": {}, "mup": {}})
    model = config().build()
    with pytest.raises(BadInput, match=r"`model.experts` is not split by --tensor"):
        model.tensor_plan(2)
    assert not {type(part) for part in model.blocks[0].compiled_parts()} & {MixtureOfExperts}


@pytest.fixture(scope="module")
def hf():
    return pytest.importorskip("transformers", reason="compares with transformers: pip install 'tilth[hf]'")


@pytest.mark.parametrize("changes", [{}, {"hidden": 20, "capacity": 1.0}, {"count": 3, "active": 1}],
                         ids=["plain", "narrow", "one of three"])
def test_transformers_computes_the_same_logits_as_a_mixtral(hf, tmp_path, changes):
    model = config(**changes).model_copy(update={"kv_heads": 1}).build().initialize(0).eval()
    tokens = torch.randint(0, 50, (2, 40))
    export_llama(model, tmp_path)
    theirs, info = hf.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == "MixtralForCausalLM"
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.allclose(theirs(tokens).logits, model(tokens), atol=1e-4)


def test_their_mixtral_computes_the_same_logits_here(hf, tmp_path):
    torch.manual_seed(0)
    theirs = hf.MixtralForCausalLM(hf.MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, num_local_experts=5, num_experts_per_tok=2,
        initializer_range=0.2)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    ours_config, ours = import_llama(tmp_path)
    tokens = torch.randint(0, 50, (2, 40))
    with torch.no_grad():
        assert torch.allclose(theirs(tokens).logits, ours.eval()(tokens), atol=1e-4)
    assert (ours_config.experts.count, ours_config.experts.active, ours_config.rope_theta) == (5, 2, 1e6)


def test_a_mixtral_round_trip_keeps_every_bit(tmp_path):
    model = config().build().initialize(0)
    export_llama(model, tmp_path)
    back = import_llama(tmp_path)[1].state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in model.state_dict().items())


def test_what_is_no_mixtral_is_refused_by_field(tmp_path):
    with pytest.raises(BadInput, match=r"`experts.shared`"):
        export_llama(config(shared=8).build(), tmp_path / "out")
    with pytest.raises(BadInput, match=r"as a Mixtral: its `biases`"):
        export_llama(config().model_copy(update={"biases": True}).build(), tmp_path / "out")
    export_llama(config().build().initialize(0), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, "router_jitter_noise": 0.1}))
    with pytest.raises(BadInput, match="`router_jitter_noise`"):
        import_llama(tmp_path)
