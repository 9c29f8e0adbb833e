"""Averages of weights: the recursion and the mean themselves, exact resumption, what training does not see of them."""

import pytest
import torch
from train_toys import make_loop, pool_stream, same, text_learner, weights

from tilth.optim import Constant
from tilth.recipe import BadInput, parse
from tilth.stages.averaging import averaged_steps
from tilth.train import Every
from tilth.train.averaging import Ema, LastCheckpoints, MovingAverage, mean_of
from tilth.train.stability import Stability, copied


def averaging_loop(folder, name, steps, decay=0.6, pool=None, **more):
    learner = text_learner()
    hook = MovingAverage(learner, Ema(decay=decay))
    return make_loop(folder / name, learner, pool_stream(pool or folder / "pool"), steps=steps, micro_rows=4,
                     schedule=Constant(warmup=0), hooks=[Every(1, hook), *more.pop("hooks", [])], **more)


def model_of(loop, name="model"):
    return {key: tensor.clone() for key, tensor in loop.learner.modules[name].state_dict().items()}


def test_a_moving_average_is_its_recursion_and_leaves_training_alone(tmp_path):
    seen = []
    loop = averaging_loop(tmp_path, "averaged", 6, hooks=[Every(1, lambda loop: seen.append(model_of(loop)))])
    expected = model_of(loop)
    loop.run()
    for step, state in enumerate(seen, 1):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = {key: decay * value + (1 - decay) * state[key] for key, value in expected.items()}
    found = model_of(loop, "average")
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    plain = make_loop(tmp_path / "plain", text_learner(), pool_stream(tmp_path / "pool"), steps=6, micro_rows=4,
                      schedule=Constant(warmup=0))
    plain.run()
    assert same(model_of(plain), model_of(loop))
    assert not any(parameter.requires_grad for parameter in loop.learner.modules["average"].parameters())


def test_a_moving_average_stopped_and_resumed_is_the_same_to_the_bit(tmp_path):
    whole = averaging_loop(tmp_path, "whole", 6)
    whole.run()
    averaging_loop(tmp_path, "pieces", 2).run()
    averaging_loop(tmp_path, "pieces", 3).run()
    pieces = averaging_loop(tmp_path, "pieces", 6)
    pieces.run()
    assert same(weights(whole.learner), weights(pieces.learner))
    assert any(name.startswith("average.") for name in weights(whole.learner))


def test_a_moving_average_goes_back_with_the_weights(tmp_path):
    """A guard that rolls back puts back the average of the calm step, which then moves to the weights of that step."""
    loop = averaging_loop(tmp_path, "guarded", 1)
    loop.run()
    guard = Stability(action="rollback").build()
    guard.snapshot = copied({"step": loop.at.step, "learner": loop.learner.state_dict(), "optimizers": {
        name: optimizer.state_dict() for name, optimizer in loop.optimizers.items()}})
    before = weights(loop.learner)
    with torch.no_grad():
        for parameter in loop.learner.modules.parameters():
            parameter.add_(1.0)
    guard._put_back(loop)
    assert same(weights(loop.learner), before)


def test_a_mean_is_the_mean_and_keeps_types():
    states = [{"a": torch.randn(3, 4), "b": torch.randn(2).to(torch.bfloat16)} for _ in range(5)]
    found = mean_of(iter(states))
    torch.testing.assert_close(found["a"], torch.stack([one["a"] for one in states]).double().mean(0).float())
    assert found["b"].dtype == torch.bfloat16


def test_checkpoints_to_average_are_the_last_at_fixed_steps_or_too_few():
    three = LastCheckpoints(count=3)
    assert averaged_steps(three, 4, 0, 18) == [8, 12, 16]
    assert averaged_steps(three, 4, 6, 18) == [8, 12, 16]
    with pytest.raises(BadInput, match="a run of 10 steps keeps 2 checkpoints"):
        averaged_steps(three, 4, 0, 10)
    with pytest.raises(BadInput, match=r"set `checkpoint.keep_every`"):
        averaged_steps(three, None, 0, 10)
    with pytest.raises(BadInput, match="decay"):
        parse(Ema, {"decay": 1.0})
