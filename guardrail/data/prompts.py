"""Tokenised prompts and supervised examples: one owner of BOS, one boundary between prompt and answer.

Styles come from ``configs/template.py``. Text is tokenised as a whole where the prompt's ids are a prefix of
the whole's ids (the natural case); where a merge would cross the boundary, prompt and answer are tokenised apart.
Either way the prompt part of a training sequence has the ids that generation starts from.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from guardrail.core.errors import UserError, unknown
from guardrail.core.files import hash_json, read_json
from guardrail.core.places import TEMPLATE_FILE

IGNORE_INDEX = -100
CHAT_TEMPLATE = "chat_template"
PLACEHOLDER = "\ue000"  # a private character that stands for an answer's text
# rendered to tell whether a style or an eval template is the one that a result was made with
PROBE = [
    {"role": "system", "content": "<system>"},
    {"role": "user", "content": "<first question>"},
    {"role": "assistant", "content": "<first answer>"},
    {"role": "user", "content": "<second question>"},
    {"role": "assistant", "content": "<second answer>"},
]


@functools.lru_cache(maxsize=1)
def template_module() -> ModuleType:
    """``configs/template.py`` as a module, loaded by path (the folder is no package)."""
    spec = importlib.util.spec_from_file_location("guardrail_configs_template", TEMPLATE_FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def style_names() -> tuple[str, ...]:
    """``llama2_base``, ``llama2``, ``gemma_base``, ``gemma``, ``chat_template``."""
    return (*template_module().STYLES, CHAT_TEMPLATE)


def model_families() -> dict[str, tuple[str, ...]]:
    """``--model_family`` -> the prompt styles that fit: the style of that name, then others of the same family."""
    styles = template_module().STYLES.values()
    found = {one.name: [one.name, *(s.name for s in styles if s.family and s.family == one.family)] for one in styles}
    return {name: tuple(dict.fromkeys(fitting)) for name, fitting in found.items()} | {CHAT_TEMPLATE: (CHAT_TEMPLATE,)}


def check_style(name: str) -> str:
    """Return ``name`` or raise ``UserError`` with the near match."""
    if name not in style_names():
        raise unknown("prompt style", name, style_names())
    return name


def stop_strings(style: str) -> tuple[str, ...]:
    """Texts that begin a next turn in ``style``: generation is cut there. Empty for ``chat_template``."""
    return () if style == CHAT_TEMPLATE else template_module().STYLES[check_style(style)].stop_strings


def apply_eval_template(messages: list[dict[str, str]], eval_template: str) -> list[dict[str, str]]:
    """Put the ``eval_template``'s system text and user wrapper around the last user turn of ``messages``."""
    templates = template_module().EVAL_TEMPLATES
    if eval_template not in templates:
        raise unknown("eval template", eval_template, templates)
    system, wrapper = templates[eval_template]
    out = [dict(message) for message in messages]
    if system is not None:
        out = [{"role": "system", "content": system}, *[m for m in out if m["role"] != "system"]]
    last_user = max(i for i, message in enumerate(out) if message["role"] == "user")
    out[last_user]["content"] = wrapper.replace("{text}", out[last_user]["content"])
    return out


def style_fingerprint(style: str, tokenizer: Any = None) -> str:
    """A 16-character hash of what ``style`` makes of a conversation: part of the key of everything that uses it.

    Covers the rendered text with and without a system text, closed and open, so that any change of the style's
    definition shows. For ``chat_template`` it covers the tokenizer's own template; ``tokenizer`` is a loaded one or the
    (resolved) model folder, of which only the template is read. Stop strings are apart (``stop_strings``): they decide
    completions, not prompts.
    """
    if style == CHAT_TEMPLATE:
        return hash_json({"chat_template": _chat_template_text(tokenizer)})
    render = template_module().STYLES[check_style(style)].segments
    return hash_json([render(PROBE[first:], "<eos>", close) for first in (0, 1) for close in (True, False)])


def eval_template_fingerprint(name: str) -> str:
    """A 16-character hash of what the eval template makes of a question, with and without a system text before."""
    return hash_json([apply_eval_template(PROBE[first:2], name) for first in (0, 1)])


def _chat_template_text(tokenizer: Any) -> Any:
    """The template of a loaded tokenizer or of a model folder; None where there is none or it is not at hand."""
    if tokenizer is None or not isinstance(tokenizer, str | Path):
        return getattr(tokenizer, "chat_template", None)
    file, config = Path(tokenizer) / "chat_template.jinja", Path(tokenizer) / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    return read_json(config).get("chat_template") if config.is_file() else None


def _chat_template_segments(tokenizer: Any, messages: list[dict[str, str]], close: bool) -> list[tuple[str, bool]]:
    """Segments of the tokenizer's own template: each assistant span is what a closed prefix adds to an open one."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("the tokenizer has no chat template; choose a prompt style such as llama2_base")
    turns = [m for m in messages if m["role"] != "system"]
    template_module().check_alternation(turns)
    out: list[tuple[str, bool]] = []
    done = ""
    for position, message in enumerate(messages):
        if message["role"] != "assistant" and position < len(messages) - 1:
            continue
        if message["role"] == "assistant":
            opened = tokenizer.apply_chat_template(messages[:position], tokenize=False, add_generation_prompt=True)
            closed = tokenizer.apply_chat_template(messages[: position + 1], tokenize=False)
            if not closed.startswith(opened) or not opened.startswith(done):
                raise UserError(
                    "this tokenizer's chat template does not extend a conversation turn by turn, so its answers "
                    "cannot be told from its prompts; choose a named prompt style"
                )
            answer = closed[len(opened) :]
            if position == len(messages) - 1 and not close:
                answer = message["content"]
            out += [(opened[len(done) :], False), (answer, True)]
            done = closed
        else:
            opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            out.append((opened[len(done) :], False))
    return out


def _segments(tokenizer: Any, style: str, messages: list[dict[str, str]], close: bool) -> list[tuple[str, bool]]:
    if style == CHAT_TEMPLATE:
        return _chat_template_segments(tokenizer, messages, close)
    eos = tokenizer.eos_token or ""
    try:
        return template_module().STYLES[check_style(style)].segments(messages, eos, close)
    except ValueError as error:
        raise UserError(str(error)) from error


def _encode_text(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _without_bos(tokenizer: Any, text: str) -> str:
    """A chat template may print BOS itself; it is added once, as an id."""
    bos = tokenizer.bos_token
    return text[len(bos) :] if bos and text.startswith(bos) else text


def _bos_ids(tokenizer: Any, style: str, text: str) -> list[int]:
    """One BOS where the format has one: named styles always, chat templates when they print or imply it."""
    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    if bos_id is None:
        return []
    if style == CHAT_TEMPLATE and not text.startswith(bos):
        implied = tokenizer("")["input_ids"][:1] == [bos_id]
        return [bos_id] if implied else []
    return [bos_id]


def _grow(tokenizer: Any, parts: list[str]) -> tuple[list[int], list[int]]:
    """Ids of the concatenated ``parts`` and the end of each part in ids: every boundary lies between tokens."""
    ids: list[int] = []
    ends: list[int] = []
    text = ""
    for part in parts:
        if part:
            text += part
            whole = _encode_text(tokenizer, text)
            ids = whole if whole[: len(ids)] == ids else ids + _encode_text(tokenizer, part)
        ends.append(len(ids))
    return ids, ends


def token_places(tokenizer: Any, style: str, messages: list[dict[str, str]]) -> list[tuple[int, int]]:
    """Where each token of `encode_supervised` (uncut) lies in the joined segments, as ``(start, end)`` characters.

    BOS and an EOS that was added lie nowhere: an empty place before and behind the text. A fast tokenizer is needed.
    """
    parts = [part for part, _ in _segments(tokenizer, style, messages, close=True)]
    bos = _bos_ids(tokenizer, style, parts[0])
    parts[0] = _without_bos(tokenizer, parts[0])
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    last = 0  # where the ids of the last part begin
    text = ""
    for part in filter(None, parts):  # as `_grow`, with places
        start, last = len(text), len(ids)
        text += part
        whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if whole["input_ids"][: len(ids)] == ids:
            ids, places = whole["input_ids"], [tuple(place) for place in whole["offset_mapping"]]
        else:
            own = tokenizer(part, add_special_tokens=False, return_offsets_mapping=True)
            ids = ids + own["input_ids"]
            places = places + [(start + a, start + b) for a, b in own["offset_mapping"]]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids[last:]:
        places.append((len(text), len(text)))
    return [(-1, -1)] * len(bos) + places


def answer_frame(tokenizer: Any, style: str, messages: list[dict[str, str]]) -> tuple[int, int, int]:
    """Where the last answer's text lies in the joined segments: ``(origin, start, end)`` in characters.

    ``origin`` is where its first character is, or would be: a chat template may strip white space around an answer, so
    that only ``start`` to ``end`` is there. Raises ``UserError`` for a template that changes the answer otherwise.
    """
    segments = _segments(tokenizer, style, messages, close=True)
    before = len(_without_bos(tokenizer, "".join(part for part, _ in segments[:-1])))
    content, whole = messages[-1]["content"], segments[-1][0]
    probe = _segments(tokenizer, style, [*messages[:-1], {**messages[-1], "content": PLACEHOLDER}], close=True)[-1][0]
    head, found, tail = probe.partition(PLACEHOLDER)
    inner = whole[len(head) : len(whole) - len(tail)]
    stripped = content.strip()
    if found and whole.startswith(head) and whole.endswith(tail) and inner.strip() == stripped and inner in content:
        start = before + len(head)
        return start - (content.index(inner) if inner else 0), start, start + len(inner)
    raise UserError(f"the prompt style {style} changes the text of answers, so no part of one can be masked")


def encode_prompt(tokenizer: Any, style: str, messages: list[dict[str, str]]) -> list[int]:
    """Token ids that generation starts from. A final assistant message is an open prefill of the answer."""
    parts = [part for part, _ in _segments(tokenizer, style, messages, close=False)]
    bos = _bos_ids(tokenizer, style, parts[0])
    parts[0] = _without_bos(tokenizer, parts[0])
    return bos + _grow(tokenizer, parts)[0]


@dataclass(frozen=True)
class SupervisedExample:
    """Ids of a whole conversation with BOS and EOS, and where its answers lie.

    ``answer_spans``: half-open ``(start, end)`` positions in ``input_ids`` of every assistant turn with its end
    marker. ``n_tokens_full`` is the length before any cut; ``prompt_length`` the start of the last answer.
    """

    input_ids: list[int]
    answer_spans: list[tuple[int, int]]
    n_tokens_full: int

    @property
    def prompt_length(self) -> int:
        return self.answer_spans[-1][0]

    @property
    def truncated(self) -> bool:
        return self.n_tokens_full > len(self.input_ids)

    def labels(self, train_on: str = "last_assistant_turn") -> list[int]:
        """``IGNORE_INDEX`` everywhere but on the answer tokens (last turn, or ``all_assistant_turns``)."""
        spans = self.answer_spans if train_on == "all_assistant_turns" else self.answer_spans[-1:]
        out = [IGNORE_INDEX] * len(self.input_ids)
        for start, end in spans:
            out[start:end] = self.input_ids[start:end]
        return out


def encode_supervised(
    tokenizer: Any, style: str, messages: list[dict[str, str]], max_length: int | None = None
) -> SupervisedExample:
    """Tokenise a conversation that ends with an assistant turn; cut at ``max_length`` tokens from the right.

    Raises ``UserError`` when the conversation does not end with an answer.
    """
    segments = _segments(tokenizer, style, messages, close=True)
    if not segments[-1][1]:
        raise UserError("a training conversation must end with an assistant message")
    parts = [part for part, _ in segments]
    bos = _bos_ids(tokenizer, style, parts[0])
    parts[0] = _without_bos(tokenizer, parts[0])
    ids, ends = _grow(tokenizer, parts)
    eos_id = tokenizer.eos_token_id
    if eos_id is not None and eos_id not in ids[ends[-2] if len(ends) > 1 else 0 :]:
        # a chat template may close a turn with a marker of its own: without EOS the model never learns to stop
        ids = [*ids, eos_id]
        ends[-1] = len(ids)
    ids = bos + ids
    spans = [(ends[i - 1] + len(bos), ends[i] + len(bos)) for i, (_, trained) in enumerate(segments) if trained]
    full = len(ids)
    if max_length is not None and full > max_length:
        ids = ids[:max_length]
        spans = [(min(a, max_length), min(b, max_length)) for a, b in spans]
    return SupervisedExample(ids, spans, full)
