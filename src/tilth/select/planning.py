"""How long a run can be that pays for its choosing: steps and stretches from a budget in FLOPs.

What choosing costs comes in lumps, a stretch at a time. A plan that ended where the next lump is too much would leave
up to a lump of the budget unspent. So the last stretch that is paid for may be longer or shorter by half a stretch, and
what is drawn beyond it is chosen by what is known by then (`Part.last_stretch`).
"""

import math
from collections.abc import Callable

TOLERANCE = 1e-9


def steps_within(flops: float, flops_per_step: float, choosing: Callable[[int], float]) -> int:
    """The most steps s with s * flops_per_step + choosing(s) <= flops, to within rounding; `choosing` must not fall."""
    low, high = 0, math.floor(flops / flops_per_step * (1 + TOLERANCE))
    while low < high:
        middle = (low + high + 1) // 2
        enough = middle * flops_per_step + choosing(middle) <= flops * (1 + TOLERANCE)
        low, high = (middle, high) if enough else (low, middle - 1)
    return low


def affordable(flops: float, flops_per_step: float, choosing: Callable[[int, int], float], a_stretch: float,
               in_hand: float = 0.0, most: int | None = None) -> tuple[int, int]:
    """The steps that `flops` pay for, and the stretches to choose for them.

    choosing(steps, stretches): the FLOPs of choosing, which must not fall; a_stretch: steps of a stretch; in_hand:
    steps that the stretch being served still holds. The stretches are the most (`most` at most) of which the last is
    used for half of its length or more.
    """
    def steps(stretches: int) -> int:
        return steps_within(flops, flops_per_step, lambda count: choosing(count, stretches))

    low, high = 0, max(0, math.ceil((steps(0) - in_hand) / a_stretch))
    high = high if most is None else min(high, max(most, 0))
    while low < high:
        middle = (low + high + 1) // 2
        used = steps(middle) >= in_hand + (middle - 0.5) * a_stretch
        low, high = (middle, high) if used else (low, middle - 1)
    return steps(low), low
