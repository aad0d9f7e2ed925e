"""What a study reads from the hub, and which commits it means.

A key holds the commit that the hub's cache notes for a name (`guardrail.study.keys`). Before a schedule is made, the
hub is asked once for the newest commit of every name: so a study whose data were changed on the hub runs again, a first
run and a second one have the same keys, and a gated name is refused before anything runs. The jobs read those commits.
"""

from __future__ import annotations

from pathlib import Path

from guardrail.core.cli import log
from guardrail.core.hub import cached_commit, hub_available, is_offline, refresh_commit
from guardrail.data.benches import BENCHES, split_name
from guardrail.study.config import Study


def hub_names(study: Study) -> list[tuple[str, str]]:
    """``(kind, name)`` of everything that lies on the hub: models, data sets, benches."""
    if study.sandbox:
        return []
    models = [study.models.base, study.models.extraction, study.models.moderation]
    guard = study.evaluation.judges.get("guard")
    if guard is not None and guard.backend != "openai":
        models.append(guard.model)
    sources = [study.instruct.source, study.safety_pool.source]
    sources += [part.source for task in study.tasks.values() for part in (task.train, task.utility)]
    sources += [anchor.source for anchor in study.anchors.values()]
    sources += [task.rung.harmful.source for task in study.tasks.values() if task.rung]
    found = [("model", name) for name in models] + [("dataset", name) for name in sources]
    evaluation = study.evaluation
    for bench, data in (
        (evaluation.safety_bench, evaluation.safety_bench_data),
        (evaluation.over_refusal_bench, evaluation.over_refusal_bench_data),
    ):
        base = split_name(bench)[0] if bench else ""
        if data is None and base in BENCHES and (hub := BENCHES.load(base).hub):
            found.append(("dataset", hub))
    return [one for one in dict.fromkeys(found) if is_hub_name(one[1])]


def is_hub_name(name: str) -> bool:
    """``org/name``, and nothing of that name on this machine."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def refresh_hub_names(study: Study) -> dict[str, str | None]:
    """Note the newest commit of every hub name in the hub's cache; ``kind name`` -> commit (None: not known).

    Raises ``UserError`` for a name that is gated, private or missing. Without the hub, what the cache notes counts.
    """
    names = hub_names(study)
    if not names:
        return {}
    there = hub_available()
    if not there:
        why = "the hub is off (HF_HUB_OFFLINE=1)" if is_offline() else "the hub cannot be reached"
        log(f"{why}: {len(names)} hub names are taken from the cache as they are")
    return {
        f"{kind} {name}": refresh_commit(kind, name) if there else cached_commit(kind, name) for kind, name in names
    }
