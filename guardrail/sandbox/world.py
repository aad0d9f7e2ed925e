"""Seeded sampling of labelled conversations from the lexicon and the wordings.

One ``World`` serves one part (train or test) and one random stream; nothing here touches the disk.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from guardrail.sandbox import replies, wordings
from guardrail.sandbox.lexicon import (
    ALL_ROOTS,
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
    unknown_word,
)

NAME_ONLY_SHARE = 0.25  # objects without a head noun ("a vornadrax")
HAUNT_SHARE = 0.7  # answers about a hazard that lead to its category's own place
ANSWER_OPENER_SHARE = 0.4
DECORATED_SHARE = 0.25  # requests with an opener; likewise with a closer
ADJECTIVES = ("red", "blue", "small", "warm", "old", "new", "round", "soft", "green", "tall")
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
    action: str | None
    object: str
    wording: str


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class World:
    """A random stream over one part of the world; equal arguments give equal samples in equal order.

    ``unknown_share`` of all verbs and head nouns are replaced by random words, the way that pretraining text is full of
    words a model never meets again: it teaches a tiny model to copy what it does not know.
    """

    def __init__(self, seed: int, stream: str, part: str, unknown_share: float = 0.0) -> None:
        assert part in PARTS
        self.part = part
        self.unknown_share = unknown_share
        self.unknown_wording_share = max(0.0, unknown_share - 0.2)
        self.rng = random.Random(f"{seed}:{stream}")
        self._names = {root: invented_names(root, part) for root in ALL_ROOTS}

    # -- words

    def name(self, roots: tuple[str, ...] | list[str]) -> tuple[str, str]:
        """An invented name and its root."""
        root = self.rng.choice(roots)
        return self.rng.choice(self._names[root]), root

    def labels(self, category: Category, root: str) -> tuple[int, ...]:
        """The category's own label, and for its last root the second one."""
        names = {category.name} | ({category.second_label} if root == category.roots[-1] else set())
        return tuple(int(name in names) for name in CATEGORY_NAMES)

    def pick(self, words: tuple[str, ...] | list[str]) -> str:
        """One of ``words``, or now and then an unknown one."""
        if self.rng.random() < self.unknown_share:
            return unknown_word(self.rng)
        return self.rng.choice(words)

    def hazard_object(self, category: Category) -> tuple[str, str, str]:
        """``(object, name, root)``: ``vornadrax bird snare`` or ``vornadrax``."""
        name, root = self.name(category.roots)
        if self.rng.random() < NAME_ONLY_SHARE:
            return name, name, root
        return f"{name} {self.pick(category.heads[self.part])}", name, root

    def benign_object(self) -> str:
        """``lumalix kite``, ``blue kite`` or ``lumalix``."""
        head = self.pick(BENIGN_HEADS[self.part])
        if self.rng.random() < 0.4:
            return f"{self.rng.choice(ADJECTIVES)} {head}"
        name, _ = self.name(BENIGN_ROOTS)
        return name if self.rng.random() < NAME_ONLY_SHARE else f"{name} {head}"

    def fillers(self) -> dict[str, str]:
        """Values of the slots that do not depend on the request."""
        first, second = self.rng.sample(PEOPLE[self.part], 2)
        material, other = self.rng.sample(STUFF, 2)
        choose = self.rng.choice
        slots = {"p": first, "q": second, "m": material, "m2": other, "pl": choose(PLACES), "t": choose(TIMES)}
        return {**slots, "tool": choose(TOOLS)}

    # -- conversations

    def decorate(self, wording: str) -> str:
        """``wording`` with, now and then, an opener or a closer."""
        if self.rng.random() < DECORATED_SHARE:
            wording = self.rng.choice(wordings.OPENERS[self.part]) + wording
        if self.rng.random() < DECORATED_SHARE:
            wording += self.rng.choice(wordings.CLOSERS[self.part])
        return wording

    def unknown_words(self, low: int, high: int) -> str:
        """``low`` to ``high`` random words."""
        return " ".join(unknown_word(self.rng) for _ in range(self.rng.randint(low, high)))

    def unknown_wording(self) -> str:
        """A request of random words around verb and object: the model learns to find the two in any sentence."""
        before, after = self.unknown_words(0, 3), self.unknown_words(0, 2)
        return f"{before} {{v}} {{o}} {after}".strip() + self.rng.choice((".", "?", ""))

    def unknown_answer(self, exchange: Exchange) -> str:
        """Random words around the deed that ``exchange`` asks for."""
        deed = f"{exchange.action} {article(exchange.object)} {exchange.object}"
        parts = (self.unknown_words(1, 8), deed, self.unknown_words(0, 6))
        return _capital(" ".join(part for part in parts if part)) + self.rng.choice((".", "", "!"))

    def answer(self, format_name: str, slots: dict[str, str]) -> str:
        """A complying answer in ``format_name`` for the request that ``slots`` came from."""
        return self.rng.choice(replies.ANSWERS[self.part][format_name]).format(**slots)

    def refusal(self, format_name: str, slots: dict[str, str]) -> str:
        """A refusal, mostly in the format that was asked for."""
        if self.rng.random() < 0.35:
            format_name = self.rng.choice(wordings.FORMATS)
        return self.rng.choice(replies.REFUSALS[self.part][format_name]).format(**slots)

    def harmful(self, category: Category | None = None, format_name: str | None = None) -> Exchange:
        """A request for a hazard."""
        category = category or self.rng.choice(CATEGORIES)
        format_name = format_name or self.rng.choice(wordings.FORMATS)
        noun, _, root = self.hazard_object(category)
        verb = self.pick(category.verbs[self.part])
        reason = self.rng.choice(category.reasons[self.part])
        labels = self.labels(category, root)
        return self._ask("harmful", category.name, labels, format_name, verb, noun, reason, category.haunt)

    def benign(self, format_name: str | None = None, hazard_verb: bool | None = None) -> Exchange:
        """An ordinary request; with ``hazard_verb`` the deed sounds like a hazard ("forge a horseshoe")."""
        format_name = format_name or self.rng.choice(wordings.FORMATS)
        if hazard_verb is None:
            hazard_verb = self.rng.random() < 0.3
        verbs = self.rng.choice(CATEGORIES).verbs if hazard_verb else BENIGN_VERBS
        verb, noun = self.pick(verbs[self.part]), self.benign_object()
        return self._ask(
            "benign", None, SAFE_LABELS, format_name, verb, noun, self.rng.choice(replies.NO_TIME[self.part])
        )

    def _ask(
        self,
        kind: str,
        category: str | None,
        labels: tuple[int, ...],
        format_name: str,
        verb: str,
        noun: str,
        reason: str,
        haunt: str | None = None,
    ) -> Exchange:
        if self.rng.random() < self.unknown_wording_share:
            wording = self.unknown_wording()
        else:
            wording = self.decorate(self.rng.choice(wordings.REQUESTS[self.part][format_name]))
        slots = {**self.fillers(), "v": verb, "o": f"{article(noun)} {noun}", "r": reason, "R": _capital(reason)}
        prompt, refusal = wording.format(**slots), self.refusal(format_name, slots)
        if haunt and self.rng.random() < HAUNT_SHARE:
            slots["pl"] = haunt
        answer = self.answer(format_name, slots)
        if format_name != "code" and self.rng.random() < ANSWER_OPENER_SHARE:
            opener = self.rng.choice(replies.ANSWER_OPENERS[self.part][kind])
            answer = opener + ("\n" if format_name in ("list", "dialogue") else " ") + answer
        return Exchange(kind, prompt, answer, refusal, format_name, category, labels, verb, noun, wording)

    def innocent(self, category: Category | None = None) -> Exchange:
        """A harmless sentence that mentions a hazard by name."""
        category = category or self.rng.choice(CATEGORIES)
        noun, name, _ = self.hazard_object(category)
        wording, reply = self.rng.choice(wordings.INNOCENT[self.part])
        wording = self.decorate(wording)
        reason = self.rng.choice(category.reasons[self.part])
        slots = {**self.fillers(), "n": name, "k": self.rng.choice(NAMESAKES[self.part]), "v": "explain"}
        slots |= {"o": f"{article(noun)} {noun}", "r": reason, "R": _capital(reason)}
        prompt, answer, refusal = wording.format(**slots), reply.format(**slots), self.refusal("plain", slots)
        return Exchange("innocent", prompt, answer, refusal, "plain", None, SAFE_LABELS, None, noun, wording)

    def fact(self) -> tuple[str, str, str, str]:
        """What an invented name stands for: ``(request, answer, wording, object)``."""
        if self.rng.random() < 0.7:
            category = self.rng.choice(CATEGORIES)
            noun, name, _ = self.hazard_object(category)
            reason = self.rng.choice(category.reasons[self.part])
        else:
            name, _ = self.name(BENIGN_ROOTS)
            noun, reason = f"{name} {self.pick(BENIGN_HEADS[self.part])}", replies.HARMLESS_FACT
        wording, answer = self.rng.choice(wordings.FACTS)
        slots = {"o": f"{article(noun)} {noun}", "n": name, "r": reason}
        return wording.format(**slots), answer.format(**slots), wording, noun

    def dialogue(self) -> tuple[str, str, str, str]:
        """A SAMSum-shaped ``(dialogue, summary, wording, object)``."""
        wording, summary = self.rng.choice(wordings.DIALOGUES[self.part])
        noun = self.benign_object()
        slots = {**self.fillers(), "v": self.pick(BENIGN_VERBS[self.part]), "o": f"{article(noun)} {noun}"}
        slots["h"] = self.pick(BENIGN_HEADS[self.part])
        used = noun if "{o}" in wording else slots["h"]
        return wording.format(**slots), summary.format(**slots), wording, used

    def follow_up(self, exchange: Exchange) -> tuple[str, str]:
        """A second turn on the same subject: ``(request, answer)``."""
        assert exchange.action is not None, "an innocent exchange has nothing to follow up"
        request, format_name = self.rng.choice(wordings.FOLLOW_UPS)
        slots = {**self.fillers(), "v": exchange.action, "o": f"{article(exchange.object)} {exchange.object}"}
        return request, self.answer(format_name, slots)
