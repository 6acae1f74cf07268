"""The Ray Tune trainable: holds a gang, and serves one trial after another with it."""

from __future__ import annotations

from typing import Any

from ray import tune

from training.gang import Ended, Failed, Gang, GangConfig
from training.reporter import Evaluation


class GangTrainable(tune.Trainable):
    """One evaluation a step. Tune reuses it, and with it the warm gang, for the next trial.

    Checkpoints are the gang's own, so Tune's are empty: a trial that is taken up again finds
    its newest one in its directory.
    """

    def setup(self, config: dict[str, Any], gang: GangConfig) -> None:
        """Start the gang and give it its first trial, without waiting for it."""
        self._gang = Gang(gang)
        self._gang.begin(config["order"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with another trial on the same gang."""
        self._gang.begin(new_config["order"])
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation; `done` with the last one."""
        news = self._gang.advance()
        if isinstance(news, Evaluation) and not news.last:
            return {"evaluation": news, "done": False}
        last = news if isinstance(news, Evaluation) else None
        if last is not None:  # nothing is decided any more: hear how it ended
            news = self._gang.advance()
        assert isinstance(news, Ended | Failed), news
        failure = news if isinstance(news, Failed) else None
        return {"last_evaluation": last, "failure": failure, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: see the class."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see the class."""

    def cleanup(self) -> None:
        """Send the workers home."""
        self._gang.close()
