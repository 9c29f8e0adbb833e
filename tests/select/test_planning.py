"""Steps and stretches from a budget: the most that it pays for, with less than a step unspent."""

from hypothesis import given
from hypothesis import strategies as st

from tilth.select.planning import affordable, steps_within


def test_steps_within_a_budget():
    assert steps_within(100.0, 1.0, lambda steps: 0.0) == 100
    assert steps_within(24 * 0.1, 0.1, lambda steps: 0.0) == 24
    assert steps_within(100.0, 1.0, lambda steps: 30.0) == 70
    assert steps_within(100.0, 1.0, lambda steps: max(steps - 10, 0) / 3) == 77
    assert steps_within(10.0, 1.0, lambda steps: 30.0) == 0


@given(budget=st.floats(1, 1e4), lump=st.floats(0, 500), a_stretch=st.floats(0.5, 100), in_hand=st.floats(0, 50),
       share=st.floats(0, 1))
def test_lumps_leave_less_than_a_step(budget, lump, a_stretch, in_hand, share):
    def choosing(steps, stretches):
        return share * steps + lump * stretches

    steps, stretches = affordable(budget, 1.0, choosing, a_stretch, in_hand)
    assert steps + choosing(steps, stretches) <= budget * (1 + 1e-6)
    assert steps + 1 + choosing(steps + 1, stretches) > budget * (1 - 1e-6)
    assert not stretches or steps >= in_hand + (stretches - 0.5) * a_stretch
    more = steps_within(budget, 1.0, lambda count: choosing(count, stretches + 1))
    assert more < in_hand + (stretches + 0.5) * a_stretch or more == 0
