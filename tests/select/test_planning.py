"""Steps and stretches from a budget: the most that it pays for, with less than a step unspent."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tilth.select.planning import affordable, steps_within
from tilth.stages.paying import Paying


def test_steps_within_a_budget():
    assert steps_within(100.0, 1.0, lambda steps: 0.0) == 100
    assert steps_within(24 * 0.1, 0.1, lambda steps: 0.0) == 24
    assert steps_within(100.0, 1.0, lambda steps: 30.0) == 70
    assert steps_within(100.0, 1.0, lambda steps: max(steps - 10, 0) / 3) == 77
    assert steps_within(10.0, 1.0, lambda steps: 30.0) == 0


@given(budget=st.floats(1, 1e4), lump=st.floats(0, 500), a_stretch=st.floats(0.5, 100), in_hand=st.floats(0, 50),
       share=st.floats(0, 1), most=st.none() | st.integers(0, 5))
def test_lumps_leave_less_than_a_step(budget, lump, a_stretch, in_hand, share, most):
    def choosing(steps, stretches):
        return share * steps + lump * stretches

    steps, stretches = affordable(budget, 1.0, choosing, a_stretch, in_hand, most)
    assert steps + choosing(steps, stretches) <= budget * (1 + 1e-6)
    assert steps + 1 + choosing(steps + 1, stretches) > budget * (1 - 1e-6)
    assert not stretches or steps >= in_hand + (stretches - 0.5) * a_stretch
    if stretches == most:
        return
    assert most is None or stretches < most
    more = steps_within(budget, 1.0, lambda count: choosing(count, stretches + 1))
    assert more < in_hand + (stretches + 0.5) * a_stretch or more == 0


class Lumps:
    """A policy whose measuring costs 100 a stretch after the first, as long as it is paid for, and whose drawing costs
    `drawing` ever after."""

    stretch_tokens, last_stretch, planned_at = 1000.0, None, -1

    def __init__(self, drawing=0.0):
        self.drawing = drawing

    def planned_flops(self, plan):
        return 100.0 * max(plan.stretches - 1, 0) + self.drawing * max(plan.stretches + plan.beyond - 1, 0)

    def plan_until(self, last, at):
        self.last_stretch, self.planned_at = last, at


@given(rows=st.integers(20, 300), cost=st.floats(60, 140), drawing=st.sampled_from([0.0, 30.0]),
       seed=st.integers(0, 50))
def test_a_run_uses_up_its_budget_whatever_its_stretches_turn_out_to_be(rows, cost, drawing, seed):
    """Steps cost 1, a stretch was planned at 100 steps and 100 FLOPs; it has `rows` and costs `cost`, about. What is
    drawn after the last measurement costs too, and may end up to one drawing below the budget."""
    rng, policy = np.random.default_rng(seed), Lumps(drawing)
    plain = Paying(policy, 1000.0, 1, 10, 1.0)
    steps, stretches = plain.plan(1000.0)
    at, stream = SimpleNamespace(step=0, flops=0.0), SimpleNamespace(stretch=-1, stretch_rows=0, row=0)
    loop = SimpleNamespace(at=at, settings=SimpleNamespace(steps=steps, first_step=0))
    Paying(policy, 1000.0, 1, 10, 1.0, None, stretches).bind(loop, stream)
    chosen = 0
    while at.step < loop.settings.steps:
        if stream.row >= stream.stretch_rows:
            stream.stretch, stream.row = stream.stretch + 1, 0
            stream.stretch_rows = max(1, round(rows * rng.uniform(0.8, 1.2)))
            if stream.stretch >= 1 and (policy.last_stretch is None or stream.stretch <= policy.last_stretch):
                at.flops, chosen = at.flops + cost, chosen + 1
            at.flops += drawing * (stream.stretch >= 1)
        stream.row += 1
        loop.replan(loop)
        at.step, at.flops = at.step + 1, at.flops + 1
    assert chosen <= stretches - 1
    assert 997 - drawing < at.flops < 1000 + max(cost - 100, 0) + 2
