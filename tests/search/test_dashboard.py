"""A ledger in optuna-dashboard, as it is: the dashboard's own server, Optuna's own reader of journals."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import optuna_dashboard
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from search.records import TrialState
from tests.search import killable


def asked(application: Any, path: str, query: str = "") -> dict[str, Any]:
    """What the dashboard answers to a GET."""
    answer: list[str] = []
    environment = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "here",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
    }
    body = b"".join(application(environment, lambda status, headers, *_: answer.append(status)))
    assert answer == ["200 OK"], body
    found = json.loads(body)
    assert isinstance(found, dict)
    return found


def test_the_dashboard_shows_a_sweep(tmp_path: Path) -> None:
    trials = killable.sweep(tmp_path, "promote", 5, trials=6)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    application = optuna_dashboard.wsgi(storage)
    (study,) = asked(application, "/api/studies")["study_summaries"]
    assert study["study_name"] == "s"
    detail = asked(application, f"/api/studies/{study['study_id']}", "after=0")
    assert detail["objective_names"] == ["valid loss"]
    shown = detail["trials"]
    assert [t["number"] for t in shown] == [t.number for t in trials]
    states = {TrialState.COMPLETE: "Complete", TrialState.PRUNED: "Pruned"}
    for theirs, ours in zip(shown, trials, strict=True):
        assert theirs["state"] == states[ours.state]
        assert {p["name"]: p["param_internal_value"] for p in theirs["params"]} == ours.params
        assert [v["step"] for v in theirs["intermediate_values"]] == [
            round(10_000 * r.epochs) for r in ours.results
        ]
        if ours.state is TrialState.COMPLETE:
            assert theirs["values"] == [ours.value("valid loss", "minimize")]
