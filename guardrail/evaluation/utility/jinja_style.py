"""A prompt style as a tokenizer's chat template (Jinja), for tools that take nothing else.

    tokenizer.chat_template = jinja_template("llama2_base")

Rendering a conversation with it and tokenising without special tokens gives the ids of ``encode_prompt``: BOS is part
of the text, once. Known limit: like every chat template, it starts an answer at the generation prompt, so the blank
that the ``llama2`` style puts before an answer is the first thing that the model has to say.
"""

from __future__ import annotations

import json

from guardrail.data.prompts import check_style, template_module


def _literal(text: str) -> str:
    """``text`` as a Jinja expression; ``{eos}`` in it becomes the tokenizer's EOS string."""
    parts = [json.dumps(part) for part in text.split("{eos}")]
    return " ~ eos_token ~ ".join(parts)


def _user_turn(template: str) -> str:
    """A user template as a Jinja expression over ``system`` and ``message``."""
    head, tail = template.rsplit("{text}", 1)
    before, system, after = head.partition("{system}")
    parts = [_literal(before), "system", _literal(after)] if system else [_literal(head)]
    return " ~ ".join([*parts, "message['content']", _literal(tail)])


def jinja_template(style: str) -> str | None:
    """The chat template of a named style; None for ``chat_template``, which is the tokenizer's own."""
    if check_style(style) == "chat_template":
        return None
    s = template_module().STYLES[style]
    return (
        "{{ bos_token }}"
        "{% if messages[0]['role'] == 'system' %}"
        "{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
        "{% else %}"
        f"{{% set system = {_literal(s.default_system)} %}}{{% set turns = messages %}}"
        "{% endif %}"
        "{% for message in turns %}"
        "{% if message['role'] == 'user' and loop.first %}"
        f"{{{{ {_user_turn(s.first_user)} }}}}"
        "{% elif message['role'] == 'user' %}"
        f"{{{{ {_user_turn(s.next_user)} }}}}"
        "{% else %}"
        f"{{{{ {_literal(s.answer_start)} ~ message['content'] }}}}"
        "{% if loop.last %}"
        f"{{{{ {_literal(s.answer_end)} }}}}"
        "{% else %}"
        f"{{{{ {_literal(s.history_end)} }}}}"
        "{% endif %}{% endif %}{% endfor %}"
    )
