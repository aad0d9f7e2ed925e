"""Put ``configs/template.py`` in the place of align-anything's, with a backup, or take it back.

    python -m guardrail.training.install_template [--force True] [--restore True]

The package is found as Python finds it, without importing it. The file there must be one this knows - align-anything's
own at the pinned commit, or one installed from here before - unless forced. Running it twice changes nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrail.core.cli import Parser, boolean, log, run
from guardrail.core.errors import UserError
from guardrail.core.files import atomic_path, read_json, write_json
from guardrail.data.prompts import TEMPLATE_FILE

# sha-256 of configs/template.py of PKU-Alignment/align-anything, by commit
UPSTREAM = {"3f9decc": "4fc4a470cfc00f7f261feb697439f55f9a7a7126c869a4a5c8e5ce0cf56ef4f9"}
BACKUP = "template.py.upstream"
NOTE = "template.py.installed.json"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def package_folder() -> Path:
    """The folder of the ``align_anything`` package in this environment; ``UserError`` when there is none."""
    spec = importlib.util.find_spec("align_anything")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "align-anything is not installed in the active environment; "
            "install requirements-align-anything.txt (see its header), then run this again"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def install(package: Path, force: bool = False) -> dict[str, Any]:
    """Replace the package's template; returns what was done. Raises ``UserError`` for a file it does not know."""
    target = package / "configs" / "template.py"
    backup, note = target.with_name(BACKUP), target.with_name(NOTE)
    if not target.is_file():
        raise UserError(f"{target} does not exist; is this align-anything at commit {next(iter(UPSTREAM))}?")
    there, ours = sha256(target), sha256(TEMPLATE_FILE)
    if there == ours:
        return {"template": str(target), "action": "unchanged", "sha256": ours}
    installed_before = note.is_file() and read_json(note).get("sha256") == there
    if there not in UPSTREAM.values() and not installed_before and not force:
        raise UserError(
            f"{target} is neither align-anything's file at {', '.join(UPSTREAM)} nor one installed from here "
            f"(sha-256 {there[:16]}); give --force to replace it all the same (a backup is kept)"
        )
    if not installed_before:
        with atomic_path(backup) as temporary:
            shutil.copyfile(target, temporary)
    write_json(note, {"sha256": ours, "replaced_sha256": there})  # before the file: a cut-short install stays known
    with atomic_path(target) as temporary:
        shutil.copyfile(TEMPLATE_FILE, temporary)
    return {"template": str(target), "action": "installed", "sha256": ours, "backup": str(backup)}


def restore(package: Path) -> dict[str, Any]:
    """Put the backup back; nothing when the package's own file is there."""
    target = package / "configs" / "template.py"
    backup, note = target.with_name(BACKUP), target.with_name(NOTE)
    if not backup.is_file():
        if target.is_file() and sha256(target) in UPSTREAM.values():
            return {"template": str(target), "action": "unchanged", "sha256": sha256(target)}
        raise UserError(f"no backup beside {target}; reinstall align-anything to get its own file back")
    with atomic_path(target) as temporary:
        shutil.copyfile(backup, temporary)
    backup.unlink()
    note.unlink(missing_ok=True)
    return {"template": str(target), "action": "restored", "sha256": sha256(target)}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", type=boolean, nargs="?", const=True, default=False, help="replace an unknown file")
    parser.add_argument("--restore", type=boolean, nargs="?", const=True, default=False, help="put the backup back")
    args = parser.parse_args(argv)
    package = package_folder()
    result = restore(package) if args.restore else install(package, args.force)
    log(f"{result['action']}: {result['template']}")
    return result


if __name__ == "__main__":
    run(main)
