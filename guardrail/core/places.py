"""Where things lie: the project's own files, and the folder that its relative paths start from.

The only module that knows the layout. Own files (prompt styles, DeepSpeed settings, studies, schemas, scripts, entry
points) are read from the checkout, or, in an installed wheel, from ``guardrail/resources``, which setup.py fills with
the same layout. What is generated (sandbox data and models, prepared data sets, outputs) goes to the checkout, or to
the working directory of the process; nothing is ever written beside an installed library.
"""

from __future__ import annotations

from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1]
IMPORT_ROOT = LIBRARY.parent  # on sys.path, this folder makes `import guardrail` work
IN_CHECKOUT = (IMPORT_ROOT / "configs" / "template.py").is_file() and (IMPORT_ROOT / "pyproject.toml").is_file()

RESOURCES = IMPORT_ROOT if IN_CHECKOUT else LIBRARY / "resources"
TEMPLATE_FILE = RESOURCES / "configs" / "template.py"
DEEPSPEED_FOLDER = RESOURCES / "configs" / "deepspeed"
STUDIES = RESOURCES / "configs" / "studies"
SCHEMAS = RESOURCES / "configs" / "schemas"
SCRIPTS = RESOURCES / "scripts"

WORK = IMPORT_ROOT if IN_CHECKOUT else Path.cwd()
DATASETS = WORK / "datasets"
SANDBOX_DATA = DATASETS / "sandbox"
SANDBOX_MODELS = WORK / "models" / "sandbox"


def shown(path: str | Path) -> str:
    """``path`` as it is recorded and printed: relative to the checkout (or working folder) where it lies inside."""
    resolved = Path(path).resolve()
    return str(resolved.relative_to(WORK)) if resolved.is_relative_to(WORK) else str(path)
