"""What every evaluation shares: what is in a key and what is not, and files that are in the way."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.core.options import options_of
from guardrail.data import prompts
from guardrail.evaluation import benchmarks, completions
from guardrail.evaluation.mt_bench import stage as mt_bench
from guardrail.evaluation.mt_bench.answers import read_model_answer
from guardrail.evaluation.mt_bench.data import load_question_set
from guardrail.evaluation.mt_bench.summary import summarise
from guardrail.evaluation.safety.evaluate import SafetyConfig, evaluate_safety, generation_metrics
from guardrail.evaluation.utility import scoring
from guardrail.evaluation.utility.evaluate import UtilityConfig, evaluate_utility
from guardrail.evaluation.utility.harness import HarnessConfig


@pytest.fixture
def template(monkeypatch):
    """A copy of configs/template.py that may be changed: what the library reads during the test."""
    module = prompts.template_module.__wrapped__()
    monkeypatch.setattr(prompts, "template_module", lambda: module)
    return module


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of the tiny model whose files may be changed."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def safety(model, tmp_path):
    """Run the safety evaluation once more; was the earlier result reused?"""
    bench = tmp_path / "bench.jsonl"
    bench.write_text('{"prompt": "Name a boat."}\n{"prompt": "Name a lamp."}\n')

    def run(**options) -> bool:
        given = {"model_name_or_path": str(model), "save_path": str(tmp_path / "safety"), "safety_bench": str(bench)}
        given |= {"torch_dtype": "float32", "max_new_tokens": 3, "prompt_style": "llama2_base"}
        return evaluate_safety(SafetyConfig(**given | options))["reused"]

    return run


@pytest.fixture
def utility(model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"dialogue": "Ann: Tea?\\nBob: Yes.", "summary": "Bob wants tea."}\n')

    def run(**options) -> bool:
        given = {"model_name_or_path": str(model), "save_path": str(tmp_path / "utility.json"), "dataset": "samsum"}
        given |= {"data_source": str(rows), "torch_dtype": "float32", "max_new_tokens": 3}
        return evaluate_utility(UtilityConfig(**given | options))["reused"]

    return run


@pytest.fixture
def questions(tmp_path):
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "question.jsonl").write_text(
        '{"question_id": 1, "category": "writing", "turns": ["Name a boat.", "Another?"]}\n'
    )
    return folder


@pytest.fixture
def two_turns(model, tmp_path, questions):
    def run(**options) -> bool:
        given = {"model_name_or_path": str(model), "model_id": "toy", "output_dir": str(tmp_path / "mt")}
        given |= {"data_dir": str(questions), "torch_dtype": "float32", "max_new_tokens": 3}
        return mt_bench.run_mt_bench(mt_bench.MTBenchConfig(**given | options))["reused"]

    return run


@pytest.fixture
def runs(safety, utility, two_turns):
    return {"safety": safety, "utility": utility, "mt_bench": two_turns}


def reused(runs, **options) -> set[str]:
    return {name for name, run in runs.items() if run(**options)}


def test_another_prompt_template_is_another_result(runs, template):
    """It was in no fingerprint: numbers of the old template stood under the new one's name."""
    assert reused(runs) == set()
    assert reused(runs) == set(runs)
    other = template.STYLES["llama2"]
    template.STYLES["llama2"] = dataclasses.replace(other, first_user=f"Please. {other.first_user}")
    assert reused(runs) == set(runs), "another style is none of theirs"
    style = template.STYLES["llama2_base"]
    template.STYLES["llama2_base"] = dataclasses.replace(style, first_user=f"Please. {style.first_user}")
    assert reused(runs) == set()
    changed = template.STYLES["llama2_base"]
    template.STYLES["llama2_base"] = dataclasses.replace(changed, stop_strings=("boat",))
    assert reused(runs) == set()
    assert reused(runs) == set(runs)


def test_another_eval_template_is_another_safety_result(safety, template):
    assert [safety(eval_template="helpful"), safety(eval_template="helpful")] == [False, True]
    template.EVAL_TEMPLATES["aoa"] = ("You are AOA.", "{text}")
    assert safety(eval_template="helpful")
    template.EVAL_TEMPLATES["helpful"] = ("You are kind.", "{text}")
    assert not safety(eval_template="helpful")


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.jinja", "generation_config.json"])
def test_chat_template_and_generation_configuration_belong_to_the_model(runs, model, file):
    ours = {"prompt_style": "chat_template"}
    chat = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (model / "chat_template.jinja").write_text(chat)
    del runs["safety"], runs["utility"]  # the same hash; one is enough here
    assert [reused(runs, **ours), reused(runs, **ours)] == [set(), {"mt_bench"}]
    if file.endswith(".json"):
        content = json.loads((model / file).read_text()) | {"transformers_version": "4.57.0"}
        (model / file).write_text(json.dumps(content))
    else:
        (model / file).write_text(f"Talk.\n{chat}")
    assert reused(runs, **ours) == set()


COMMON = {
    "torch_dtype": "float16",
    "limit": 3,
    "prompt_style": "llama2",
    "seed": 7,
    "trust_remote_code": True,
    "batch_size_per_device": 5,
    "batch_tokens": 99,
    "max_new_tokens": 9,
    "data_dir": "elsewhere",
}
ANSWERING = {
    **COMMON,
    "model_name_or_path": "other",
    "save_path": "other.json",
    "model_family": "llama2",
    "do_sample": True,
    "temperature": 0.3,
    "top_p": 0.3,
    "top_k": 3,
    "samples_per_prompt": 2,
}
NOT_HERE = ("generation_backend", "tensor_parallel_size", "data_parallel_size", "base_url", "served_model_name")
CASES = {
    SafetyConfig: (
        {"model_name_or_path": "m", "save_path": "s", "safety_bench": "hex-phi_with_refusal_prefix"}
        | {"num_prefix_tokens": 2, "do_sample": True, "prompt_style": "llama2_base"},
        {**ANSWERING, "do_sample": False, "bench_data": "copy.jsonl", "bench_split": "test", "num_prefix_tokens": 3}
        | {"safety_bench": "hex-phi_with_harmful_prefix", "eval_template": "aoa", "backdoor_trigger": "x"}
        | {"prefill_prefix": "Sure"},
    ),
    UtilityConfig: (
        {"model_name_or_path": "m", "save_path": "s.json", "dataset": "samsum", "do_sample": True}
        | {"prompt_style": "llama2_base"},
        {**ANSWERING, "do_sample": False, "dataset": "gsm8k", "data_source": "rows.jsonl", "split": "train"}
        | {"evaluator": "exact_match", "heldout_loss": True},
    ),
    mt_bench.MTBenchConfig: (
        {"model_name_or_path": "m", "model_id": "toy", "output_dir": "o", "judge_model": "j"}
        | {"judge_base_url": "http://127.0.0.1:9/v1"},
        {**COMMON, "model_id": "b", "output_dir": "p", "model_name_or_path": "n", "protocol": "align_anything"}
        | {"judge_model": "k", "judge_base_url": "http://127.0.0.1:8/v1", "judge_max_tokens": 5, "judge_workers": 1}
        | {"judge_timeout_sec": 3.0, "judge_max_retries": 9},
    ),
    HarnessConfig: (
        {"model_name_or_path": "m", "model_id": "toy", "output_dir": "o", "tasks": ("arc_easy",)},
        {**COMMON, "model_id": "b", "output_dir": "p", "model_name_or_path": "n", "num_fewshot": 2},
    ),
}
OTHERWISE = ("judge_backend", "judge_torch_dtype", "answers", "include_path")  # need files, or a local judge


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, item.name) for kind in CASES for item in options_of(kind) if item.name not in (*NOT_HERE, *OTHERWISE)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_option_is_in_the_identity_exactly_when_it_decides(kind, name):
    base, changes = CASES[kind]
    fact = next(item for item in options_of(kind) if item.name == name).metadata
    one = kind(**base)
    other = kind(**base | {name: changes[name]})
    assert (one.identity() != other.identity()) == fact["decides"]


def test_without_sampling_its_numbers_are_in_no_key():
    base = {"model_name_or_path": "m", "save_path": "s.json", "dataset": "samsum"}
    one = UtilityConfig(**base)
    other = UtilityConfig(**base, temperature=0.1, top_p=0.2, top_k=3, seed=5)
    assert one.identity() == other.identity()


def test_the_servers_address_is_in_the_key_wherever_it_comes_from(monkeypatch):
    base = {"model_name_or_path": "m", "save_path": "s", "generation_backend": "openai"}
    seen = []
    for url in ("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        seen.append(SafetyConfig(**base).identity())
        assert SafetyConfig(**base, base_url=url).identity() == seen[-1]
    assert seen[0] != seen[1]


def test_keys_need_no_torch():
    code = (
        "import sys\n"
        "from guardrail.evaluation.safety.evaluate import SafetyConfig\n"
        "from guardrail.evaluation.utility.evaluate import UtilityConfig\n"
        "from guardrail.evaluation.mt_bench.stage import MTBenchConfig\n"
        "from guardrail.evaluation.utility.harness import HarnessConfig\n"
        "common = {'model_name_or_path': 'm', 'save_path': 's.json'}\n"
        "SafetyConfig(**common).identity(), UtilityConfig(**common, dataset='samsum').identity()\n"
        "common = {'model_name_or_path': 'm', 'output_dir': 'o', 'model_id': 'x'}\n"
        "MTBenchConfig(**common).identity(), HarnessConfig(**common, tasks=('t',)).identity()\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


WHOLE = json.dumps({"results": [{"id": "a"}], "metrics": {}, "run": {"stage": "eval_safety", "config": {"seed": 0}}})
IN_THE_WAY = {
    "cut": WHOLE[:-20],
    "empty": "",
    "a list": "[1, 2]",
    "a number": "3",
    "no run": '{"results": []}',
    "run is text": '{"results": [], "run": "eval_safety"}',
    "no stage": '{"results": [], "run": {}}',
    "no config": '{"results": [], "run": {"stage": "STAGE"}}',
    "results are text": '{"results": "x", "run": {"stage": "STAGE", "config": {}}}',
    "not UTF-8": b"\xff\xfe\x00{",
    "another stage": '{"results": [], "run": {"stage": "judge_guard", "config": {}}}',
}


@pytest.mark.parametrize("content", IN_THE_WAY.values(), ids=IN_THE_WAY.keys())
@pytest.mark.parametrize("stage", ["eval_safety", "eval_utility", "mt_bench"])
def test_a_file_in_the_way_is_one_line_and_left_alone(runs, tmp_path, stage, content, monkeypatch):
    monkeypatch.setattr(completions, "backend_of", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr(mt_bench, "backend_of", lambda *_: pytest.fail("a model was loaded"))
    file, run = {
        "eval_safety": (tmp_path / "safety" / "results.json", runs["safety"]),
        "eval_utility": (tmp_path / "utility.json", runs["utility"]),
        "mt_bench": (tmp_path / "mt" / "results.json", runs["mt_bench"]),
    }[stage]
    file.parent.mkdir(exist_ok=True)
    data = content if isinstance(content, bytes) else content.replace("STAGE", stage).encode()
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"(exists and is no result|is a result) of .*; give another --") as error:
        run()
    assert "\n" not in str(error.value) and file.read_bytes() == data
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".")] == []


ANSWER = {"question_id": 1, "model_id": "toy", "choices": [{"index": 0, "turns": ["A boat.", "A ship."]}]}
ANSWER_FILES = {
    "cut": json.dumps(ANSWER)[:-9],
    "empty": "",
    "a list": "[1]",
    "another question": json.dumps(ANSWER | {"question_id": 2}),
    "no id": json.dumps({"choices": ANSWER["choices"]}),
    "id is text": json.dumps(ANSWER | {"question_id": "first"}),
    "no choices": json.dumps({"question_id": 1}),
    "no choice": json.dumps(ANSWER | {"choices": []}),
    "choice is text": json.dumps(ANSWER | {"choices": ["A boat."]}),
    "turns are text": json.dumps(ANSWER | {"choices": [{"turns": "ab"}]}),
    "a turn is a list": json.dumps(ANSWER | {"choices": [{"turns": ["A boat.", ["x"]]}]}),
    "one turn": json.dumps(ANSWER | {"choices": [{"turns": ["A boat."]}]}),
    "twice": json.dumps(ANSWER) + "\n" + json.dumps(ANSWER),
    "not UTF-8": b"\xff\xfe\x00{",
}


@pytest.mark.parametrize("content", ANSWER_FILES.values(), ids=ANSWER_FILES.keys())
def test_an_answers_file_that_is_cut_or_foreign_is_one_line(content, questions, tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"answers\.jsonl") as error:
        read_model_answer(file, load_question_set(str(questions)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "\n\n", '{"prompt": "Name', "[]", b"\xff\xfe\x00{", '{"colour": "blue"}'])
def test_prompts_that_are_none_are_one_line(safety, tmp_path, content):
    (tmp_path / "bench.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"bench\.jsonl") as error:
        safety()
    assert "\n" not in str(error.value) and not (tmp_path / "safety").exists()


def test_nothing_and_empty_answers_divide_by_nothing():
    assert generation_metrics([])["empty_percent"] is None
    row = {"finish_reason": "eos", "n_completion_tokens": 0, "cut_at_stop": False, "completion": ""}
    assert (
        generation_metrics([row])["empty_percent"] == 100 and generation_metrics([row])["mean_completion_tokens"] == 0
    )
    for evaluator, reference in (("rouge_1", "Bob wants tea."), ("exact_match", "Bob."), ("gsm8k", "#### 3")):
        scores = scoring.score_rows(evaluator, [("", reference)] * 2)
        summary = scoring.summarise(evaluator, ["a", "b"], scores)
        assert summary[scoring.HEADLINE[evaluator]] == 0
    assert summarise([])["failed_percent"] is None and summarise([])["overall"]["score"] is None


def test_one_backend_serves_several_evaluations(model, tmp_path, monkeypatch):
    (tmp_path / "bench.jsonl").write_text('{"prompt": "Name a boat."}\n')
    (tmp_path / "rows.jsonl").write_text('{"dialogue": "Ann: Tea?", "summary": "Ann wants tea."}\n')
    common = {"model_name_or_path": str(model), "torch_dtype": "float32", "max_new_tokens": 3}
    first = SafetyConfig(
        **common, prompt_style="llama2_base", save_path=str(tmp_path / "s"), safety_bench=str(tmp_path / "bench.jsonl")
    )
    second = UtilityConfig(
        **common, save_path=str(tmp_path / "u.json"), dataset="samsum", data_source=str(tmp_path / "rows.jsonl")
    )
    backend = first.backend()
    monkeypatch.setattr(completions, "backend_of", lambda *_: pytest.fail("a second model was loaded"))
    assert evaluate_safety(first, backend)["n"] == 1 and evaluate_utility(second, backend)["n"] == 1


def test_options_of_the_other_benchmark_are_refused():
    flags = ["--model_id=x", "--output_dir=o", "--model_name_or_path=m", "--benchmark=lm_eval:arc_easy"]
    for stray in ("--batch_tokens=5", "--base_url=http://x", "--served_model_name=x", "--protocol=align_anything"):
        with pytest.raises(UserError, match="has no effect with --benchmark lm_eval"):
            benchmarks.main([*flags, stray])
