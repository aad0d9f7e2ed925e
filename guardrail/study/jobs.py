"""One job of a study, and what is asked of many: which stage with which settings, what it makes, what it needs.

A job is one run of one stage; a product is what it makes under one key (a selection job makes one per subset). Several
jobs may share a process (`guardrail.study.processes`). All jobs of a study: `guardrail.study.dag.make_jobs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guardrail.core.errors import UserError
from guardrail.study import keys
from guardrail.study.config import TASK_SUBSETS, Source
from guardrail.study.grid import Grid
from guardrail.study.keys import Key
from guardrail.study.records import Product, State, product_state


def flags(**values: Any) -> list[str]:
    """Options of a stage as flags of its command line; those without a value are left out."""
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


@dataclass(frozen=True)
class Job:
    """One run of one stage.

    ``command`` is a script with its arguments, and ``variables`` its whole set of settings; or, for a job that can
    share a process, the stage's module with its flags. ``needs`` names the jobs whose files it reads; ``log`` is
    relative to the study's folder, as are the files of ``products``. What follows is in no key: ``gpus`` says how many
    it takes on a GPU machine (`guardrail.study.leases`), "all", "one" or "none"; ``process`` in which process it runs;
    ``one_process`` that it does not share its work out over several ranks.
    """

    name: str
    stage: str
    title: str
    command: tuple[str, ...]
    variables: dict[str, str]
    products: tuple[Product, ...]
    needs: tuple[str, ...]
    log: str
    gpus: str
    process: str = ""
    one_process: bool = False

    @property
    def is_script(self) -> bool:
        """Is it a script, with a process of its own?"""
        return self.command[0].endswith((".sh", ".py"))

    @property
    def is_judge(self) -> bool:
        """Does it judge answers that are there?"""
        return self.stage == "harmfulness" or self.stage.startswith("judge_")

    def product(self, name: str | None = None) -> Product:
        """The product of that name; without a name the only one."""
        return next(p for p in self.products if name is None or p.name == name)


class JobMaker:
    """Collects the jobs of a study in the order in which they can run; hashes every source and model once."""

    def __init__(self, grid: Grid, trainer: str, ranks: int, missing_ok: bool) -> None:
        self.grid, self.study, self.trainer, self.ranks = grid, grid.study, trainer, ranks
        self.missing_ok = missing_ok
        self.jobs: dict[str, Job] = {}
        self.trainer_content = keys.trainer_content(trainer, grid.folder)
        self.style = keys.style_hash(self.study.prompt_style)
        self.sources: dict[Source, str] = {}
        self.models: dict[str, str] = {}
        # One job selects all subsets of a task and size that the study uses: the pool is scored once.
        arms = [subset for subset in self.study.subsets if subset in TASK_SUBSETS]
        more = [setting.rows for setting in self.study.defence_settings.values() if setting.rows in TASK_SUBSETS]
        self.selected = list(dict.fromkeys([*arms, *(str(name) for name in more)]))

    def source(self, source: Source) -> str:
        if source not in self.sources:
            try:
                self.sources[source] = keys.source_hash(source.source, source.split)
            except UserError:
                if not self.missing_ok:
                    raise
                self.sources[source] = keys.UNKNOWN
        return self.sources[source]

    def model(self, name: str) -> str:
        if name not in self.models:
            self.models[name] = keys.model_hash(name)
        return self.models[name]

    def path(self, *parts: str) -> str:
        return str(self.grid.folder.joinpath(*parts))

    def add(
        self,
        name: str,
        stage: str,
        title: str,
        command: list[str],
        variables: dict[str, Any],
        products: Mapping[str, tuple[Key, tuple[str, ...]]],
        needs: list[str],
        log: str,
        gpus: str = "one",
        process: str | None = None,
        one_process: bool = False,
    ) -> None:
        made = tuple(Product(product, key, files) for product, (key, files) in products.items())
        texts = {key: "" if value is None else str(value) for key, value in variables.items()}
        needed = tuple(dict.fromkeys(needs))
        self.jobs[name] = Job(
            *(name, stage, title, tuple(command), texts, made, needed, log, gpus, process or name, one_process)
        )

    def key_of(self, job: str, product: str | None = None) -> Key:
        return self.jobs[job].product(product).key


def jobs_behind(jobs: dict[str, Job], targets: list[str]) -> list[str]:
    """``targets`` and everything that they need, upstream first."""
    seen: dict[str, None] = {}

    def visit(name: str) -> None:
        for need in jobs[name].needs:
            visit(need)
        seen[name] = None

    for target in targets:
        visit(target)
    return list(seen)


def job_states(grid: Grid, jobs: dict[str, Job]) -> dict[str, dict[str, State]]:
    """Job -> product -> state."""
    return {
        name: {product.name: product_state(grid.folder, name, product) for product in job.products}
        for name, job in jobs.items()
    }
