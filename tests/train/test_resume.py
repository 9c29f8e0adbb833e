"""Stop anywhere, start again: the same curve and the same weights, bit for bit."""

import signal
import threading

import pytest
import torch
from train_toys import PackedRows, curve, make_loop, pool_stream, same, text_learner, weights

from tilth.data.trace import DrawnLog
from tilth.optim import WSD, AdamW, Muon
from tilth.recipe import BadInput, Interrupted
from tilth.train import Every

STEPS = 8
OPTIMIZERS = {"adamw": AdamW(lr=1e-2), "muon": Muon(lr=1e-2)}


class Crash(Exception):
    """What a kill looks like from inside: nothing is saved after it."""


def stop_after(step: int, number=signal.SIGTERM) -> Every:
    return Every(1, lambda loop: signal.raise_signal(number) if loop.at.step == step else None)


def crash_after(step: int) -> Every:
    def crash(loop):
        if loop.at.step == step:
            raise Crash

    return Every(1, crash)


def loop_of(tmp_path, name, optimizer, hooks=(), **more):
    """Shuffled packed text in small stretches, two micro-batches, a schedule with three phases, a held-out hook."""
    looks = Every(3, lambda loop: {"held_out": {"weight": next(loop.learner.modules.parameters()).sum().item()}})
    return make_loop(tmp_path / name, text_learner(), pool_stream(tmp_path / "pool", seed=4), steps=STEPS, rows=4,
                     micro_rows=2, optimizer=OPTIMIZERS[optimizer], schedule=WSD(warmup=2, decay=3), seed=4,
                     hooks=[looks, *hooks], **more)


@pytest.fixture(scope="module", params=sorted(OPTIMIZERS))
def undisturbed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    loop = loop_of(folder, "run", request.param)
    loop.run()
    assert loop.stream.stretch >= 2, "the run must cross stretches"
    assert loop.stream.row > 0
    return request.param, curve(folder / "run"), weights(loop.learner), loop.stream.state_dict()


def check(undisturbed, loop, folder):
    _, lines, final, stream = undisturbed
    assert curve(folder) == lines
    assert same(weights(loop.learner), final)
    assert loop.stream.state_dict() == stream


@pytest.mark.parametrize("step", range(1, STEPS))
def test_stop_at_any_step_and_go_on_is_bit_identical(undisturbed, tmp_path, step):
    optimizer = undisturbed[0]
    with pytest.raises(Interrupted, match=f"SIGTERM at step {step} of {STEPS}"):
        loop_of(tmp_path, "run", optimizer, [stop_after(step)]).run()
    torch.manual_seed(step)  # whatever else the new process has drawn
    loop = loop_of(tmp_path, "run", optimizer)
    loop.run()
    check(undisturbed, loop, tmp_path / "run")


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_crash_at_any_step_goes_on_from_the_checkpoint_before_and_cuts_the_log_back(undisturbed, tmp_path, step):
    optimizer = undisturbed[0]
    with pytest.raises(Crash):
        loop_of(tmp_path, "run", optimizer, [crash_after(step)], checkpoint_steps=3).run()
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as log:
        log.write(b'{"step": 99, "los')
    loop = loop_of(tmp_path, "run", optimizer, checkpoint_steps=3)
    assert loop.checkpoints.steps() == [saved for saved in (3, 6) if saved < step]
    loop.run()
    check(undisturbed, loop, tmp_path / "run")


def test_stop_at_every_single_step_is_bit_identical(undisturbed, tmp_path):
    for step in range(1, STEPS):
        with pytest.raises(Interrupted):
            loop_of(tmp_path, "run", undisturbed[0], [stop_after(step)]).run()
    loop = loop_of(tmp_path, "run", undisturbed[0])
    loop.run()
    check(undisturbed, loop, tmp_path / "run")


def test_damaged_newest_checkpoint_costs_steps_but_not_exactness(undisturbed, tmp_path):
    with pytest.raises(Interrupted):
        loop_of(tmp_path, "run", undisturbed[0], [stop_after(5)], checkpoint_steps=3).run()
    loop = loop_of(tmp_path, "run", undisturbed[0])
    (loop.checkpoints.path(5) / "tensors.safetensors").write_bytes(b"torn")
    loop.run()
    check(undisturbed, loop, tmp_path / "run")


def test_finished_run_is_not_trained_again(undisturbed, tmp_path):
    for _ in range(2):
        loop = loop_of(tmp_path, "run", undisturbed[0])
        loop.run()
        check(undisturbed, loop, tmp_path / "run")


def test_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path):
    loop_of(tmp_path, "run", "adamw", identity={"lr": 1}).run()
    other = loop_of(tmp_path, "run", "adamw", identity={"lr": 2})
    with pytest.raises(BadInput, match="lr differ"):
        other.run()
    assert other.checkpoints.steps() == [STEPS]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_ends_the_step_saves_and_says_how_to_go_on(tmp_path, number):
    before = signal.getsignal(number)
    loop = make_loop(tmp_path, text_learner(), PackedRows(), steps=5, hooks=[stop_after(2, number)])
    loop.go_on = "type tilth run again"
    with pytest.raises(Interrupted) as caught:
        loop.run()
    assert signal.Signals(number).name in str(caught.value)
    assert "step 2 of 5" in str(caught.value) and "type tilth run again" in str(caught.value)
    assert str(loop.checkpoints.path(2)) in str(caught.value)
    assert loop.checkpoints.newest()["at"]["step"] == 2
    assert signal.getsignal(number) is before, "the handlers of the program are put back"


def test_second_interrupt_does_not_wait_for_the_step(tmp_path):
    twice = Every(1, lambda loop: [signal.raise_signal(signal.SIGINT) for _ in range(2)] and None)
    with pytest.raises(KeyboardInterrupt):
        make_loop(tmp_path, text_learner(), PackedRows(), hooks=[twice]).run()


def test_signal_in_the_last_step_lets_the_run_finish(tmp_path):
    loop = make_loop(tmp_path, text_learner(), PackedRows(), steps=2, hooks=[stop_after(2)])
    assert loop.run().step == 2


def test_loop_runs_outside_the_main_thread(tmp_path):
    loop = make_loop(tmp_path, text_learner(), PackedRows(), steps=2)
    thread = threading.Thread(target=loop.run)
    thread.start()
    thread.join()
    assert loop.checkpoints.steps() == [2]


def test_log_of_what_was_drawn_is_the_same_after_a_stop(tmp_path):
    logs = []
    for name, hooks in (("straight", []), ("stopped", [stop_after(3)])):
        def loop(hooks, name=name):
            stream = pool_stream(tmp_path / "pool", stretch_units=5)
            stream.log = DrawnLog(tmp_path / name / "drawn")
            return make_loop(tmp_path / name, text_learner(), stream, steps=6, rows=2, micro_rows=2, hooks=hooks)
        if hooks:
            with pytest.raises(Interrupted):
                loop(hooks).run()
        loop([]).run()
        logs.append({path.name: path.read_bytes() for path in (tmp_path / name / "drawn").iterdir()})
    assert logs[0] == logs[1] and len(logs[0]) > 2
