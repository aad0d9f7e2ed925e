"""Plain values as instances of annotated dataclasses: the generic half of a study file's schema.

Unknown keys are refused with the near match, wrong types with the path of the key.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from guardrail.core.errors import UserError, unknown


def build(kind: Any, value: Any, where: str) -> Any:
    """``value`` as an instance of the annotated type ``kind``; the generic half of the schema."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    place = where or "the file"
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return build(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{place}: expected keys {', '.join(f.name for f in dataclasses.fields(kind))}")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                raise unknown(f"key in {place}:", key, hints)
        missing = [
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in value
        ]
        if missing:
            raise UserError(f"{place}: missing {', '.join(missing)}")
        values = {k: build(hints[k], v, f"{where}.{k}" if where else k) for k, v in value.items()}
        return typing.cast(Any, kind)(**values)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{place}: expected a mapping")
        return {str(k): build(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{place}: expected a list, got {value!r}")
        return tuple(build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 2e-5 (no dot) as a string
        except ValueError:
            raise UserError(f"{place}: expected a number, got {value!r}") from None
    if kind is Any or (isinstance(value, kind) and not (kind is int and isinstance(value, bool))):
        return value
    raise UserError(f"{place}: expected {kind.__name__}, got {value!r}")
