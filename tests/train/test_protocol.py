"""The protocol is general: three unlike studies train in the one loop, which knows none of them.

In-context regression (continuous inputs, squared loss, a generator as stream), a two-tower contrastive learner with a
queue of negatives and moving-average teachers, and a generator against a discriminator.
"""

import copy
import math
import signal
from collections import deque

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_toys import Pairs, RowStream, Towers, curve, make_loop, same, weights

from tilth.models import TransformerConfig
from tilth.objectives import Loss
from tilth.optim import AdamW, Cosine, group_parameters
from tilth.recipe import Interrupted
from tilth.train import Every, Learner, seeded


def interrupted_and_resumed(tmp_path, build, step: int):
    """The loop of `build(folder, hooks)`, undisturbed and once stopped after `step`: both must agree bit for bit."""
    straight = build(tmp_path / "straight", [])
    straight.run()
    stop = Every(1, lambda loop: signal.raise_signal(signal.SIGTERM) if loop.at.step == step else None)
    with pytest.raises(Interrupted):
        build(tmp_path / "stopped", [stop]).run()
    resumed = build(tmp_path / "stopped", [])
    resumed.run()
    assert curve(tmp_path / "straight") == curve(tmp_path / "stopped")
    assert same(weights(straight.learner), weights(resumed.learner))
    return straight


# (x, f(x)) in-context regression. Shapes: B sequences, N points, D width, 2 features of a point's two positions.


class Functions(RowStream):
    """Sequences of N points of a random function: `a x`, or `sqrt(2) sin(omega x + phase)` for a share `sines` of
    them; x normal, and y of unit variance in either family. One unit is one sequence, its source the family."""

    def __init__(self, points: int = 6, sines: float = 0.0, seed: int = 0):
        super().__init__(seed)
        self.points, self.sines = points, sines

    def row(self, number: int, rng: torch.Generator) -> dict[str, Tensor]:
        x = torch.randn(self.points, generator=rng)
        slope, share, frequency, phase = torch.randn((), generator=rng), *torch.rand(3, generator=rng)
        family = (share < self.sines).long()
        sine = math.sqrt(2) * torch.sin((1 + 3 * frequency) * x + 2 * math.pi * phase)
        return {"x": x, "y": torch.where(family == 1, sine, slope * x), "source": family}


class InContext(Learner):
    """A causal transformer over x_1, y_1, x_2, ... that predicts each y at the position of its x (Garg et al. 2022)."""

    def __init__(self, points: int = 6, width: int = 32):
        config = TransformerConfig(vocab_size=1, layers=2, width=width, heads=2, positions="learned", tied=False,
                                   context=2 * points)
        super().__init__(config.build().initialize(0), objective=None)
        self.modules["read_in"], self.modules["read_out"] = nn.Linear(2, width), nn.Linear(width, 1)
        for index, parameter in enumerate([*self.modules["read_in"].parameters(),
                                           *self.modules["read_out"].parameters()]):
            nn.init.normal_(parameter, std=0.3, generator=seeded("in context", index))

    def parameter_groups(self, update):
        return group_parameters(self.modules)

    def predict(self, x_BN: Tensor, y_BN: Tensor) -> Tensor:
        """(B, N): what is predicted for each y from its x and the points before it."""
        zero = torch.zeros_like(x_BN)
        pairs_BN22 = torch.stack([torch.stack([x_BN, zero], -1), torch.stack([zero, y_BN], -1)], 2)
        hidden = self.modules["model"].hidden(embeddings=self.modules["read_in"](pairs_BN22.flatten(1, 2)))
        return self.modules["read_out"](hidden[:, ::2])[..., 0]

    def loss(self, update, batch, rng):
        return Loss((self.predict(batch["x"], batch["y"]) - batch["y"]).square().sum(1), self.count(update, batch))

    def count(self, update, batch):
        return torch.full((len(batch["x"]),), float(batch["x"].shape[1]))


def in_context_loop(folder, hooks=(), steps=12, sines=0.0, **more):
    return make_loop(folder, InContext(), Functions(sines=sines), steps=steps, rows=32, micro_rows=16,
                     optimizer=AdamW(lr=4e-3), schedule=Cosine(warmup=0.1), hooks=list(hooks), **more)


@torch.no_grad()
def errors(learner, batch) -> Tensor:
    """(N,) mean squared error at each number of examples."""
    return (learner.predict(batch["x"], batch["y"]) - batch["y"]).square().mean(0)


def test_families_of_functions_have_unit_variance_and_their_share():
    batch = Functions(sines=0.25, seed=7).next(4000)
    assert batch["source"].double().mean().item() == pytest.approx(0.25, abs=3 * math.sqrt(0.25 * 0.75 / 4000))
    for family in (0, 1):
        y = batch["y"][batch["source"] == family]
        # Sequences are independent, their points are not: one mean square a sequence.
        squares = y.square().mean(1)
        assert squares.mean().item() == pytest.approx(1, abs=3 * (squares.std() / len(squares) ** 0.5).item())


def test_in_context_regression_learns_from_the_examples_before_it(tmp_path):
    fresh = Functions(seed=1).next(2000)
    learner = InContext()
    untrained = errors(learner, fresh)
    loop = in_context_loop(tmp_path, steps=300)
    loop.run()
    trained = errors(loop.learner, fresh)
    variance = fresh["y"].var().item()
    assert trained[0].item() == pytest.approx(variance, rel=0.25), "nothing is known before the first example"
    assert trained[-3:].mean() < 0.4 * variance
    assert (trained[-3:] < 0.5 * untrained[-3:]).all()


def test_changing_an_answer_changes_no_prediction_up_to_its_own():
    learner, batch = InContext(), Functions().next(4)
    before = learner.predict(batch["x"], batch["y"])
    for place in range(batch["y"].shape[1]):
        y = batch["y"].clone()
        y[:, place:] += 5.0
        after = learner.predict(batch["x"], y)
        assert torch.equal(after[:, :place + 1], before[:, :place + 1])
        assert place == y.shape[1] - 1 or not torch.equal(after[:, place + 1:], before[:, place + 1:])


def test_in_context_run_resumes_exactly_and_its_generator_goes_on(tmp_path):
    loop = interrupted_and_resumed(tmp_path, lambda folder, hooks: in_context_loop(folder, hooks, sines=0.5), 5)
    assert loop.stream.state_dict() == {"at": 12 * 32}


# Two towers, a queue of negatives, moving-average teachers. U pairs, K of the queue, D width.


class MomentumTowers(Towers):
    """Each tower against the other tower's teacher: the pair's own embedding first, a queue of earlier ones as
    negatives (He et al. 2020). The teachers follow their towers by a moving average, and fill the queues."""

    def __init__(self, queue: int = 32, width: int = 8, decay: float = 0.9):
        super().__init__(width)
        self.decay = decay
        for side in ("left", "right"):
            self.modules[f"{side}_teacher"] = copy.deepcopy(self.tower(side)).requires_grad_(False)
            self.state[f"{side}_queue"] = F.normalize(torch.randn(queue, width, generator=seeded(side)), dim=1)
        self.state["pushed"] = torch.zeros((), dtype=torch.int64)
        self.waiting = []

    def tower(self, side):
        return self.modules["model" if side == "left" else "right"]

    def parameter_groups(self, update):
        return group_parameters(nn.ModuleList([self.tower("left"), self.tower("right")]))

    def before_update(self, update, step):
        self.waiting = []

    def loss(self, update, batch, rng):
        with torch.no_grad():
            keys = {side: F.normalize(self.modules[f"{side}_teacher"](batch[side]), dim=1)
                    for side in ("left", "right")}
        self.waiting.append(keys)
        total = self.one_way(batch, "left", keys["right"], "right") + self.one_way(batch, "right", keys["left"], "left")
        return Loss(total, self.count(update, batch))

    def one_way(self, batch, side, key_UD, other):
        query_UD = F.normalize(self.tower(side)(batch[side]), dim=1)
        own_U1 = (query_UD * key_UD).sum(1, keepdim=True)
        logits = torch.cat([own_U1, query_UD @ self.state[f"{other}_queue"].T], 1) / 0.2
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="none")

    @torch.no_grad()
    def after_step(self, step):
        pushed = sum(len(keys["left"]) for keys in self.waiting)
        for side in ("left", "right"):
            queue = self.state[f"{side}_queue"]
            places = (self.state["pushed"] + torch.arange(pushed)) % len(queue)
            queue[places] = torch.cat([keys[side] for keys in self.waiting])
            for average, new in zip(self.modules[f"{side}_teacher"].parameters(), self.tower(side).parameters(),
                                    strict=True):
                average.lerp_(new, 1 - self.decay)
        self.state["pushed"] += pushed


def towers_loop(folder, hooks=(), steps=10, micro_rows=4):
    return make_loop(folder, MomentumTowers(), Pairs(), steps=steps, rows=8, micro_rows=micro_rows,
                     optimizer=AdamW(lr=2e-2, weight_decay=0.0), hooks=list(hooks))


@torch.no_grad()
def retrieval(learner, pairs: int = 64) -> float:
    """Share of fresh left views whose own right view is the nearest of all."""
    left, right = learner.embed(Pairs(seed=9).next(pairs))
    nearest = (F.normalize(left, dim=1) @ F.normalize(right, dim=1).T).argmax(1)
    return (nearest == torch.arange(pairs)).double().mean().item()


def test_contrastive_towers_learn_to_find_the_other_view(tmp_path):
    loop = towers_loop(tmp_path, steps=150)
    assert retrieval(loop.learner) < 0.2
    loop.run()
    assert retrieval(loop.learner) > 0.6


def test_teachers_get_no_gradient_and_are_the_moving_average(tmp_path):
    learner = MomentumTowers()
    expected = learner.tower("left").weight.detach().clone()
    averages = deque([expected], maxlen=1)
    follow = Every(1, lambda loop: averages.append(
        averages[-1].lerp(learner.tower("left").weight.detach(), 1 - learner.decay)))
    loop = make_loop(tmp_path, learner, Pairs(), steps=6, hooks=[follow])
    trained = {id(one) for group in loop.optimizers["main"].param_groups for one in group["params"]}
    teachers = [*learner.modules["left_teacher"].parameters(), *learner.modules["right_teacher"].parameters()]
    loop.run()
    assert all(one.grad is None and not one.requires_grad and id(one) not in trained for one in teachers)
    torch.testing.assert_close(learner.modules["left_teacher"].weight, averages[-1], rtol=1e-6, atol=1e-7)
    assert not torch.equal(averages[-1], expected)


def test_queue_holds_the_newest_keys_whatever_the_size_of_micro_batches(tmp_path):
    queues = []
    for micro_rows in (8, 2):
        loop = towers_loop(tmp_path / str(micro_rows), steps=3, micro_rows=micro_rows)
        start = loop.learner.state["left_queue"].clone()
        loop.run()
        queue = loop.learner.state["left_queue"]
        assert loop.learner.state["pushed"].item() == 24
        assert torch.equal(queue[24:], start[24:]) and not torch.isclose(queue[:24], start[:24]).all(1).any()
        queues.append(queue)
    torch.testing.assert_close(*queues)


@pytest.mark.parametrize("step", [1, 4, 9])
def test_queue_and_teachers_survive_a_stop_bit_for_bit(tmp_path, step):
    loop = interrupted_and_resumed(tmp_path, towers_loop, step)
    kept = weights(loop.learner)
    assert {"state.left_queue", "state.pushed", "left_teacher.weight", "right_teacher.weight"} <= kept.keys()
    assert kept["state.pushed"].item() == 80


# A generator against a discriminator: two updates a step, disjoint parameters.


class Samples(RowStream):
    """Numbers from a normal distribution with mean 2 and standard deviation 0.5."""

    def row(self, number, rng):
        return {"x": 2 + 0.5 * torch.randn(1, generator=rng)}


class Adversaries(Learner):
    """A discriminator that tells real numbers from made ones, then a generator that is trained against it."""

    updates = ("discriminator", "generator")

    def __init__(self):
        super().__init__(nn.Linear(1, 1), objective=None)
        self.modules["discriminator"] = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
        for index, parameter in enumerate(self.modules.parameters()):
            nn.init.normal_(parameter, std=0.5, generator=seeded("adversaries", index))

    def owned(self, update):
        return self.modules["model" if update == "generator" else "discriminator"]

    def parameter_groups(self, update):
        return group_parameters(self.owned(update))

    def made(self, units, rng):
        return self.modules["model"](torch.randn(units, 1, generator=rng))

    def loss(self, update, batch, rng):
        judge, made = self.modules["discriminator"], self.made(len(batch["x"]), rng)
        if update == "generator":
            total = F.softplus(-judge(made))
        else:
            total = F.softplus(-judge(batch["x"])) + F.softplus(judge(made.detach()))
        return Loss(total[:, 0], self.count(update, batch))

    def count(self, update, batch):
        return torch.ones(len(batch["x"]))


ADVERSARIAL = AdamW(lr=1e-2, betas=(0.5, 0.9), weight_decay=0.0)


def adversaries_loop(folder, hooks=(), steps=6, **more):
    return make_loop(folder, Adversaries(), Samples(), steps=steps, rows=32, micro_rows=16, optimizer=ADVERSARIAL,
                     hooks=list(hooks), clip=None, **more)


def test_generator_comes_to_make_what_the_discriminator_cannot_tell(tmp_path):
    loop = adversaries_loop(tmp_path, steps=400)
    before = loop.learner.made(1000, seeded("fresh")).mean().item()
    loop.run()
    after = loop.learner.made(1000, seeded("fresh")).mean().item()
    assert abs(before - 2) > 1.5
    assert abs(after - 2) < 0.5
    assert {"loss", "gradient_norm", "generator_loss", "generator_gradient_norm"} <= curve(tmp_path)[-1].keys()


def test_each_update_changes_its_own_parameters_only(tmp_path):
    changed = []

    class Watched(Adversaries):
        seen = None

        def before_update(self, update, step):
            self.note()
            self.current = update

        def after_step(self, step):
            self.note()
            self.seen = None

        def note(self):
            now = weights(self)
            if self.seen is not None:
                moved = {name.split(".")[0] for name in now if not torch.equal(now[name], self.seen[name])}
                changed.append((self.current, moved))
            self.seen = now

    make_loop(tmp_path, Watched(), Samples(), steps=4, optimizer=ADVERSARIAL).run()
    assert changed == [("discriminator", {"discriminator"}), ("generator", {"model"})] * 4


def test_two_updates_equal_a_plain_loop(tmp_path):
    """Gradients that one update leaves on the other's parameters must not count."""
    loop = adversaries_loop(tmp_path, steps=5)
    loop.run()
    learner, stream = Adversaries(), Samples()
    optimizers = {update: ADVERSARIAL.build(learner.parameter_groups(update)) for update in learner.updates}
    for step in range(5):
        batches = [stream.next(16), stream.next(16)]
        for update, optimizer in optimizers.items():
            parameters = list(learner.owned(update).parameters())
            totals = [learner.loss(update, batch, seeded(0, update, step, index)).total.sum() / 32
                      for index, batch in enumerate(batches)]
            for parameter, gradient in zip(parameters, torch.autograd.grad(sum(totals), parameters), strict=True):
                parameter.grad = gradient
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * Cosine().multiplier(step, 5)
            optimizer.step()
    for name, tensor in weights(loop.learner).items():
        torch.testing.assert_close(tensor, weights(learner)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [1, 5])
def test_two_update_run_resumes_exactly(tmp_path, step):
    interrupted_and_resumed(tmp_path, adversaries_loop, step)


def test_loss_of_the_first_update_is_what_the_stream_observes(tmp_path):
    loop = adversaries_loop(tmp_path, steps=1)
    loop.run()
    told = torch.cat([loss for _, loss in loop.stream.told])
    assert len(told) == 32, "once a unit, not once an update"
    assert told.mean().item() == pytest.approx(curve(tmp_path)[0]["loss"], rel=1e-5)
