"""A journal with a line that nobody can read: as little as can be is cut off, and never in silence."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.storages.journal._storage import JournalOperation as Op
from optuna.trial import TrialState as OptunaState

from search import mirror
from search.journal import entry
from search.ledger import derived_seed
from search.locks import FileLock


def repair(path: Path) -> str | None:
    """Make the journal at `path` readable again; what was lost, in a sentence, or None where it is sound.

    The unreadable lines are cut out, and with them, where the others make no sense without them, all
    that follow. The file as it was stays beside it. A last line without an end is no damage.
    """
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire()
        raw = path.read_bytes().split(b"\n")[:-1]
        broken = [at for at, line in enumerate(raw) if entry(line) is None]
        if not broken:
            return None
        kept = [line for line in raw if entry(line) is not None]
        if not _sound(kept):
            kept = raw[: broken[0]]
        backup = _free(path)
        shutil.copy2(path, backup)
        draft = path.with_name(f".{path.name}.repaired")
        draft.write_bytes(b"".join(line + b"\n" for line in kept))
        draft.replace(path)
    finally:
        lock.release()
    which = ", ".join(str(at + 1) for at in broken[:5]) + (", ..." if len(broken) > 5 else "")
    lost = len(raw) - len(kept)
    rest = lost - len(broken)
    also = f", and with it the {rest} lines after it that make no sense without it" if rest else ""
    return (
        f"{mirror.shown(path)}: line {which} could not be read and was cut off{also}: what {lost} of "
        f"{len(raw)} entries said is lost, and is done again where it is needed; the file as it was is kept "
        f"as {backup.name}"
    )


def _sound(lines: Sequence[bytes]) -> bool:
    """Whether these entries tell one story: each is about a trial that is there and has not ended.

    Optuna itself passes over what does not fit, and would give one trial's results to another. That a
    trial is the one with this number is seen by its seed, which is derived from the number.
    """
    entries = [found for found in map(entry, lines) if found is not None]
    seeds = [e["user_attr"]["seed"] for e in entries if _is(e, Op.SET_STUDY_USER_ATTR, "seed")]
    if [e["op_code"] for e in entries].count(Op.CREATE_STUDY) != 1 or len(seeds) != 1:
        return False
    ended: list[bool] = []
    for one in entries:
        if one["op_code"] == Op.CREATE_TRIAL:
            number, told = len(ended), one.get("user_attrs", {}).get("seed")
            ended.append(OptunaState(one.get("state", OptunaState.RUNNING)).is_finished())
        elif "trial_id" in one:
            number = one["trial_id"]
            if number >= len(ended) or ended[number]:
                return False
            told = one["user_attr"]["seed"] if _is(one, Op.SET_TRIAL_USER_ATTR, "seed") else None
            if one["op_code"] == Op.SET_TRIAL_STATE_VALUES:
                ended[number] = OptunaState(one["state"]).is_finished()
        else:
            continue
        if told is not None and told != derived_seed(seeds[0], number, "trial"):
            return False
    return True


def _is(one: Mapping[str, Any], op: Op, key: str) -> bool:
    """Whether an entry sets this attribute."""
    return one["op_code"] == op and key in one["user_attr"]


def _free(path: Path) -> Path:
    """A name for a backup that no file has yet."""
    number = 1
    while (backup := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    return backup
