"""What a gang's owner makes of what its workers say."""

from __future__ import annotations

from training.gang.messages import Crashed, cause

KILLED = Crashed(error="killed")
DOES_NOT_FIT = Crashed(error="phase full does not fit in memory", infeasible=True)
CUT_OFF = Crashed(error="RuntimeError: Connection closed by peer")


def test_who_misses_its_connection_does_not_hide_that_a_trial_does_not_fit() -> None:
    assert cause(cause(KILLED, DOES_NOT_FIT), CUT_OFF) is DOES_NOT_FIT
    assert cause(cause(KILLED, CUT_OFF), DOES_NOT_FIT) is DOES_NOT_FIT
    assert cause(KILLED, CUT_OFF) is CUT_OFF
