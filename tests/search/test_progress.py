"""The view of a running sweep."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from search.progress import Progress, Step, View, eta_s, events, render
from search.records import PhaseRecord, Result, TrialRecord, TrialState

METRIC = "eval/accuracy"
R, C, P, F = TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED


def trial(number: int, state: TrialState, *values: float, seconds: float = 10.0) -> TrialRecord:
    results = tuple(
        Result(epochs=0.5 * (i + 1), metrics={METRIC: value}, seconds=seconds * (i + 1))
        for i, value in enumerate(values)
    )
    phases = (
        PhaseRecord(name="head", start_epoch=0.0, thawed="head"),
        PhaseRecord(name="top-2", start_epoch=0.5, thawed="head + blocks 4-5"),
    )
    return TrialRecord(
        number=number,
        state=state,
        params={"weight_decay": 0.01, "learning_rate": 1e-4, "batch_size": 32, "unfreezing.schedule": "top"},
        seed=0,
        results=results,
        phases=phases,
        error="worker died [bold]" if state is F else None,
    )


TRIALS = [
    trial(0, C, 0.7, 0.8),
    trial(1, P, 0.6),
    trial(2, F),
    trial(3, R, 0.85),
    trial(4, R),
]
VIEW = View(
    name="movie-reviews",
    metric=METRIC,
    goal="maximize",
    trials=TRIALS,
    total=16,
    concurrency=2,
    elapsed_s=125,
    live={3: Step(phase="top-2", epochs=0.83, train_loss=0.4312)},
)


def lines(view: View, height: int = 40, width: int = 120) -> list[str]:
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(render(view, height=height, width=width))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_header_says_where_the_sweep_stands() -> None:
    first, second, *_ = lines(VIEW)
    assert first == "movie-reviews  3/16 trials: 1 complete, 2 running, 1 pruned, 1 failed"
    # Two ended trials took 20 s and 10 s: 13 more of 15 s, less the 10 s behind trial 3, two at a time.
    assert second == "best 0.8500 (trial 3)  elapsed 2m05s  ETA 1m32s"
    paused = replace(VIEW, trials=[*TRIALS, trial(5, TrialState.PAUSED)], notice="stopping")
    assert lines(paused)[0].endswith("1 failed, 1 paused")
    assert lines(paused)[1].endswith("stopping")


def test_rows_show_running_trials_as_they_go() -> None:
    _, _, header, *body = lines(VIEW)
    assert header.split() == [
        *("trial", "state", "phase", "accuracy", "loss", "epochs"),
        *("lr", "batch", "schedule", "weight_decay", "time", "error"),
    ]
    assert [row.split()[0] for row in body] == ["3", "4", "0", "1", "2"]
    assert body[0].split()[1:9] == ["running", "top-2", "0.8500", "0.4312", "0.83", "0.0001", "32", "top"]
    assert body[1].split()[1:6] == ["running", "head", "-", "-", "0.00"]
    assert body[2].split()[1:6] == ["complete", "top-2", "0.8000", "-", "1.00"]
    assert body[3].split()[2] == "head", "at the boundary it has not entered the next phase"
    assert body[4].endswith("worker died [bold]"), "markup in a message is no markup"


@pytest.mark.parametrize("height", [7, 10, 20])
def test_never_higher_than_the_terminal(height: int) -> None:
    many = [trial(i, C, 0.5 + i / 1000) for i in range(100)] + [trial(100 + i, R) for i in range(3)]
    shown = lines(replace(VIEW, trials=many, total=120), height=height)
    assert len(shown) < height
    rows = [row.split()[0] for row in shown[3:-1]]
    assert rows[0] == "100", "running trials come first"
    assert shown[-1] == f"... and {103 - len(rows)} more"
    if height == 20:
        assert rows[:4] == ["100", "101", "102", "99"], "then the best"


def test_the_latest_are_shown_besides_the_best() -> None:
    many = [trial(i, C, 0.9 - i / 1000) for i in range(100)]
    rows = [row.split()[0] for row in lines(replace(VIEW, trials=many), height=14)[3:-1]]
    assert rows == ["0", "1", "2", "3", "4", "5", "99", "98", "97"]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_never_wider_than_the_terminal(width: int) -> None:
    shown = lines(VIEW, width=width)
    assert max(map(len, shown)) <= width
    assert len(shown) == 8, "no row is wrapped"
    assert "0.8500" in shown[3]
    if width == 80:
        assert "schedule" in shown[2]


def test_empty_sweep() -> None:
    assert lines(replace(VIEW, trials=[], live={})) == [
        "movie-reviews  0/16 trials: 0 complete, 0 running, 0 pruned, 0 failed",
        "best -  elapsed 2m05s  ETA -",
    ]


def test_eta() -> None:
    assert eta_s([], 4, 2) is None
    assert eta_s([trial(0, F), trial(1, R, 0.5)], 4, 2) is None, "a failure's time tells nothing"
    assert eta_s([trial(0, C, 0.5)], 4, 1) == 30
    assert eta_s([trial(0, C, 0.5)], 4, 3) == 10
    assert eta_s([trial(0, C, 0.5)], 2, 8) == 10, "one trial does not run on eight places"
    assert eta_s([trial(0, C, 0.5), trial(1, R, 0.5, seconds=4)], 2, 1) == 6
    assert eta_s([trial(0, C, 0.5), trial(1, R, 0.5, seconds=99)], 2, 1) == 0
    assert eta_s([trial(0, C, 0.5)], 1, 1) == 0


def test_events_tell_what_happened_once() -> None:
    said = events((), TRIALS, METRIC, "maximize")
    assert said[:4] == [
        "trial 0: begins with weight_decay=0.01, learning_rate=0.0001, batch_size=32, "
        "unfreezing.schedule=top",
        "trial 0: epoch 0.5, eval/accuracy 0.7000 (best so far), 10s",
        "trial 0: epoch 1, eval/accuracy 0.8000 (best so far), 20s",
        "trial 0: complete after 1 epochs",
    ]
    assert "trial 1: epoch 0.5, eval/accuracy 0.6000, 10s" in said
    assert "trial 2: failed: worker died [bold]" in said
    assert events(TRIALS, TRIALS, METRIC, "maximize") == []
    later = [*TRIALS[:3], trial(3, P, 0.85, 0.84), replace(TRIALS[4], state=TrialState.PAUSED)]
    assert events(TRIALS, later, METRIC, "maximize") == [
        "trial 3: epoch 1, eval/accuracy 0.8400, 20s",
        "trial 3: pruned after 1 epochs",
        "trial 4: paused after 0 epochs",
    ]
    assert events(later, TRIALS, METRIC, "maximize")[-1] == "trial 4: goes on after 0 epochs"


def test_off_a_terminal_every_event_is_one_line() -> None:
    file = io.StringIO()
    with Progress(console=Console(file=file, width=40)) as progress:
        progress.update(replace(VIEW, notice="starting workers", trials=[]))
        progress.update(replace(VIEW, notice="starting workers", trials=TRIALS[:1]))
        progress.update(replace(VIEW, trials=TRIALS[:3]))
        progress.say("[done]")
    expected = ["starting workers", *events((), TRIALS[:3], METRIC, "maximize"), "[done]"]
    assert file.getvalue().splitlines() == expected


def test_standard_output_is_left_alone_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(stderr=True) as progress:
        progress.update(VIEW)
    out, err = capsys.readouterr()
    assert out == ""
    assert "trial 0: complete" in err


def test_on_a_terminal_the_table_lives_and_is_wiped() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, height=30)
    with Progress(console=console) as progress:
        progress.update(VIEW)
        progress.say("a line that stays")
    written = file.getvalue()
    assert "movie-reviews" in written
    assert "a line that stays" in written
    assert "begins with" not in written, "no lines of a log between the table's"
    assert written.rstrip().endswith("\x1b[2K"), "the table is wiped"
