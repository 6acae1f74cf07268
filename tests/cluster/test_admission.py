"""How sweeps share a cluster, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.admission import Claim, Desk, allot
from cluster.capacity import GangShape, workers_on

ONE = GangShape(workers=1, cpus_per_worker=1, gpus_per_worker=0)
PAIR = GangShape(workers=2, cpus_per_worker=1, gpus_per_worker=0)


def claim(sweep: str, wants: int, shape: GangShape = ONE, **rest: float) -> Claim:
    return Claim(sweep=sweep, shape=shape, wants=wants, **rest)  # type: ignore[arg-type]


def nodes(*cpus: int) -> list[Mapping[str, float]]:
    return [{"CPU": float(each)} for each in cpus]


def test_alone_a_sweep_has_all_that_it_can_use() -> None:
    assert allot([claim("a", 9)], nodes(4, 4), 0) == {"a": 8}
    assert allot([claim("a", 3)], nodes(4, 4), 0) == {"a": 3}
    assert allot([claim("a", 9, PAIR)], nodes(3, 3), 0) == {"a": 3}  # a gang may span nodes
    assert allot([claim("a", 9, share=2)], nodes(4), 0) == {"a": 4}  # nobody waits


def test_each_has_one_before_any_has_two_and_the_rest_goes_by_priority() -> None:
    both = [claim("low", 9), claim("high", 9, priority=5)]
    assert allot(both, nodes(4), 0) == {"low": 1, "high": 3}
    assert allot([*both, claim("mid", 9, priority=1)], nodes(4), 0) == {"low": 1, "high": 2, "mid": 1}
    assert allot([claim("a", 9), claim("b", 9)], nodes(4), 0) == {"a": 2, "b": 2}


def test_a_share_bounds_a_sweep_while_others_want_more() -> None:
    greedy = claim("high", 9, priority=5, share=2)
    assert allot([claim("low", 9), greedy], nodes(6), 0) == {"low": 4, "high": 2}
    assert allot([claim("low", 2), greedy], nodes(6), 0) == {"low": 2, "high": 4}  # nobody wants the rest


def test_who_holds_a_gang_keeps_one_and_who_waits_long_comes_first() -> None:
    there = claim("there", 9, holds=1)
    come = claim("come", 9, priority=9, since=10.0)
    assert allot([there, come], nodes(1), 20) == {"there": 1, "come": 0}
    old, new = claim("old", 1, since=0.0), claim("new", 1, priority=2, since=1000.0)
    assert allot([old, new], nodes(1), 1000) == {"old": 0, "new": 1}
    assert allot([old, new], nodes(1), 1000 + 600) == {"old": 0, "new": 1}  # both have waited on
    patient = replace(old, since=-2000.0)
    assert allot([patient, new], nodes(1), 1000) == {"old": 1, "new": 0}


shapes = st.builds(
    GangShape,
    workers=st.integers(1, 3),
    cpus_per_worker=st.sampled_from([0.5, 1, 2, 3]),
    gpus_per_worker=st.sampled_from([0.0, 0.4, 0.5, 1.0, 2.0]),
)
claims = st.lists(
    st.builds(
        Claim,
        sweep=st.sampled_from("abcdefgh"),
        shape=shapes,
        wants=st.integers(0, 6),
        holds=st.integers(0, 3),
        priority=st.integers(0, 5),
        share=st.none() | st.integers(1, 4),
        since=st.floats(0, 5000),
    ),
    max_size=6,
    unique_by=lambda c: c.sweep,
)
clusters = st.lists(
    st.fixed_dictionaries({"CPU": st.integers(0, 8).map(float), "GPU": st.integers(0, 4).map(float)}),
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(claims, clusters)
def test_what_is_allotted_fits_and_is_wanted(there: list[Claim], on: list[Mapping[str, float]]) -> None:
    given = allot(there, on, 6000)
    by_name = {each.sweep: each for each in there}
    assert set(given) == set(by_name)
    for name, count in given.items():
        assert 0 <= count <= by_name[name].wants
    for resource in ("CPU", "GPU"):
        used = sum(
            count
            * by_name[name].shape.workers
            * (
                by_name[name].shape.cpus_per_worker
                if resource == "CPU"
                else by_name[name].shape.gpus_per_worker
            )
            for name, count in given.items()
        )
        assert used <= sum(node[resource] for node in on) + 1e-6
    # Nothing lies idle while somebody could be served alone.
    if there and not any(given.values()):
        for each in there:
            held = sum(workers_on(node, each.shape) for node in on) >= each.shape.workers
            assert not (each.wants and held)


def test_fractions_of_two_sweeps_lie_on_whole_gpus() -> None:
    small = GangShape(workers=1, cpus_per_worker=0.5, gpus_per_worker=0.4)
    large = GangShape(workers=1, cpus_per_worker=1, gpus_per_worker=1)
    node = [{"CPU": 8.0, "GPU": 2.0}]
    alone = [Claim(sweep="small", shape=small, wants=9)]
    assert allot(alone, node, 0) == {"small": 4}  # 0.2 of each stays idle
    both = [*alone, Claim(sweep="large", shape=large, wants=9)]
    assert allot(both, node, 0) == {"small": 2, "large": 1}


@dataclass
class Running:
    """A sweep in virtual time: trials left, and when each gang's trial ends."""

    claim: Claim
    left: int
    ends: list[float] = field(default_factory=list)
    first_at: float | None = None


def simulate(sweeps: Sequence[Running], on: Sequence[Mapping[str, float]], rng: random.Random) -> float:
    """Runs all to their ends; the time that took. A gang that is no longer allowed ends with its trial."""
    now = 0.0
    capacity = sum(node["CPU"] for node in on)
    for _ in range(20_000):
        there = [s for s in sweeps if s.claim.since <= now and (s.left or s.ends)]
        if not there and all(s.claim.since <= now for s in sweeps):
            return now
        claims = [replace(s.claim, wants=len(s.ends) + s.left, holds=len(s.ends)) for s in there]
        allowed = allot(claims, on, now)
        for sweep in there:
            while sweep.left and len(sweep.ends) < allowed[sweep.claim.sweep]:
                used = sum(
                    len(s.ends) * s.claim.shape.workers * s.claim.shape.cpus_per_worker for s in sweeps
                )
                if used + sweep.claim.shape.workers * sweep.claim.shape.cpus_per_worker > capacity:
                    break  # somebody's gang has yet to end
                sweep.left -= 1
                sweep.ends.append(now + rng.uniform(5, 60))
                sweep.first_at = now if sweep.first_at is None else sweep.first_at
        coming = [s.claim.since for s in sweeps if s.claim.since > now]
        now = min([*(end for s in sweeps for end in s.ends), *coming])
        for sweep in sweeps:
            sweep.ends = [end for end in sweep.ends if end > now]
    raise AssertionError("it did not end")


def test_nobody_starves_and_nothing_deadlocks() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        sweeps = [
            Running(
                claim=claim(
                    f"s{i}",
                    1,
                    rng.choice([ONE, PAIR, GangShape(workers=4, cpus_per_worker=1, gpus_per_worker=0)]),
                    priority=rng.randrange(3),
                    since=rng.uniform(0, 200),
                ),
                left=rng.randrange(1, 30),
            )
            for i in range(5)
        ]
        waits = simulate(sweeps, nodes(4, 4), rng)
        assert waits > 0
        assert all(not s.left and not s.ends and s.first_at is not None for s in sweeps)


def test_a_low_priority_is_served_while_high_ones_keep_coming() -> None:
    """One slot; sweeps of high priority come without end, each before the last one is done."""
    low = Running(claim=claim("low", 1), left=1)
    stream = [Running(claim=claim(f"h{i}", 1, priority=3, since=i * 30.0), left=1) for i in range(200)]
    simulate([low, *stream], nodes(1), random.Random(0))
    assert low.first_at is not None
    assert low.first_at < 3 * 600 + 600  # three steps of priority, and those that came before


def test_a_sweep_that_is_gone_is_forgotten() -> None:
    desk = Desk()
    assert desk.claim(claim("a", 4), nodes(4)) == 4
    assert desk.claim(claim("b", 4), nodes(4)) == 2
    assert desk.claim(claim("a", 4), nodes(4)) == 2
    assert desk.leave("b") == 1
    assert desk.claim(claim("a", 4), nodes(4)) == 4
    assert desk.leave("a") == 0
