"""Parity, placement, survival and intervals: exact worked values, and every loss rebuilt byte for byte."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tilth.recipe import BadInput
from tilth.train.survive.account import account
from tilth.train.survive.interval import Lost, advise, lost_share, survival, young_interval
from tilth.train.survive.parity import Layout, NoParity, Parity, TooFewShards, Xor, rebuild, write_parity, xor
from tilth.train.survive.placement import place


def reed_solomon(losses: int) -> Parity:
    pytest.importorskip("zfec", reason="Reed-Solomon needs zfec")
    from tilth.stages.reed_solomon import ReedSolomon
    return ReedSolomon(losses=losses)


def bytes_of(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)


def parities(layout: Layout, code: Parity, shards: list[np.ndarray]) -> dict[int, np.ndarray]:
    sizes = [len(shard) for shard in shards]
    found = {}
    for member in range(layout.members):
        blocks = {(giver, stripe): layout.block(shards[giver], giver, stripe)
                  for stripe, _ in layout.held(member) for giver in layout.givers(stripe)}
        found[member] = np.full(layout.losses * layout.block_size(max(sizes)), 0xA5, np.uint8)  # what was there before
        write_parity(layout, code, member, blocks, found[member])
    return found


def lose(layout, code, shards, lost) -> dict[int, np.ndarray]:
    kept = parities(layout, code, shards)
    left = [member for member in range(layout.members) if member not in lost]
    return rebuild(layout, code, {member: shards[member] for member in left},
                   {member: kept[member] for member in left}, [len(shard) for shard in shards])


def test_worked_example_of_three_members():
    shards = [bytes_of(0x11, 0x22), bytes_of(0x33, 0x44), bytes_of(0x55, 0x66)]
    kept = parities(Layout(3, 1), Xor(), shards)
    assert [kept[member].tolist() for member in range(3)] == [[0x66], [0x77], [0x66]]
    assert 0x66 ^ 0x55 == 0x33 and 0x66 ^ 0x22 == 0x44
    assert lose(Layout(3, 1), Xor(), shards, [1])[1].tolist() == [0x33, 0x44]


def test_parity_of_columns():
    rows = [bytes_of(0x12, 0x34), bytes_of(0xAB, 0xCD), bytes_of(0x0F, 0xF0)]
    parity, lost = np.empty(2, np.uint8), np.empty(2, np.uint8)
    assert xor(rows, parity).tolist() == [0xB6, 0x09]
    assert xor([parity, rows[0], rows[2]], lost).tolist() == [0xAB, 0xCD]


def test_layout_is_raid_5_with_one_loss():
    layout = Layout(4, 1)
    assert [layout.given(member) for member in range(4)] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert [layout.held(member) for member in range(4)] == [[(0, 0)], [(1, 0)], [(2, 0)], [(3, 0)]]


@pytest.mark.parametrize("members", range(2, 9))
@pytest.mark.parametrize("losses", range(1, 4))
def test_every_block_has_one_place_and_no_member_is_twice_in_a_stripe(members, losses):
    if losses >= members:
        with pytest.raises(ValueError, match="cannot survive"):
            Layout(members, losses)
        return
    layout = Layout(members, losses)
    for stripe in range(members):
        assert sorted(layout.holders(stripe) + layout.givers(stripe)) == list(range(members))
    for member in range(members):
        assert len(layout.given(member)) == layout.blocks and len(layout.held(member)) == losses
        assert all(layout.holders(stripe)[which] == member for stripe, which in layout.held(member))


def states(size: int) -> dict[str, np.ndarray]:
    """Bytes of tensors of `size` numbers in each type, NaNs with payloads and infinities among the floats."""
    generator = torch.Generator().manual_seed(size)
    numbers = torch.randn(size, generator=generator)
    odd = torch.tensor([0x7FC01234, -0x3FEDCC, 0x7F800001, 0x7F800000], dtype=torch.int32).view(torch.float32)
    numbers[:len(odd[:size])] = odd[:size]
    whole = torch.randint(-2**62, 2**62, (size,), generator=generator)
    kinds = {"float32": numbers, "bfloat16": numbers.bfloat16(), "float16": numbers.half(), "float64": numbers.double(),
             "int64": whole, "bool": whole > 0, "float8_e4m3fn": numbers.to(torch.float8_e4m3fn)}
    return {name: tensor.view(torch.uint8).numpy().copy() for name, tensor in kinds.items()}


@pytest.mark.parametrize("members", [3, 4, 8])
@pytest.mark.parametrize("size", [1, 5, 1021])
def test_any_lost_member_is_rebuilt_byte_for_byte(members, size):
    for name, raw in states(size).items():
        shards = [np.roll(raw, member) for member in range(members)]
        shards[-1] = shards[-1][:max(1, len(raw) - 3)]  # shards need not be equally long
        for lost in range(members):
            made = lose(Layout(members, 1), Xor(), shards, [lost])
            assert made.keys() == {lost} and np.array_equal(made[lost], shards[lost]), (name, lost)


@pytest.mark.parametrize(("members", "losses"), [(4, 2), (5, 3), (8, 2), (8, 3)])
def test_reed_solomon_rebuilds_every_choice_of_lost_members(members, losses):
    code, raw = reed_solomon(losses), states(101)
    shards = [np.roll(raw["float32"], 7 * member)[:len(raw["float32"]) - member] for member in range(members)]
    for count in range(1, losses + 1):
        for lost in itertools.combinations(range(members), count):
            made = lose(Layout(members, losses), code, shards, list(lost))
            assert all(np.array_equal(made[member], shards[member]) for member in lost)
    with pytest.raises(TooFewShards, match=f"rebuild {losses}"):
        lose(Layout(members, losses), code, shards, list(range(losses + 1)))


@pytest.mark.parametrize("members", [3, 4, 8])
def test_two_losses_are_an_error_and_never_wrong_data(members):
    shards = [bytes_of(*range(member, member + 9)) for member in range(members)]
    for lost in itertools.combinations(range(members), 2):
        with pytest.raises(TooFewShards, match="parity can rebuild 1"):
            lose(Layout(members, 1), Xor(), shards, list(lost))


def test_a_stripe_of_which_parity_is_missing_is_an_error():
    shards = [bytes_of(1, 2), bytes_of(3, 4), bytes_of(5, 6)]
    kept = parities(Layout(3, 1), Xor(), shards)
    with pytest.raises(TooFewShards, match="blocks left"):
        rebuild(Layout(3, 1), Xor(), {1: shards[1], 2: shards[2]}, {1: kept[1]}, [2, 2, 2])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rebuilding_is_exact_for_any_bytes_and_sizes(data):
    members = data.draw(st.integers(2, 7))
    shards = [np.frombuffer(data.draw(st.binary(min_size=1, max_size=40)), np.uint8) for _ in range(members)]
    lost = data.draw(st.integers(0, members - 1))
    assert np.array_equal(lose(Layout(members, 1), Xor(), shards, [lost])[lost], shards[lost])


@pytest.mark.parametrize(("members", "share"), [(4, 0.333), (8, 0.143), (3, 0.5)])
def test_parity_takes_one_nth_less_one_of_a_shard(members, share):
    shards = [np.zeros(8400, np.uint8) for _ in range(members)]
    kept = parities(Layout(members, 1), Xor(), shards)
    assert all(len(one) / 8400 == pytest.approx(share, abs=5e-4) for one in kept.values())
    assert Layout(members, 1).overhead() == pytest.approx(share, abs=5e-4)


def test_no_parity_keeps_nothing():
    assert NoParity().losses == 0 and Layout(4, 0).held(2) == []


@pytest.mark.parametrize(("members", "failure", "losses", "expected"), [
    (6, 0.01, 0, 0.941480), (6, 0.01, 1, 0.998540), (64, 0.001, 0, 0.937975), (64, 0.001, 1, 0.998065)])
def test_survival_of_a_group(members, failure, losses, expected):
    assert survival(members, failure, losses) == pytest.approx(expected, abs=5e-7)
    assert survival(members, failure, losses, groups=3) == pytest.approx(expected**3, abs=2e-6)


@pytest.mark.parametrize(("cost", "minutes"), [(60.0, 150.0), (4.0, 38.7)])
def test_young_interval(cost, minutes):
    between = 1000 * 86400 / 128  # 128 machines that each fail once in 1,000 days
    assert between / 3600 == 187.5
    assert young_interval(cost, between) / 60 == pytest.approx(minutes, abs=0.05)


def test_the_advised_interval_loses_least():
    advice = advise(step_seconds=0.5, snapshot_seconds=0.2, between_failures=3600.0, steps_now=10)
    assert advice.steps == round(young_interval(0.2, 3600.0) / 0.5)
    assert advice.lost_share == pytest.approx((2 * 0.2 / 3600) ** 0.5, rel=1e-3)
    assert advice.now_lost_share > advice.lost_share
    for steps in (1, 10, advice.steps - 5, advice.steps + 5, 1000):
        assert lost_share(steps * 0.5, 0.2, 3600.0) >= advice.lost_share


def test_forecast_meets_what_failures_in_the_middle_of_intervals_cost():
    lost = Lost(failures=4, snapshots=100, snapshot_seconds=10.0, steps_again=20, restart_seconds=40.0,
                step_seconds=1.0, seconds=1000.0)
    assert lost.share == pytest.approx(0.07) and lost.between_failures == 250
    assert lost.forecast(10) == pytest.approx(0.1 / 10 + (5 + 10) / 250)


def test_one_group_where_every_rank_fails_alone():
    assert place(["a", "b", "c", "d"], 1) == [[0, 1, 2, 3]]
    assert place(["a", "a", "a", "a"], 0) == [[0, 1, 2, 3]]
    assert place(["a"], 1) == [[0]]


@pytest.mark.parametrize(("domains", "losses"), [
    ("aabbccdd", 1), ("abcdabcd", 1), ("aaabbbccc", 1), ("aaaabbbbcccc", 2), ("aabbc", 1), ("aaabbc", 2)])
def test_no_group_has_more_ranks_of_a_domain_than_it_may_lose(domains, losses):
    groups = place(list(domains), losses)
    assert sorted(rank for group in groups for rank in group) == list(range(len(domains)))
    for group in groups:
        assert len(group) > losses
        assert max(sum(domains[rank] == domain for rank in group) for domain in set(domains)) <= losses
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


@pytest.mark.parametrize(("domains", "losses"), [("aaab", 1), ("aa", 1), ("aaaaab", 2)])
def test_ranks_that_cannot_protect_each_other_are_bad_input(domains, losses):
    with pytest.raises(BadInput, match="failure domain 'a'"):
        place(list(domains), losses)


def test_account_of_a_run_from_its_own_files(tmp_path):
    steps = [{"step": step, "loss": 1.0, "seconds": step * 0.5} for step in range(1, 41)]
    for number, line in enumerate(steps[10::10], 1):  # a snapshot of 0.02 s each ten steps
        line |= {"snapshot_step": line["step"] - 1.0, "snapshot_seconds": 0.02 * number}
    recovery = {"path": "memory", "steps_again": 10, "detect": 1.0, "restart": 3.0, "load": 0.5, "first_step": 0.1}
    for name, lines in (("metrics.jsonl", steps), ("recoveries.jsonl", [recovery, {**recovery, "detect": None}])):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = account(tmp_path, 10)
    whole = 20 + 10 + 0.1 + 8.0  # trained, trained again, snapshots, restarts
    assert found["lost"]["failures"] == 2 and found["lost"]["snapshots"] == 5
    assert found["share"] == pytest.approx((0.1 + 10 + 8) / whole)
    assert found["advised_steps"] == round(young_interval(0.02, whole / 2) / 0.5)
    assert found["forecast"] == pytest.approx(0.02 / 5 + (2.5 + 4) / (whole / 2))
    assert account(tmp_path / "nothing", 10)["share"] == 0
