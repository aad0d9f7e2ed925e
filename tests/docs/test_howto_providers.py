"""docs/howto_providers.md from the first block to the last, word for word, in a copy of the repository.

    GUARDRAIL_LONG_TESTS=1 python -m pytest tests/docs/test_howto_providers.py

Some minutes of two cores: it aligns, gates, audits, fine-tunes and evaluates the sandbox. The sandbox's models are
those of this checkout, where it has them; otherwise they are trained, as the page says.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs.test_blocks import BLOCKS
from toys import REPOSITORY

pytestmark = pytest.mark.slow
PAGE = "docs/howto_providers.md"
MARK = ("run by", "tests/docs/test_howto_providers.py")


@pytest.fixture
def checkout(tmp_path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, tmp_path / name)
    if (REPOSITORY / "models" / "sandbox").is_dir():
        shutil.copytree(REPOSITORY / "models" / "sandbox", tmp_path / "models" / "sandbox")
    return tmp_path


@pytest.mark.skipif(
    os.environ.get("GUARDRAIL_LONG_TESTS") != "1", reason="minutes of training; set GUARDRAIL_LONG_TESTS=1"
)
def test_the_page_from_top_to_bottom(checkout):
    blocks = [block for block in BLOCKS if block.page == PAGE and block.mark == MARK]
    assert len(blocks) == 4
    venv = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GUARDRAIL")}
    environment |= {
        "PATH": f"{venv}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(venv.parent),
        "PYTHONPATH": str(checkout),
    }
    said = []
    for block in blocks:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block.place}: {done.stderr[-3000:]}"
        said.append(done.stdout)
    receipt = json.loads((checkout / "outputs" / "admit" / "receipt.json").read_text(encoding="utf-8"))
    verdict = receipt["verdict"]
    assert f"exit code {verdict['exit_code']}" in said[1] and verdict["verdict"] == "accept_with_quarantine"
    assert verdict["reasons"]["harmful"] > 50 and 0 < verdict["n_quarantined"] < verdict["n_rows"] / 4
    page = (checkout / "outputs" / "admit" / "gate.html").read_text(encoding="utf-8")
    assert "From the audit of acme" in page
    assert "difference" in said[3]
