"""What transformers' models export, remembered: at every start it reads all of its model files to find that out.

Reading two thousand files takes a quarter of a second, a tenth of the start of a small evaluation. `remember_structure`
has the result of the first start kept in the user's cache, under transformers' version, place and time of change. A
file that is not there or broken is made again. Called by `guardrail.models.imports.lean_transformers` alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_json, write_json

MODULE = "transformers.utils.import_utils"
SCAN = "create_import_structure_from_path"  # of MODULE
FORMAT = 1


def remember_structure() -> None:
    """Call before transformers is imported: its first import of `MODULE` is changed."""
    if MODULE not in sys.modules:
        sys.meta_path.insert(0, _Watch())


class _Watch:
    """Finds `MODULE` once, as it comes, and has its scan replaced when it has been executed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            execute(module)
            if hasattr(module, SCAN):
                setattr(module, SCAN, remembered(getattr(module, SCAN)))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def remembered(scan: Callable[[Any], dict[Any, Any]]) -> Callable[[Any], dict[Any, Any]]:
    """``scan``, with its result for transformers' own ``models`` folder from the cache."""

    def found(place: Any) -> dict[Any, Any]:
        folder = Path(place)
        if folder.name != "models" or not (folder.parent / "modeling_utils.py").is_file():
            return scan(place)  # one model's folder
        file = cache_file(folder)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return decode(json.loads(file.read_text(encoding="utf-8")))
        structure = scan(place)
        with contextlib.suppress(OSError, UserError):  # a cache that cannot be written is no cache
            write_json(file, encode(structure))
        return structure

    return found


def cache_file(folder: Path) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    changed = [(folder / name).stat().st_mtime_ns for name in (".", "__init__.py", "../__init__.py")]
    return home / "guardrail" / "imports" / f"{hash_json([FORMAT, str(folder.resolve()), changed])}.json"


def encode(structure: dict[Any, Any]) -> dict[str, Any]:
    """Folders by name, and the exported objects of a folder's files by the backends that they need."""
    folders = {name: encode(inside) for name, inside in structure.items() if isinstance(name, str)}
    objects = [
        [sorted(backends), {file: sorted(names) for file, names in files.items()}]
        for backends, files in structure.items()
        if not isinstance(backends, str)
    ]
    return {"folders": folders, "objects": objects}


def decode(content: dict[str, Any]) -> dict[Any, Any]:
    """What `encode` was given."""
    out: dict[Any, Any] = {name: decode(inside) for name, inside in content["folders"].items()}
    for backends, files in content["objects"]:
        out[frozenset(backends)] = {file: set(names) for file, names in files.items()}
    return out
