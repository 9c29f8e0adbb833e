"""How a manager answers: questions by name, refusals as answers, the end of a worker by the end of its connection."""

import threading
from multiprocessing import Pipe

import numpy as np
import pytest

from tilth.train.survive import wire
from tilth.train.survive.serving import answer, talk
from tilth.train.survive.slots import Damaged
from tilth.train.survive.wire import Refused


class Toy:
    def __init__(self):
        self.contact, self.worker, self.beats = 0.0, {"ended": 0.0}, []

    def on_hello(self):
        return {"pid": 1}

    def on_get(self, size):
        return {"size": size}, np.arange(size, dtype=np.uint8)

    def on_live(self, pid):
        self.worker = {"pid": pid, "ended": 0.0}
        return {}

    def on_beat(self, step):
        self.beats.append(step)

    def on_late(self):
        raise Refused("late", "not yet")

    def on_broken(self):
        raise Damaged("changed in memory")


@pytest.mark.parametrize(("what", "fields", "kind", "text"), [
    ("late", {}, "late", "not yet"), ("broken", {}, "damaged", "changed in memory"),
    ("nonsense", {}, "failed", "nonsense"), ("get", {"length": 3}, "failed", "length")])
def test_what_cannot_be_done_is_an_answer(what, fields, kind, text):
    said, payload = answer(Toy(), what, fields)
    assert said["refused"] == kind and text in said["text"] and payload is None


@pytest.mark.parametrize("alive", [True, False])
def test_a_connection_is_answered_in_order_and_its_end_is_that_of_its_worker_alone(alive):
    toy, (ours, theirs) = Toy(), Pipe()
    thread = threading.Thread(target=talk, args=(toy, theirs))
    thread.start()
    if alive:
        wire.send(ours, {"ask": "live", "pid": 7})
        assert wire.receive(ours)[0] == {}
    wire.send(ours, {"ask": "beat", "step": 3})  # wants no answer: the next one is that of the next question
    wire.send(ours, {"ask": "get", "size": 4})
    head, payload = wire.receive(ours)
    assert head == {"size": 4} and payload.tolist() == [0, 1, 2, 3] and toy.beats == [3] and toy.contact > 0
    assert toy.worker["ended"] == 0
    ours.close()
    thread.join(10)
    assert (toy.worker["ended"] > 0) == alive, "others come and go"
