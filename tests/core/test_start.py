"""What the processes of a study import when they do their work, and that the short start changes no result.

A process of a study lives for seconds, so what it imports decides its time. These tests pin what each must *not* load;
`benchmarks/startup.py` measures the seconds.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_world import make_world, write_study
from toys import REPOSITORY

from guardrail.evaluation.utility.scoring import score_rows

# torch's compiler has a stand-in in a short start, so its inside is what shows that it was loaded
COMPILER = "torch._dynamo.utils"
NEVER = {"datasets", "sklearn", "pandas", "scipy.stats", "scipy.optimize", "matplotlib", "vllm", "wandb", "snakemake"}
SPREAD = {"torch.distributed.fsdp._flat_param", "torch.distributed.tensor._api"}  # insides of more stand-ins
IN_TRAINING_NEVER = NEVER | SPREAD | {"peft", COMPILER}
if importlib.metadata.version("transformers").startswith("4."):  # its masks of padded batches load all of these
    IN_TRAINING_NEVER -= SPREAD | {COMPILER}
NO_TRAINING = IN_TRAINING_NEVER | {"deepspeed"}
NO_MODEL = NO_TRAINING | {"torch", "transformers", "tokenizers"}
NO_NUMBERS = NO_MODEL | {"numpy", "scipy"}

RUN = """
import runpy, sys
target = sys.argv[1]
sys.argv = sys.argv[1:]
try:
    if target.endswith(".py"):
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
except SystemExit as stop:
    print(*(name for name in sys.modules), sep="\\n", file=sys.stderr)
    raise
"""


def loaded(target: str, *arguments: object, **environment: str) -> set[str]:
    """The modules that an entry point has loaded when it ends well."""
    cpu = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, target, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **cpu, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stderr.splitlines())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, dict]:
    """Random models and a study of them."""
    folder = tmp_path_factory.mktemp("world")
    return folder, make_world(folder)


@pytest.fixture(scope="module")
def answers(world) -> tuple[Path, set[str]]:
    """Answers of the chat model, and what was loaded to give them."""
    folder, _ = world
    out = folder / "answers"
    modules = loaded(
        "eval_safety.py",
        *("--model_name_or_path", folder / "chat", "--torch_dtype", "float32", "--prompt_style", "llama2_base"),
        *("--safety_bench", folder / "prompts.jsonl", "--max_new_tokens", 4, "--save_path", out),
    )
    return out, modules


def test_answers_need_no_training_stack(answers):
    assert answers[1] & NO_TRAINING == set()


def test_a_short_start_gives_the_answers_of_a_plain_one(world, answers):
    folder, _ = world
    modules = loaded(
        "eval_safety.py",
        *("--model_name_or_path", folder / "chat", "--torch_dtype", "float32", "--prompt_style", "llama2_base"),
        *("--safety_bench", folder / "prompts.jsonl", "--max_new_tokens", 4, "--save_path", folder / "plain"),
        GUARDRAIL_LEAN_IMPORTS="0",
    )
    assert COMPILER in modules  # transformers as it comes: else this test compares a start with itself
    short, plain = (json.loads((out / "results.json").read_text()) for out in (answers[0], folder / "plain"))
    assert short["results"] == plain["results"]


def test_scores_need_no_other_statistics(world):
    """ROUGE takes nltk's stemmer alone; its scores are those of nltk as it comes, which this process has."""
    folder, _ = world
    out = folder / "utility.json"
    modules = loaded(
        "eval_utility.py",
        *("--model_name_or_path", folder / "chat", "--torch_dtype", "float32", "--prompt_style", "llama2_base"),
        *("--dataset", folder / "chat.jsonl", "--split", "train", "--max_new_tokens", 4, "--save_path", out),
        *("--evaluator", "rouge_1", "--heldout_loss", "True"),
    )
    assert modules & NO_TRAINING == set() and "nltk" in modules
    rows = json.loads(out.read_text())["results"]
    pairs = [(row["completion"], row["reference"]) for row in rows]
    assert [row["scores"] for row in rows] == score_rows("rouge_1", pairs)


def test_moderation_needs_no_training_stack(world, answers):
    folder, _ = world
    out = answers[0]
    modules = loaded("beavertails_moderation/formatter.py", out / "results.json", out / "results_beaver-dam.json")
    assert modules & NO_MODEL == set()
    modules = loaded(
        "beavertails_moderation/evaluate.py",
        *("--eval_dataset", out / "results_beaver-dam.json", "--model_path", folder / "moderation"),
        *("--max_length", 256, "--output_dir", out, "--figure", "False"),
    )
    assert modules & NO_TRAINING == set()


def test_extraction_and_selection_need_no_training_stack(world):
    folder, _ = world
    for name in ("pool", "chat"):
        modules = loaded(
            "similarity/get_representation.py",
            *("--dataset_folder", folder, "--model_id", name, "--model_name_or_path", folder / "chat"),
            *("--dataset_data", folder / f"{name}.jsonl", "--output_dir", folder / f"reps-{name}"),
            *("--torch_dtype", "float32", "--prompt_style", "llama2_base"),
        )
        assert modules & (NO_TRAINING - {"pandas"}) == set()  # pyarrow looks for it whenever it makes a table
    modules = loaded(
        "similarity/get_top_similarity_dataset_reps_general.py",
        *("--dataset_folder", folder / "subsets", "--select_n", 4, "--dataset_dir", folder / "pool.jsonl"),
        *("--dataset_reps_dir", folder / "reps-pool", "--anchoring_reps_dir", folder / "reps-chat"),
    )
    assert modules & (NO_TRAINING | {"transformers"}) == set()


def test_mixing_and_the_study_s_own_processes_need_no_model(world, tmp_path):
    _, settings = world
    study = write_study(tmp_path / "study.yaml", settings)
    assert loaded("guardrail.study.check", study, "--outputs", tmp_path) & NO_NUMBERS == set()
    config = tmp_path / settings["name"] / "study_config.json"
    assert loaded("guardrail.study.schedule", config, "--outputs", tmp_path) & NO_MODEL == set()


@pytest.mark.slow
def test_training_needs_no_compiler(world, tmp_path):
    """DeepSpeed's engine on one CPU rank, without torch's compiler, peft (no LoRA) and data sets."""
    folder, _ = world
    arguments = [
        *("--model_name_or_path", folder / "base", "--train_datasets", folder / "chat.jsonl", "--max_steps", 2),
        *("--train_template", "UltraChat", "--bf16", "False", "--ds_cfgs", "ds_z0_config.json", "--log_type", "none"),
        *("--gradient_checkpointing", "False"),
        *("--per_device_train_batch_size", 4, "--cache_dir", tmp_path, "--learning_rate", 1e-3),
    ]
    short = loaded("guardrail.training.sft", *arguments, "--output_dir", tmp_path / "short")
    assert short & IN_TRAINING_NEVER == set() and "deepspeed" in short
    loaded("guardrail.training.sft", *arguments, "--output_dir", tmp_path / "plain", GUARDRAIL_LEAN_IMPORTS="0")
    for name in ("losses.jsonl", "slice_end/model.safetensors"):
        assert (tmp_path / "short" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


IMPORTS = """
import sys
from guardrail.core import cli
from guardrail.models import imports
cli.owns_process = {owns}
imports.lean_transformers()
import transformers.modeling_utils
{then}
"""


@pytest.mark.parametrize(
    ("owns", "then"),
    [
        # a program that uses the library gets transformers as it comes
        (False, "assert not isinstance(sys.modules['torch._dynamo'], imports.Deferred)"),
        # who asks for the compiler gets the real one, its inside included
        (
            True,
            "import torch._dynamo.config as c, torch\n"
            "assert c is torch._dynamo.config and c.cache_size_limit\n"
            "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)) == 2\n"
            "assert not isinstance(sys.modules['torch._dynamo'], imports.Deferred)",
        ),
    ],
)
def test_the_compiler_is_there_for_who_asks(owns, then):
    code = IMPORTS.format(owns=owns, then=then)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, "-m guardrail.training.sft"),
        ({"NUM_PROCESSES": "2"}, "-m guardrail.core.launch deepspeed"),
        ({"SFT_MODULE": "guardrail.evaluation.trajectory"}, "-m guardrail.evaluation.trajectory"),
        ({"SFT_MODULE": "align_anything.trainers.text_to_text.sft"}, "-m guardrail.training.foreign deepspeed"),
    ],
)
def test_only_one_rank_of_our_trainer_goes_without_a_launcher(tmp_path, variables, first):
    python = tmp_path / "python"  # does what setup.sh asks of it; prints what would train
    python.write_text(
        f'#!/bin/bash\nif [[ "$*" == *--model_name_or_path* ]]; then echo "$*"; else exec {sys.executable} "$@"; fi\n'
    )
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DEVICE": "cpu", "VIRTUAL_ENV": sys.prefix}
    environment |= {"SFT_MODULE": "guardrail.training.sft", "OUTPUT_DIR": str(tmp_path / "out"), **variables}
    script = ["bash", str(REPOSITORY / "scripts" / "sft.sh")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(first) and "--per_device_train_batch_size" in done.stdout
