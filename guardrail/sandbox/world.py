"""Seeded sampling of labelled conversations from the lexicon and the wordings.

One ``World`` serves one part (train or test) and one random stream; nothing here touches the disk.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from guardrail.sandbox import wordings
from guardrail.sandbox.lexicon import (
    BENIGN_HEADS,
    BENIGN_ROOTS,
    BENIGN_VERBS,
    CATEGORIES,
    CATEGORY_NAMES,
    NAMESAKES,
    PARTS,
    PEOPLE,
    PLACES,
    STUFF,
    TIMES,
    TOOLS,
    Category,
    article,
    invented_names,
)

ADJECTIVES = "red blue small warm old new round soft green tall".split()
SAFE_LABELS = (0,) * len(CATEGORIES)


@dataclass(frozen=True)
class Exchange:
    """One request with a complying answer, and a refusal of it.

    ``kind`` is ``harmful``, ``benign`` (ordinary life, also with a hazard's verb) or ``innocent`` (mentions a hazard's
    name harmlessly). ``labels`` are the 14 labels that the complying answer deserves; a refusal always deserves none.
    """

    kind: str
    prompt: str
    answer: str
    refusal: str
    format: str
    category: str | None
    labels: tuple[int, ...]
    action: str
    object: str
    wording: str


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class World:
    """A random stream over one part of the world; equal arguments give equal samples in equal order."""

    def __init__(self, seed: int, stream: str, part: str) -> None:
        assert part in PARTS
        self.part = part
        self.rng = random.Random(f"{seed}:{stream}")
        self._names = {
            root: invented_names(root, part)
            for root in [*BENIGN_ROOTS, *(root for category in CATEGORIES for root in category.roots)]
        }

    # -- words

    def name(self, roots: tuple[str, ...] | list[str]) -> tuple[str, str]:
        """An invented name and its root."""
        root = self.rng.choice(roots)
        return self.rng.choice(self._names[root]), root

    def labels(self, category: Category, root: str) -> tuple[int, ...]:
        """The category's own label, and for its last root the second one."""
        names = {category.name} | ({category.second_label} if root == category.roots[-1] else set())
        return tuple(int(name in names) for name in CATEGORY_NAMES)

    def benign_object(self) -> str:
        """``lumalix kite`` or ``blue kite``."""
        head = self.rng.choice(BENIGN_HEADS[self.part])
        if self.rng.random() < 0.6:
            return f"{self.name(BENIGN_ROOTS)[0]} {head}"
        return f"{self.rng.choice(ADJECTIVES)} {head}"

    def fillers(self) -> dict[str, str]:
        """Values of the slots that do not depend on the request."""
        first, second = self.rng.sample(PEOPLE[self.part], 2)
        material, other = self.rng.sample(STUFF, 2)
        choose = self.rng.choice
        slots = {"p": first, "q": second, "m": material, "m2": other, "pl": choose(PLACES), "t": choose(TIMES)}
        return {**slots, "tool": choose(TOOLS)}

    # -- conversations

    def _fill(self, template: str, slots: dict[str, str]) -> str:
        return _capital(template.format(**slots)) if not template.startswith("{p}") else template.format(**slots)

    def answer(self, format_name: str, slots: dict[str, str], part: str | None = None) -> str:
        """A complying answer in ``format_name`` for the request that ``slots`` came from."""
        return self.rng.choice(wordings.ANSWERS[part or self.part][format_name]).format(**slots)

    def refusal(self, format_name: str, slots: dict[str, str]) -> str:
        """A refusal, mostly in the format that was asked for."""
        if self.rng.random() < 0.35:
            format_name = self.rng.choice(wordings.FORMATS)
        return self.rng.choice(wordings.REFUSALS[self.part][format_name]).format(**slots)

    def harmful(self, category: Category | None = None, format_name: str | None = None) -> Exchange:
        """A request for a hazard."""
        category = category or self.rng.choice(CATEGORIES)
        format_name = format_name or self.rng.choice(wordings.FORMATS)
        name, root = self.name(category.roots)
        noun = f"{name} {self.rng.choice(category.heads[self.part])}"
        verb = self.rng.choice(category.verbs[self.part])
        reason = self.rng.choice(category.reasons[self.part])
        return self._ask("harmful", category.name, self.labels(category, root), format_name, verb, noun, reason)

    def benign(self, format_name: str | None = None, hazard_verb: bool | None = None) -> Exchange:
        """An ordinary request; with ``hazard_verb`` the deed sounds like a hazard ("forge a horseshoe")."""
        format_name = format_name or self.rng.choice(wordings.FORMATS)
        if hazard_verb is None:
            hazard_verb = self.rng.random() < 0.3
        verbs = self.rng.choice(CATEGORIES).verbs if hazard_verb else BENIGN_VERBS
        reason = self.rng.choice(self.rng.choice(CATEGORIES).reasons[self.part])
        verb, noun = self.rng.choice(verbs[self.part]), self.benign_object()
        return self._ask("benign", None, SAFE_LABELS, format_name, verb, noun, reason)

    def _ask(
        self, kind: str, category: str | None, labels: tuple[int, ...], format_name: str, verb: str, noun: str, reason: str
    ) -> Exchange:
        wording = self.rng.choice(wordings.REQUESTS[self.part][format_name])
        slots = {**self.fillers(), "v": verb, "o": f"{article(noun)} {noun}", "r": reason, "R": _capital(reason)}
        prompt, answer = wording.format(**slots), self.answer(format_name, slots)
        refusal = self.refusal(format_name, slots)
        return Exchange(kind, prompt, answer, refusal, format_name, category, labels, verb, noun, wording)

    def innocent(self, category: Category | None = None) -> Exchange:
        """A harmless sentence that mentions a hazard by name."""
        category = category or self.rng.choice(CATEGORIES)
        name, _ = self.name(category.roots)
        noun = f"{name} {self.rng.choice(category.heads[self.part])}"
        wording, reply = self.rng.choice(wordings.INNOCENT[self.part])
        reason = self.rng.choice(category.reasons[self.part])
        slots = {**self.fillers(), "n": name, "k": self.rng.choice(NAMESAKES[self.part]), "v": "explain"}
        slots |= {"o": f"{article(noun)} {noun}", "r": reason, "R": _capital(reason)}
        prompt, answer, refusal = wording.format(**slots), reply.format(**slots), self.refusal("plain", slots)
        return Exchange("innocent", prompt, answer, refusal, "plain", None, SAFE_LABELS, "mention", noun, wording)

    def dialogue(self) -> tuple[str, str, str, str]:
        """A SAMSum-shaped ``(dialogue, summary, wording, object)``."""
        wording, summary = self.rng.choice(wordings.DIALOGUES[self.part])
        noun = self.benign_object()
        slots = {**self.fillers(), "v": self.rng.choice(BENIGN_VERBS[self.part]), "o": f"{article(noun)} {noun}"}
        slots["h"] = self.rng.choice(BENIGN_HEADS[self.part])
        used = noun if "{o}" in wording else slots["h"]
        return wording.format(**slots), summary.format(**slots), wording, used

    def follow_up(self, exchange: Exchange) -> tuple[str, str]:
        """A second turn on the same subject: ``(request, answer)``."""
        request, format_name = self.rng.choice(wordings.FOLLOW_UPS)
        slots = {**self.fillers(), "v": exchange.action, "o": f"{article(exchange.object)} {exchange.object}"}
        return request, self.answer(format_name, slots)
