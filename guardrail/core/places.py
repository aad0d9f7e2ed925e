"""Where the project's own files lie: prompt styles, DeepSpeed settings, study files, the sandbox.

The only module that knows the layout of the repository.
"""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE_FILE = REPOSITORY / "configs" / "template.py"
DEEPSPEED_FOLDER = REPOSITORY / "configs" / "deepspeed"
SANDBOX_DATA = REPOSITORY / "datasets" / "sandbox"
