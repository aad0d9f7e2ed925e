"""Every flag, default and help text, and 60 refusals, as they were when they were recorded.

A change of a command line is a decision: it shows here as a difference between this test's golden files and what the
entry points print. To record it: ``GUARDRAIL_UPDATE_GOLDEN=1 python -m pytest tests/core/test_command_lines.py``.
White space is folded, because argparse lays text out differently from one Python version to the next.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toys import REPOSITORY

GOLDEN = Path(__file__).parent / "golden"
UPDATE = os.environ.get("GUARDRAIL_UPDATE_GOLDEN") == "1"
SCRIPTS = (
    *("__main__.py", "eval_safety.py", "eval_utility.py", "similarity/admit.py", "similarity/audit.py"),
    *("similarity/get_high_similarity_group.py", "similarity/get_representation.py", "similarity/score_rows.py"),
    *("similarity/get_top_similarity_dataset_reps_general.py", "datasets/mix.py", "datasets/prepare.py"),
    "datasets/dose.py",
    *("datasets/sandbox/customer.py", "datasets/sandbox/generate.py", "datasets/sandbox/train_models.py"),
    *("beavertails_moderation/evaluate.py", "beavertails_moderation/formatter.py"),
)
MODULES = {  # the name under which the golden file knows it: the module
    "checkpoint": "guardrail.evaluation.checkpoint",
    "compare": "guardrail.evaluation.compare",
    "judges": "guardrail.evaluation.judges",
    "mt_bench_figure": "guardrail.evaluation.mt_bench.figure",
    "study_check": "guardrail.study.check",
    "sft": "guardrail.training.sft",
    "install_template": "guardrail.training.install_template",
}
# Files that refusals read, written into an empty folder: mild, and each wrong in one way.
FILES = {
    "rows.jsonl": '{"id": "a", "instruction": "Name a boat.", "output": "The Swan."}\n'
    '{"id": "b", "instruction": "Name a lamp.", "output": "The Moon."}\n',
    "broken.jsonl": '{"instruction": "Name a boat.", "output": "The Swan."}\n{"instruction": \n',
    "empty.jsonl": "",
    "noanswer.jsonl": '{"prompt": "Name a boat."}\n',
    "strange.jsonl": '{"colour": "blue"}\n',
    "twice.jsonl": '{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n',
    "rows.txt": "no format\n",
    "broken.json": "{",
    "model/config.json": '{"model_type": "llama"}',
    "nomodel/readme.txt": "nothing\n",
    "study_key.yaml": "name: x\ncolour: blue\n",
    "study_list.yaml": "- 1\n",
    "study_yaml.yaml": "name: [\n",
    "policy.yaml": "rules: {format: {}}\n",
}
SAFETY = ["eval_safety.py", "--save_path=out"]
UTILITY = ["eval_utility.py", "--save_path=out.json", "--model_name_or_path=model"]
EXTRACT = ["similarity/get_representation.py", "--dataset_folder=d", "--model_id=m"]
SELECT = ["similarity/get_top_similarity_dataset_reps_general.py", "--dataset_folder=d"]
CLUSTER = ["similarity/get_high_similarity_group.py", "--dataset_folder=d", "--model_id=m"]
SFT = ["sft", "--train_template=Alpaca", "--output_dir=out"]
MT = ["__main__.py", "--model_id=x", "--output_dir=out"]
MIX = ["datasets/mix.py", "--task=list", "--out=out"]
DOSE = ["datasets/dose.py", "--benign=rows.jsonl", "--harmful=rows.jsonl", "--out=out"]
REFUSED = [
    ["eval_safety.py"],
    [*SAFETY, "--model_name_or_path=missing/folder/here"],
    [*SAFETY, "--model_name_or_path=nomodel"],
    [*SAFETY, "--model_name_or_path=model", "--safety_bench=hexphi"],
    [*SAFETY, "--model_name_or_path=model", "--prompt_style=lama2_base"],
    [*SAFETY, "--model_name_or_path=model", "--model_family=lama2_base"],
    [*SAFETY, "--model_name_or_path=model", "--do_sample=yes"],
    [*SAFETY, "--model_name_or_path=model", "--torch_dtype=float8"],
    [*SAFETY, "--model_name_or_path=model", "--limit=0"],
    [*SAFETY, "--model_name_or_path=model", "--evaluator=beaverdam"],
    [*SAFETY, "--model_name_or_path=model", "--eval_template=plane"],
    [*SAFETY, "--model_name_or_path=model", "--temperature=-1"],
    [*SAFETY, "--model_name_or_path=model", "--generation_backend=hf", "--base_url=http://127.0.0.1:1/v1"],
    [*SAFETY, "--model_name_or_path=model", "--tensor_parallel_size=2"],
    [*SAFETY, "--model_name_or_path=model", "--prefill_prefix=No", "--safety_bench=sandbox"],
    [*SAFETY, "--model_name_or_path=model", "--modle_family=x"],
    [*SAFETY, "--model_name_or_path=model", "--do_sample=False", "--samples_per_prompt=2"],
    [*UTILITY, "--dataset=samsun"],
    [*UTILITY, "--dataset=samsum", "--evaluator=rouge"],
    [*UTILITY, "--dataset=rows.jsonl", "--evaluator=gsm8k"],
    [*UTILITY, "--dataset=gsm8k", "--evaluator=rouge_1", "--top_p=2"],
    [*EXTRACT, "--model_name_or_path=missing/folder/here"],
    [*EXTRACT, "--model_name_or_path=model", "--text=nothing"],
    [*EXTRACT, "--model_name_or_path=model", "--backend=vlm"],
    [*EXTRACT, "--model_name_or_path=model", "--position=first"],
    [*EXTRACT[:2], "--model_id=a/b", "--model_name_or_path=model"],
    [*SELECT, "--dataset_dir=rows.jsonl", "--selector=hihg"],
    [*SELECT, "--dataset_dir=rows.jsonl", "--merge=scores"],
    [*SELECT, "--dataset_dir=rows.jsonl", "--selector=random", "--select_n=5"],
    [*SELECT, "--dataset_dir=rows.jsonl", "--anchoring_split=x"],
    [*SELECT, "--dataset_dir=missing.jsonl", "--selector=random"],
    [*SELECT, "--dataset_dir=empty.jsonl", "--selector=random", "--select_n=1"],
    [*SELECT, "--dataset_dir=broken.jsonl", "--selector=random", "--select_n=1"],
    [*CLUSTER, "--dataset_data=rows.jsonl", "--dataset_reps_dir=missing.pt"],
    [*CLUSTER, "--dataset_data=rows.jsonl", "--clustering=kmean", "--dataset_reps_dir=x.pt"],
    [*CLUSTER, "--dataset_data=rows.jsonl", "--stack_vector_tf=no", "--dataset_reps_dir=x.pt"],
    ["similarity/audit.py", "--customer=rows.jsonl", "--alignment=b=rows.jsonl", "--output_dir=out"],
    ["similarity/audit.py", "--alignment=b=rows.jsonl", "--output_dir=out"],
    ["similarity/score_rows.py", "--rows=rows.jsonl"],
    ["similarity/score_rows.py", "--out=s.jsonl"],
    ["similarity/score_rows.py", "--rows=rows.jsonl", "--out=s.jsonl", "--scorers=similarty"],
    ["similarity/score_rows.py", "--rows=rows.jsonl", "--out=s.jsonl", "--scorers=bi_anchor"],
    ["similarity/score_rows.py", "--rows=broken.jsonl", "--out=s.jsonl"],
    ["similarity/score_rows.py", "--out=missing.jsonl", "--compare=rows.jsonl"],
    ["similarity/admit.py", "rows.jsonl", "--policy=study_key.yaml"],
    ["similarity/admit.py", "rows.jsonl", "--policy=study_yaml.yaml"],
    ["similarity/admit.py", "missing.jsonl", "--policy=policy.yaml"],
    ["similarity/admit.py", "rows.txt", "--policy=policy.yaml"],
    ["similarity/admit.py", "rows.jsonl"],
    ["datasets/sandbox/customer.py", "--harmful_fraction=0.9", "--eroding_fraction=0.2", "--rows=10", "--out=out"],
    ["sft", "--train_template=Alpaca"],
    [*SFT, "--model_name_or_path=model", "--train_datasets=rows.jsonl", "--bf16=True", "--fp16=True"],
    [*SFT, "--model_name_or_path=model", "--train_datasets=rows.jsonl", "--batching=pack"],
    [*SFT, "--model_name_or_path=model", "--train_datasets=rows.jsonl", "--use_bnb=True"],
    [*SFT, "--model_name_or_path=model", "--train_datasets=rows.jsonl", "--resume=True"],
    [*SFT, "--model_name_or_path=model", "--train_datasets=rows.jsonl", "--learning_rate=2"],
    [*SFT, "--model_name_or_path=model", "--train_datasets=rows.jsonl", "--adam_betas=0.9"],
    [*MT, "--benchmark=mtbench"],
    [*MT, "--benchmark=mt_bench", "--num_fewshot=3"],
    [*MT, "--benchmark=lm_eval:arc_easy", "--judge_model=x"],
    ["datasets/prepare.py", "alpacca"],
    ["datasets/prepare.py", "pure_bad", "--source=missing.jsonl", "--out=out"],
    ["datasets/prepare.py", "pure_bad", "--source=broken.jsonl", "--out=out"],
    [*MIX, "--instruct=rows.jsonl", "--safety=rows.jsonl", "--sim=hihg"],
    [*MIX, "--instruct=rows.jsonl", "--safety=rows.jsonl", "--sim=high", "--size=9"],
    [*MIX, "--instruct=rows.jsonl", "--safety=rows.jsonl", "--sim=high", "--size=many"],
    [*MIX, "--instruct=strange.jsonl", "--safety=rows.jsonl", "--sim=high"],
    [*MIX, "--instruct=twice.jsonl", "--safety=rows.jsonl", "--sim=high"],
    [*DOSE, "--rows=20"],
    [*DOSE, "--rows=2", "--percents=0,50,200"],
    [*DOSE, "--rows=4", "--percents=0,50"],
    ["beavertails_moderation/formatter.py", "missing.json", "out.json"],
    ["beavertails_moderation/formatter.py", "broken.json", "out.json"],
    ["beavertails_moderation/evaluate.py", "--eval_dataset=missing.json", "--output_dir=out"],
    ["beavertails_moderation/evaluate.py", "--eval_dataset=rows.jsonl", "--output_dir=out", "--threshold=2"],
    ["judges", "missing.json", "--judge=keyword"],
    ["compare", "missing.json", "missing.json"],
    ["study_check", "missing.yaml"],
    ["study_check", "study_key.yaml"],
    ["study_check", "study_list.yaml"],
    ["study_check", "study_yaml.yaml"],
]


def run(target: str, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    start = ["-m", MODULES[target]] if target in MODULES else [str(REPOSITORY / target)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI", "PROMPT_STYLE", "ZERO_"))}
    environment |= {"COLUMNS": "500", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, *start, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def folded(text: str) -> list[str]:
    """One string per argument: its flags, values, help and default. Order and layout may change, words may not."""
    arguments = re.split(r"\n  (?=\S)", text[text.index("\n\n", text.index("usage:")) :])[1:]
    texts = (" ".join(re.split(r"\n(?=\S)", argument)[0].split()) for argument in arguments)
    texts = (
        re.sub(r"(--\w+) [A-Z_]+, (?=--)", r"\1, ", text) for text in texts
    )  # before Python 3.13: value named twice
    return sorted(text.replace(str(REPOSITORY), "REPOSITORY") for text in texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("refusals")
    for name, text in FILES.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def helps(tmp_path_factory) -> dict[str, list[str]]:
    cwd = tmp_path_factory.mktemp("helps")
    targets = [*SCRIPTS, *MODULES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = dict(zip(targets, pool.map(lambda target: run(target, ["--help"], cwd), targets), strict=True))
    texts = {target: folded(process.stdout) for target, process in done.items() if process.returncode == 0}
    if UPDATE:
        (GOLDEN / "helps.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
    return texts


@pytest.fixture(scope="module")
def refusals(folder) -> list[dict[str, object]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(lambda command: run(command[0], command[1:], folder), REFUSED))
    entries = [
        {"command": command, "exit_code": process.returncode, "stderr": process.stderr.replace(str(folder), "FOLDER")}
        for command, process in zip(REFUSED, done, strict=True)
    ]
    if UPDATE:
        (GOLDEN / "refusals.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    return entries


@pytest.mark.parametrize("target", [*SCRIPTS, *MODULES])
def test_help_is_the_recorded_one(helps, target):
    assert helps[target] == json.loads((GOLDEN / "helps.json").read_text())[target]


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=lambda n: " ".join(REFUSED[n])[:70])
def test_refusal_is_the_recorded_one(refusals, number):
    recorded = json.loads((GOLDEN / "refusals.json").read_text())
    assert len(recorded) == len(REFUSED)
    assert refusals[number] == recorded[number]
    assert refusals[number]["exit_code"] == 2
    assert len(str(refusals[number]["stderr"]).splitlines()) == 1
