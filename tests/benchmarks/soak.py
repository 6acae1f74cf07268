"""A long sweep of tiny trials: what grows, and what is left.

    python -m tests.benchmarks.soak [--trials 1000] [--out F]

Four gangs on two raylets run trials of a tiny random model. Watches the driver's memory, threads and file
handles, the cluster's processes and placement groups, and counts the trials in the ledger at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.raylets import Raylets, raylets, small_sweep
from tests.benchmarks.results import tell
from tests.holders import is_free
from tests.processes import wait_for

GANGS, SETTLED = 4, 100
"""Trials after which nothing may grow any more."""


def tiny_model(directory: Path) -> Path:
    """A random BERT of 3 small blocks with a tokenizer of single letters, saved."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.,'-"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(directory / "vocab.txt")).save_pretrained(directory)
    return directory


def status(pid: int) -> dict[str, float]:
    """Memory in MB, threads and open files of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "memory_mb": round(int(fields["VmRSS"].split()[0]) / 1000, 1),
        "threads": int(fields["Threads"]),
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }


def placement_groups() -> int:
    """Those that are not removed."""
    from ray.util import placement_group_table

    return sum(group["state"] != "REMOVED" for group in placement_group_table().values())


class Watch:
    """Samples a driver and its cluster, by the number of trials that have ended."""

    def __init__(self, cluster: Raylets, journal: Path) -> None:
        self.samples: list[dict[str, float]] = []
        self._cluster, self._journal = cluster, journal
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(5):
            with contextlib.suppress(Exception):  # it starts, or ends
                [pid] = self._cluster.pids("launch.py run", without="supervise")
                ended = (self._journal.parent / "metrics.jsonl").read_text().count('"kind": "finish"')
                self.samples.append(
                    {
                        "trials": ended,
                        **status(pid),
                        "processes": len(self._cluster.processes()),
                        "placement_groups": placement_groups(),
                    }
                )

    def end(self) -> list[dict[str, float]]:
        """What was seen."""
        self._ended.set()
        self._thread.join()
        return self.samples


def growth(samples: Sequence[dict[str, float]], name: str, settled: int, trials: int) -> float:
    """From the first sample of a settled sweep to the largest while trials run: the export comes after."""
    after = [sample[name] for sample in samples if settled <= sample["trials"] < trials]
    return round(max(after) - after[0], 1) if after else 0.0


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run it, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--gangs", type=int, default=GANGS)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    settled = min(SETTLED, options.trials // 3)
    each = -(-options.gangs // 2)
    with tempfile.TemporaryDirectory() as temporary, raylets(nodes=2, cpus=each) as cluster:
        place = Path(temporary)
        (place / "model").mkdir()
        raw = small_sweep(
            place,
            "soak",
            model={"name": str(tiny_model(place / "model"))},
            training={"epochs": 0.2, "evaluations_per_epoch": 1, "log_every": 10},
            search={"trials": options.trials},
            resources={"max_concurrent": options.gangs},
        )
        file = place / "sweep.yaml"
        file.write_text(yaml.safe_dump(raw))
        before = {"processes": len(cluster.processes()), "placement_groups": placement_groups()}
        running = cluster.drive("run", file, "--storage", place, supervised=False)
        watch = Watch(cluster, place / "soak" / "study.journal")
        log = running.communicate()[0]
        samples = watch.end()
        wait_for(is_free, 60, "resources free")
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: placement_groups() <= before["placement_groups"], 30, "placement groups gone")
        from search.study import Study

        trials = Study.read(place / "soak" / "study.journal").trials()
        names = ("memory_mb", "threads", "files", "processes", "placement_groups")
        found = {
            "code": running.returncode,
            "log": log[-1500:],
            "settled_after": settled,
            "growth": {name: growth(samples, name, settled, options.trials) for name in names},
            "before": before,
            "left": {
                "gangs": len([line for line in cluster.processes().values() if "RayTrainWorker" in line]),
                "drivers": len(cluster.pids("launch.py")),
                "placement_groups": placement_groups(),
            },
            "trials": len(trials),
            "complete": sum(trial.state.value == "complete" for trial in trials),
            "numbers_once": len({trial.number for trial in trials}) == len(trials),
            "samples": samples[:: max(1, len(samples) // 40)],
        }
    tell(found, options.out)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
