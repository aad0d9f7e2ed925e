"""Places to plug in: names, and where each one's code is. Looking a name up imports nothing.

    JUDGES = Registry("judge")
    JUDGES.add("key_word", "guardrail.evaluation.judges.key_word")        # a module ...
    SELECTORS.add("high", "guardrail.similarity.selection.selectors:high")  # ... or something in one

A package that is not part of this project adds its own by an entry point of the group ``guardrail.<kind>`` (blanks as
underscores): a plug-in is found by being installed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from typing import Any

from guardrail.core.errors import unknown


class Registry:
    """Names of one kind of thing, in the order in which they were added.

    ``kind`` is the word that an error message uses. A name is added once; adding it again is an error, so that no
    plug-in silently replaces another.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._places: dict[str, str] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._searched = False

    def add(self, name: str, place: str, **facts: Any) -> None:
        """``place`` is ``module`` or ``module:attribute``; ``facts`` are what must be known without importing it."""
        if name in self._places:
            raise ValueError(f"{self.kind} {name!r} is registered twice: {self._places[name]} and {place}")
        self._places[name] = place
        self._facts[name] = facts

    def remove(self, name: str) -> None:
        """Take a name out again (tests)."""
        del self._places[name], self._facts[name]

    def _search(self) -> None:
        """Entry points of installed packages, once."""
        if not self._searched:
            self._searched = True
            for point in importlib.metadata.entry_points(group=f"guardrail.{self.kind.replace(' ', '_')}"):
                self.add(point.name, point.value)

    def names(self) -> tuple[str, ...]:
        self._search()
        return tuple(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def check(self, name: str) -> str:
        """``name``, or ``UserError`` with the near match."""
        if name not in self:
            raise unknown(self.kind, name, self.names())
        return name

    def facts(self, name: str) -> dict[str, Any]:
        """What was said about ``name`` where it was added."""
        return self._facts[self.check(name)]

    def load(self, name: str) -> Any:
        """The module or object behind ``name``. Raises ``UserError`` for an unknown name."""
        module, _, attribute = self._places[self.check(name)].partition(":")
        found = importlib.import_module(module)
        return getattr(found, attribute) if attribute else found
