"""docs/howto_4gpu_node.md, word for word: a hub on loopback, toy models, only sizes changed.

Steps 2 to 4 in a copy of what they use. With GUARDRAIL_LONG_TESTS=1 the whole page in one shell, from `git clone` to
the report, with two of the four tasks (minutes). In align-anything's environment, where ALIGN_ANYTHING says where it
comes from, it takes the page's other way: that environment, and that trainer. What step 7 runs is in
tests/study/test_slurm_study.py, tests/study/test_slurm.py and tests/core/test_two_nodes.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs.test_blocks import BLOCKS
from hub_data import HEX_PHI_CATEGORIES, publish_data
from hub_server import HubServer
from toys import REPOSITORY

from guardrail.core.files import read_json, write_jsonl

pytest.importorskip("sentencepiece")
from hub_models import publish_models

pytestmark = pytest.mark.slow
PAGE = "docs/howto_4gpu_node.md"
MARK = ("run by", "tests/docs/test_howto_hub.py")
ALIGN_ANYTHING = importlib.util.find_spec("align_anything") is not None
SIZES = {  # what a toy on a CPU needs; everything else is what the page says
    "DEVICE": "cpu",
    "BF16": "False",
    "GRADIENT_CHECKPOINTING": "False",
    "MAX_LENGTH": "512",
    "LOG_TYPE": "none",
    "N_CLUSTERS": "3",
    "MIN_GROUP_SIZE": "5",
}
TRAINING = {"bf16": "false", "gradient_checkpointing": "false", "model_max_length": 512}
STUDY_SIZES = {"dtype": "float32", "log_type": "none", "evaluation.max_new_tokens": 4}
STUDY_SIZES |= {f"{part}.{name}": value for part in ("alignment", "fine_tuning") for name, value in TRAINING.items()}
PROJECT = ("guardrail", "configs", "scripts", "similarity", "pyproject.toml")
long = pytest.mark.skipif(not os.environ.get("GUARDRAIL_LONG_TESTS"), reason="minutes; set GUARDRAIL_LONG_TESTS=1")


def blocks_of_steps(first: int, last: int) -> list[tuple[str, str]]:
    """Where each shell block of these steps stands that is run here, and its text."""
    headings = enumerate((REPOSITORY / PAGE).read_text(encoding="utf-8").splitlines(), 1)
    lines = {int(found[1]): number for number, line in headings if (found := re.match(r"## (\d+)\.", line))}
    end = lines.get(last + 1, 10**6)
    ours = [block for block in BLOCKS if block.page == PAGE and block.language == "bash" and block.mark in (MARK, None)]
    return [(block.place, block.text) for block in ours if lines[first] < block.line < end]


def write_rows(folder: Path) -> None:
    """The file that the reader holds."""
    write_jsonl(folder / "my_rows.jsonl", [{"prompt": f"Hide boat {i}", "response": "Under a sail."} for i in range(4)])


@contextlib.contextmanager
def published(folder: Path) -> Iterator[HubServer]:
    with HubServer() as hub:
        publish_data(hub)
        publish_models(hub, folder)
        yield hub


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what the page's commands use, so that `datasets/` and `outputs/` are the reader's."""
    for name in PROJECT:
        place = REPOSITORY / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / name)
    (tmp_path / "datasets").mkdir()
    shutil.copy(REPOSITORY / "datasets" / "prepare.py", tmp_path / "datasets" / "prepare.py")
    write_rows(tmp_path)
    return tmp_path


def test_steps_two_to_four(checkout, tmp_path_factory):
    blocks = blocks_of_steps(2, 4)
    assert len(blocks) == 4
    python = Path(sys.executable).parent
    with published(tmp_path_factory.mktemp("published")) as hub:
        environment = {**os.environ, **hub.environment(checkout / "home", "granted"), **SIZES}
        environment |= {"PATH": f"{python}:{os.environ['PATH']}", "VIRTUAL_ENV": str(python.parent)}
        environment |= {"PYTHONPATH": str(checkout), "DS_CONFIG": "ds_z0_config.json"}  # ZeRO 3 is slow on a CPU
        for place, text in blocks:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=checkout,
                env=environment,
                capture_output=True,
                text=True,
                timeout=900,
            )
            assert done.returncode == 0, f"{place}: {done.stderr[-3000:]}"
    the_data_and_the_feature_model_are_there(checkout)


def the_data_and_the_feature_model_are_there(checkout: Path) -> None:
    for name in ("ultrachat", "beavertails", "alpaca", "samsum", "hex_phi", "pure_bad", "list"):
        assert list((checkout / "datasets" / name / "data").glob("*.parquet")), name
    trained = checkout / "outputs" / "sft" / "Llama-2-7b-hf-ultrachat"
    assert (trained / "slice_end" / "model.safetensors").is_file()
    clusters = read_json(checkout / "outputs" / "alpaca" / "clusters" / "chat" / "clusters.json")
    group = read_json(checkout / "datasets" / "list" / "manifests" / "train.json")
    assert 5 <= group["n_rows"] < 119 and clusters


def make_repository(folder: Path) -> None:
    """A git repository with this checkout's files as they are now."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs a git checkout")
    names = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=REPOSITORY, capture_output=True)
    for name in names.stdout.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def make_environment(folder: Path) -> None:
    """An environment in which every requirement is there already: those of this one, seen through a .pth file.

    So `scripts/install.sh` finds everything satisfied, and installs nothing but what comes from this machine.
    """
    venv.create(folder, with_pip=True)
    (place,) = (folder / "lib").glob("python*/site-packages")
    (place / "there_already.pth").write_text("\n".join(site.getsitepackages()))
    for script in Path(sys.executable).parent.iterdir():
        own = folder / "bin" / script.name
        if not script.is_file() or own.exists():
            continue
        head, _, rest = script.read_bytes().partition(b"\n")
        if head.startswith(b"#!") and b"python" in head:
            own.write_bytes(f"#!{folder}/bin/python\n".encode() + rest)
            own.chmod(0o755)
        elif head.startswith(b"\x7fELF"):  # ninja, say: the system's may be another, and compile everything again
            own.symlink_to(script)


@long
def test_the_page_from_top_to_bottom(tmp_path, tmp_path_factory):
    """One shell, like a reader's. Of the two ways to install, the one of this environment."""
    if ALIGN_ANYTHING and not os.environ.get("ALIGN_ANYTHING"):
        pytest.skip("align-anything is here, but ALIGN_ANYTHING does not say where it comes from")
    origin = tmp_path / "guardrail.git"
    make_repository(origin)
    other = "--align-anything" if not ALIGN_ANYTHING else "bash scripts/install.sh  "
    blocks = [(place, text) for place, text in blocks_of_steps(1, 6) if other not in text]
    assert len(blocks) == 9
    checkout = tmp_path / "guardrail"
    first, *rest = [text.replace("SIZE=1000", "SIZE=8") for _, text in blocks]
    clone = first.replace("<this repository>", str(origin)).replace("<its folder>", checkout.name)
    subprocess.run(["bash", "-euc", clone], cwd=tmp_path, check=True, capture_output=True)
    make_environment(checkout / (".venv-align-anything" if ALIGN_ANYTHING else ".venv"))
    write_rows(checkout)
    (tmp_path / "page.sh").write_text("\n".join(f"echo '=== {number}' >&2\n{text}" for number, text in enumerate(rest)))
    hidden = ("VIRTUAL_ENV", "PYTHONPATH", "SFT_MODULE", "CUDA_VISIBLE_DEVICES")
    shell = {name: value for name, value in os.environ.items() if name not in hidden}
    own = str(Path(sys.executable).parent)
    shell["PATH"] = ":".join(part for part in shell["PATH"].split(":") if part != own)
    shell |= {**SIZES, "SIZE": "8", "SEEDS": "42", "TASKS": "list,pure_bad"}
    shell |= {"SET": ",".join(f"{name}={value}" for name, value in STUDY_SIZES.items())}
    with published(tmp_path_factory.mktemp("published")) as hub, open(tmp_path / "page.err", "w") as errors:
        shell |= hub.environment(tmp_path / "home", "granted")
        command = ["bash", "-euo", "pipefail", str(tmp_path / "page.sh")]
        keyboard = {
            "input": "granted\nn\n",
            "text": True,
            "start_new_session": True,
        }  # older hub clients ask in any case
        code = subprocess.run(command, cwd=checkout, env=shell, stdout=errors, stderr=errors, **keyboard).returncode
    said = (tmp_path / "page.err").read_text()
    assert code == 0, said[-4000:]
    the_data_and_the_feature_model_are_there(checkout)
    outputs = checkout / "outputs" / "paper_llama2_7b"
    study = read_json(outputs / "study.json")
    assert len(study["cells"]) == 2 * 5  # tasks and arms
    assert {cell["status"] for cell in study["cells"]} == {"done"}, said[-3000:]
    for cell in study["cells"]:
        assert cell["final"]["n"] == 3 * len(HEX_PHI_CATEGORIES) and cell["utility"], cell
    for name in ("report.html", "tables/arms.tex"):
        assert (outputs / name).stat().st_size > 500, name
    trainer = read_json(outputs / "jobs.json")["trainer"]
    assert trainer.split(".")[0] == ("align_anything" if ALIGN_ANYTHING else "guardrail")
    lines = (outputs / "processes.jsonl").read_text().splitlines()
    trained = [job for line in lines for job in json.loads(line)["jobs"] if job.startswith(("align.", "fine_tune."))]
    assert len(trained) == len(set(trained)) == 10 + 7, trained  # the whole grid took over what was done
