"""The life of a sweep, steered from another shell: commands, and what they do to the ledger."""

from __future__ import annotations

import json
import os
import re
import threading
from dataclasses import replace
from typing import Any

import pytest

from search import inbox, steering
from search.budget import Sitting
from search.config import BudgetConfig
from search.delivery import deliver
from search.inbox import Inbox
from search.life import Life, SweepState, Wanted
from search.presence import Presence, Taken
from search.records import TrialRecord, TrialState
from search.schedulers.base import Decision
from search.schedulers.fifo import Fifo
from search.session import Attendant
from search.sweep import Sweep, used_up
from tests.cli import Thaw
from tests.search.steered import driver_of, evaluate, taken, through, train


class Pausing(Fifo):
    """Pauses every trial at its first evaluation and never promotes one."""

    def decide(self, trial: TrialRecord, trials: object) -> Decision:
        return Decision.PAUSE if trial.epochs == 1 else Decision.CONTINUE


def test_commands_to_a_sweep_that_does_not_run(thaw: Thaw, sweep: Sweep) -> None:
    assert thaw("enqueue", "s", "learning_rate=1e-4", "batch_size=32").out.startswith("trial 0 is next\n")
    assert thaw("extend", "s", "--trials", "+2").out.startswith("the sweep is to have 6 trials now\n")
    outcome = thaw("pause", "s")
    assert (outcome.code, outcome.err) == (0, "")
    assert "go on with: thaw resume s" in outcome.out
    assert sweep.state() is SweepState.PAUSED
    assert not Inbox(sweep.directory).commands()
    driver = driver_of(sweep)
    assert driver.next_trial() is None
    driver.end(Wanted.RUN, "")
    trials = through(driver)
    assert len(trials) == 6
    assert trials[0].params["learning_rate"] == 1e-4
    assert trials[0].params["batch_size"] == 32
    assert "unfreezing.schedule" in trials[0].params  # drawn
    assert trials[0].note == "enqueued"
    assert sweep.state() is SweepState.FINISHED
    thaw("extend", "s", "--trials", "1")  # also one that has ended
    assert sweep.state() is SweepState.INTERRUPTED
    assert len(through(driver_of(sweep))) == 7


def test_picks_run_in_their_order(thaw: Thaw, sweep: Sweep) -> None:
    thaw("enqueue", "s", "learning_rate=1e-4")
    said = thaw("enqueue", "s", "learning_rate=1e-3").out
    assert said.startswith("trial 1 is next, after 1 picked before\n")
    rates = [trial.params["learning_rate"] for trial in through(driver_of(sweep))]
    assert rates[:2] == [1e-4, 1e-3]


def test_a_clone_differs_in_what_is_set(thaw: Thaw, sweep: Sweep) -> None:
    thaw("enqueue", "s", "unfreezing.schedule=top", "unfreezing.depth=3", "learning_rate=0.001")
    driver = driver_of(sweep)
    first = train(driver, taken(driver))
    assert first.params["unfreezing.depth"] == 3
    assert thaw("clone", "s", "0", "--set", "unfreezing.schedule=full").code == 0
    assert thaw("clone", "s", "0", "--set", "batch_size=64", "--set", "unfreezing.depth=5").code == 0
    trials = through(driver_of(sweep))
    full, deep = trials[1], trials[2]
    assert full.note == deep.note == "clone of trial 0"
    assert full.params == {
        **{path: value for path, value in first.params.items() if path != "unfreezing.depth"},
        "unfreezing.schedule": "full",
    }
    assert deep.params == {**first.params, "batch_size": 64, "unfreezing.depth": 5}
    assert full.seed != first.seed
    assert len(trials) == 6


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["enqueue", "s", "learnin_rate=1"], "learnin_rate: unknown parameter; did you mean learning_rate?"),
        (["enqueue", "s", "weight_decay=0.1"], "weight_decay: this sweep does not search it"),
        (["enqueue", "s", "learning_rate=7"], "learning_rate: must be one that the sweep can draw"),
        (["enqueue", "s", "batch_size=17"], "batch_size: must be one that the sweep can draw (16, 32, 64)"),
        (["enqueue", "s", "batch_size=many"], "batch_size: must be"),
        (["enqueue", "s", "batch_size"], "batch_size: must be PATH=VALUE"),
        (["enqueue", "s", "batch_size=16", "batch_size=32"], "batch_size: is there twice"),
        (
            ["enqueue", "s", "unfreezing.schedule=full", "unfreezing.depth=2"],
            "unfreezing.depth: means nothing here, only where unfreezing.schedule is top",
        ),
        (["clone", "s", "9"], "there is no trial 9"),
        (["stop-trial", "s", "9"], "there is no trial 9"),
        (["extend", "s", "--trials", "many"], "--trials: must be +N, such as +8, got 'many'"),
        (["extend", "s", "--trials", "+0"], "--trials: must be +N with N from 1"),
        (["pause", "t"], "there is no sweep 't'"),
        (["status", "t"], "there is no sweep 't'"),
        (["logs", "s", "--trial", "4"], "there is no trial 4"),
        (["logs", "s", "-f", "--json"], "--follow and --json"),
    ],
)
def test_bad_commands_change_nothing(thaw: Thaw, sweep: Sweep, arguments: list[str], complaint: str) -> None:
    before = sweep.ledger.read_bytes()
    outcome = thaw(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert complaint in outcome.err
    assert sweep.ledger.read_bytes() == before
    assert not Inbox(sweep.directory).commands()


def test_a_driver_obeys_while_it_runs(thaw: Thaw, sweep: Sweep) -> None:
    driver = driver_of(sweep)
    attendant = Attendant(sweep.directory, driver, sweep.spec.space)
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            attendant._looked_at = -1e9
            attendant.look()

    with attendant.on_duty():
        looking = threading.Thread(target=look)
        looking.start()
        running = taken(driver)
        evaluate(driver, running, 1)
        assert thaw("resume", "s").out == "the sweep goes on\n"  # it is driven: no second driver starts
        assert sweep.state() is SweepState.RUNNING
        assert thaw("stop-trial", "s", "0").out == "trial 0 ends at its next evaluation\n"
        assert evaluate(driver, running, 2) is Decision.STOP
        stopped = driver.ended(0)
        assert stopped.state is TrialState.PRUNED
        assert [(r.decision, r.reason) for r in stopped.rulings] == [("stop", "thaw stop-trial")]
        assert thaw("enqueue", "s", "batch_size=64").out == "trial 1 is next\n"
        held = taken(driver)
        assert held.params["batch_size"] == 64
        assert thaw("pause", "s").out == "running trials are held at their next evaluation\n"
        assert sweep.state() is SweepState.STOPPING
        assert driver.next_trial() is None
        assert evaluate(driver, held, 1) is Decision.PAUSE
        assert driver.over
        with pytest.raises(Taken, match=f"process {os.getpid()} on .* drives this sweep already"):
            Presence(sweep.directory).check()
        over.set()
        looking.join()
        driver.finish()
    assert sweep.state() is SweepState.PAUSED
    document = json.loads(thaw("status", "s", "--json").out)
    assert document["state"] == "paused"
    assert document["reason"] == "thaw pause"
    assert document["counts"] == {"paused": 1, "pruned": 1}
    assert (document["target"], document["ended"], document["driver"]) == (4, 1, None)
    listed = json.loads(thaw("list", "--json").out)
    assert [(row["name"], row["state"], row["trials"]) for row in listed] == [("s", "paused", 2)]
    assert re.search(r"^s +paused +1/4 +0\.51", thaw("list").out, re.MULTILINE)
    assert "paused (thaw pause)" in thaw("status", "s").out

    again = driver_of(sweep)
    with Attendant(sweep.directory, again, sweep.spec.space).on_duty():
        assert again.life == Life()
        first = taken(again)
        assert (first.number, first.epochs) == (1, 1)  # where it was held
        train(again, first)
        Inbox(sweep.directory).put(inbox.new("stop", reason="thaw stop"))  # just before the end
    assert sweep.state() is SweepState.STOPPED
    assert not Inbox(sweep.directory).commands()


def test_a_budget_is_used_up_where_no_trial_is_left_open(sweep: Sweep) -> None:
    limited = replace(sweep.spec.search, budget=BudgetConfig(hours=1.0))
    sweep = Sweep(spec=sweep.spec.model_copy(update={"search": limited}), directory=sweep.directory)
    assert used_up(sweep) is None
    driver = driver_of(sweep)
    record = taken(driver)
    evaluate(driver, record, 1)
    driver.study.sit(0, Sitting(seconds=3600.0))
    assert used_up(sweep) is None  # its driver died: the next one closes the trial
    driver.ended(record.number)
    spent = used_up(sweep)
    assert spent is not None
    assert spent.reason == "search.budget.hours: 1 of 1 used"
    held = taken(driver)
    driver.end(Wanted.PAUSE, "thaw pause")
    evaluate(driver, held, 1)
    driver.ended(held.number)
    assert used_up(sweep) == spent  # what is held stays held
    more = replace(limited, budget=BudgetConfig(hours=2.0))
    raised = sweep.spec.model_copy(update={"search": more})
    assert used_up(Sweep(spec=raised, directory=sweep.directory)) is None


def test_a_paused_trial_can_be_ended_by_hand(thaw: Thaw, sweep: Sweep) -> None:
    driver = driver_of(sweep, Pausing())
    train(driver, taken(driver))
    assert driver.study.trial(0).state is TrialState.PAUSED
    outcome = driver.obey(inbox.new("stop-trial", trial=0, reason="thaw stop-trial"), sweep.spec.space)
    assert outcome == "trial 0 has ended"
    assert driver.study.trial(0).state is TrialState.PRUNED
    refused = driver.obey(inbox.new("stop-trial", trial=0, reason="x"), sweep.spec.space)
    assert refused == "refused: trial 0 has ended already: pruned"


def test_a_command_is_carried_out_once(sweep: Sweep) -> None:
    """Though it was carried out and the process died before its file was gone."""
    command = inbox.new("extend", trials=2)
    helm = sweep.helm()
    assert steering.obey(helm, command) == "the sweep is to have 5 trials now"
    assert steering.obey(sweep.helm(), command) == "the sweep is to have 5 trials now"
    assert sweep.target(sweep.read()) == 5


def test_what_is_no_command_is_passed_over(sweep: Sweep) -> None:
    box = Inbox(sweep.directory)
    box.put(inbox.new("pause", reason="r"))
    directory = sweep.directory / inbox.DIRECTORY
    (directory / "0.json").write_text("{")
    (directory / "1.json").write_text(json.dumps({"id": "1", "kind": "format", "arguments": {}}))
    (directory / "2.json").write_text(json.dumps({"id": "../2", "kind": "pause", "arguments": {}}))
    (directory / "3.json").write_text("[" * 200_000)
    assert [c.kind for c in box.commands()] == ["pause"]
    wrong = inbox.new("extend", surprise=1)
    assert steering.obey(sweep.helm(), wrong).startswith("refused: ")


def test_a_command_that_nobody_carries_out_is_not_waited_for_without_end(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies where nobody can read it, and later the sweep is somebody's whose mark is not seen."""
    monkeypatch.setattr(Inbox, "commands", lambda self: [])
    command = inbox.new("pause", reason="r")
    assert deliver(sweep, command, patience_s=0.3) is None

    def taken(self: Presence) -> Any:
        raise Taken("s: another one drives it")

    monkeypatch.setattr(Presence, "claimed", taken)
    assert deliver(sweep, command, patience_s=0.3) is None
