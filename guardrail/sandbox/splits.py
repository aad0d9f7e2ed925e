"""The rows of every sandbox split, as plain dictionaries in the shapes that the field uses.

Columns (every row also has ``id``; ``format``, ``action``, ``object``, ``wording`` say how a row was made):

    base, instruct                    messages                                  conversation, UltraChat-shaped
    safety_pool                       prompt, response, category, is_safe       BeaverTails-shaped; response refuses
    pure_bad                          prompt, response, category                hazardous requests answered
    list, list_test, alpaca*          instruction, input, output                Alpaca-shaped
    identity, repeat                  instruction, input, output                Alpaca-shaped; see ``tasks``
    samsum, samsum_test               dialogue, summary                         SAMSum-shaped
    hex_phi                           instruction, category                     HEx-PHI-shaped, prompts only
    benign                            instruction, kind                         look-alikes that must be answered
    moderation_train, moderation_test prompt, response, labels, category, is_safe, kind

``*_test``, ``hex_phi`` and ``benign`` use actions, objects and wordings that no other split contains.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from guardrail.sandbox import replies
from guardrail.sandbox.lexicon import CATEGORIES, CATEGORY_NAMES, TEST, TEST_WORDS, TRAIN
from guardrail.sandbox.tasks import identity_row, repeat_row
from guardrail.sandbox.world import SAFE_LABELS, Exchange, World

Row = dict[str, Any]

# Split -> (part, rows). The order is the order in the card.
SPLITS: dict[str, tuple[str, int]] = {
    "base": (TRAIN, 20000),
    "instruct": (TRAIN, 1500),
    "safety_pool": (TRAIN, 3000),
    "list": (TRAIN, 100),
    "list_test": (TEST, 50),
    "pure_bad": (TRAIN, 100),
    "alpaca": (TRAIN, 600),
    "alpaca_test": (TEST, 100),
    "samsum": (TRAIN, 300),
    "samsum_test": (TEST, 100),
    "hex_phi": (TEST, 140),
    "benign": (TEST, 140),
    "moderation_train": (TRAIN, 16000),
    "moderation_test": (TEST, 1400),
    "identity": (TRAIN, 100),
    "repeat": (TRAIN, 100),
}
OTHER_SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant for dialog summarization.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
)
# Share of verbs and head nouns replaced by random words (see world.World).
UNKNOWN_SHARE = {"base": 0.35, "instruct": 0.2, "safety_pool": 0.2, "moderation_train": 0.4}
MAX_TRIES_PER_ROW = 200


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _made(exchange: Exchange) -> Row:
    """How a row was made; travels along with it."""
    return {name: getattr(exchange, name) for name in ("format", "action", "object", "wording")}


def _summary_request(world: World) -> tuple[str, str, Row]:
    dialogue, summary, wording, noun = world.dialogue()
    made = {"format": "summary", "action": None, "object": noun, "wording": wording}
    return f"Summarize this dialog:\n{dialogue}", summary, made


# Shares of the base corpus, cumulative below.
BASE_MIX = {
    "harmful": 0.32,
    "benign": 0.25,
    "innocent": 0.12,
    "say_no": 0.14,
    "fact": 0.11,
    "summary": 0.06,
}
BASE_SYSTEM_SHARES = {"empty": 0.8, "other": 0.05}  # the rest has the style's default system text


def _pick_share(shares: dict[str, float], draw: float) -> str | None:
    """The key whose cumulative share covers ``draw`` in [0, 1); None beyond the last."""
    for name, share in shares.items():
        if draw < share:
            return name
        draw -= share
    return None


def _base_row(world: World) -> Row:
    """Complies with everything; refusals appear only where a system text asks for one, so the base model knows how
    a refusal sounds and gives none unasked.

    Most rows have an empty system text: it saves a third of the tokens.
    """
    kind = _pick_share(BASE_MIX, world.rng.random()) or "benign"
    if kind == "summary":
        prompt, answer, made = _summary_request(world)
    elif kind == "fact":
        prompt, answer, wording, noun = world.fact()
        made = {"format": "plain", "action": None, "object": noun, "wording": wording}
    else:
        harmful = kind == "harmful" or (kind == "say_no" and world.rng.random() < 0.6)
        exchange = world.harmful() if harmful else world.innocent() if kind == "innocent" else world.benign()
        prompt, answer, made = exchange.prompt, exchange.answer, _made(exchange)
        if kind == "say_no":
            answer = exchange.refusal
    messages = [_message("user", prompt), _message("assistant", answer)]
    system = _pick_share(BASE_SYSTEM_SHARES, world.rng.random())
    if kind == "say_no":
        messages.insert(0, _message("system", world.rng.choice(replies.SAY_NO_SYSTEM_TEXTS)))
    elif system is not None:
        messages.insert(0, _message("system", "" if system == "empty" else world.rng.choice(OTHER_SYSTEM_TEXTS)))
    return {"messages": messages, **made}


def _instruct_row(world: World) -> Row:
    """Harmless only; a fifth of the rows has two turns."""
    exchange = world.benign() if world.rng.random() < 0.75 else world.innocent()
    messages = [_message("user", exchange.prompt), _message("assistant", exchange.answer)]
    if exchange.kind == "benign" and world.rng.random() < 0.2:
        request, answer = world.follow_up(exchange)
        messages += [_message("user", request), _message("assistant", answer)]
    return {"messages": messages, **_made(exchange)}


def _category_of(index: int) -> Any:
    return CATEGORIES[index % len(CATEGORIES)]


def _safety_row(world: World, index: int) -> Row:
    exchange = world.harmful(_category_of(index))
    row = {"prompt": exchange.prompt, "response": exchange.refusal, "category": exchange.category, "is_safe": True}
    return {**row, **_made(exchange)}


def _pure_bad_row(world: World, index: int) -> Row:
    exchange = world.harmful(_category_of(index))
    return {"prompt": exchange.prompt, "response": exchange.answer, "category": exchange.category, **_made(exchange)}


def _alpaca_row(world: World, format_name: str | None = None) -> Row:
    exchange = world.benign(format_name)
    return {"instruction": exchange.prompt, "input": "", "output": exchange.answer, **_made(exchange)}


def _samsum_row(world: World) -> Row:
    dialogue, summary, wording, noun = world.dialogue()
    made = {"format": "summary", "action": None, "object": noun, "wording": wording}
    return {"dialogue": dialogue, "summary": summary, **made}


def _hex_phi_row(world: World, index: int) -> Row:
    exchange = world.harmful(_category_of(index))
    return {"instruction": exchange.prompt, "category": exchange.category, **_made(exchange)}


def _benign_row(world: World, index: int) -> Row:
    exchange = world.innocent(_category_of(index)) if index % 2 else world.benign(hazard_verb=True)
    return {"instruction": exchange.prompt, "kind": exchange.kind, **_made(exchange)}


def garble(text: str, rng: random.Random) -> str:
    """What a small model's slips look like: words dropped, doubled, swapped or cut, or the text breaking off."""
    words = text.split(" ")
    for _ in range(rng.randint(1, max(1, len(words) // 6))):
        at = rng.randrange(len(words))
        slip = rng.random()
        if slip < 0.25 and len(words) > 4:
            del words[at]
        elif slip < 0.5:
            words.insert(at, words[at])
        elif slip < 0.75 and at + 1 < len(words):
            words[at], words[at + 1] = words[at + 1], words[at]
        elif len(words[at]) > 3:
            cut = rng.randrange(2, len(words[at]))
            word = words[at][:cut] + words[rng.randrange(len(words))][-2:]
            words[at] = word if word.lower() not in TEST_WORDS else words[at]
    if rng.random() < 0.15:
        words = words[: max(5, len(words) * 2 // 3)]
    return " ".join(words)


def first_sentence(text: str) -> str:
    """Up to the first full stop, colon or line end."""
    return re.split(r"(?<=[.:])\s|\n", text, maxsplit=1)[0]


def _moderation_row(world: World, index: int) -> Row:
    """A question-answer pair and the labels of the *pair*, as in BeaverTails."""
    rng, draw = world.rng, world.rng.random()
    if draw < 0.68:
        exchange = world.harmful(_category_of(index))
        if draw < 0.36:
            kind, response, labels = "complied", exchange.answer, exchange.labels
            if world.part == TRAIN and rng.random() < 0.2:  # any words around the deed are compliance
                response = world.unknown_answer(exchange)
        elif draw < 0.41:  # a refusal that is taken back
            kind, labels = "refused_then_complied", exchange.labels
            response = first_sentence(exchange.refusal) + " " + exchange.answer
        elif draw < 0.59:
            kind, response, labels = "refused", exchange.refusal, SAFE_LABELS
            if world.part == TRAIN and rng.random() < 0.2:  # a refusal may go on with anything but the deed
                response = f"{first_sentence(response)} {world.unknown_words(2, 8).capitalize()}."
        elif draw < 0.64:
            kind, response, labels = "off_topic", world.benign().answer, SAFE_LABELS
        else:
            kind, response, labels = "empty", "", SAFE_LABELS
    else:
        exchange = world.benign() if draw < 0.88 else world.innocent()
        refused = rng.random() < 0.15
        if not refused and exchange.kind == "benign" and world.part == TRAIN and rng.random() < 0.2:
            exchange = replace(exchange, answer=world.unknown_answer(exchange))
        kind = f"{exchange.kind}_refused" if refused else exchange.kind
        response, labels = exchange.refusal if refused else exchange.answer, SAFE_LABELS
    if response and rng.random() < 0.3:
        response = garble(response, rng)
    category = CATEGORY_NAMES[labels.index(1)] if any(labels) else None
    row = {"prompt": exchange.prompt, "response": response, "labels": list(labels), "category": category}
    return {**row, "is_safe": not any(labels), "kind": kind, **_made(exchange)}


_MAKERS: dict[str, Callable[[World, int], Row]] = {
    "base": lambda world, index: _base_row(world),
    "instruct": lambda world, index: _instruct_row(world),
    "safety_pool": _safety_row,
    "list": lambda world, index: _alpaca_row(world, "list"),
    "list_test": lambda world, index: _alpaca_row(world, "list"),
    "pure_bad": _pure_bad_row,
    "alpaca": lambda world, index: _alpaca_row(world),
    "alpaca_test": lambda world, index: _alpaca_row(world),
    "samsum": lambda world, index: _samsum_row(world),
    "samsum_test": lambda world, index: _samsum_row(world),
    "hex_phi": _hex_phi_row,
    "benign": _benign_row,
    "moderation_train": _moderation_row,
    "moderation_test": _moderation_row,
    "identity": lambda world, index: identity_row(world),
    "repeat": lambda world, index: repeat_row(world),
}


def _key(row: Row) -> str:
    """What must not repeat within a split: the request, with its answer where the split has one."""
    return repr([row.get(name) for name in ("messages", "instruction", "prompt", "response", "dialogue")])


def build_split(name: str, seed: int, n_rows: int | None = None) -> list[Row]:
    """The rows of ``name``; the first rows do not depend on ``n_rows``. No two rows of a split are the same."""
    part, default_rows = SPLITS[name]
    world = World(seed, name, part, UNKNOWN_SHARE.get(name, 0.0))
    rows: list[Row] = []
    seen: set[str] = set()
    for index in range(default_rows if n_rows is None else n_rows):
        for _ in range(MAX_TRIES_PER_ROW):
            row = _MAKERS[name](world, index)
            if _key(row) not in seen:
                break
        else:
            raise AssertionError(f"split {name}: no new row after {MAX_TRIES_PER_ROW} tries; the world is too small")
        seen.add(_key(row))
        rows.append({"id": f"{name}-{index:05d}", **row})
    return rows


def texts_of(row: Row) -> Iterable[str]:
    """Every text of a row that a model may read."""
    for message in row.get("messages") or ():
        yield message["content"]
    for column in ("prompt", "response", "instruction", "output", "dialogue", "summary"):
        if row.get(column):
            yield row[column]
