"""The hand-over to lm-evaluation-harness: styles as chat templates, conversion, a real run where it is installed."""

from __future__ import annotations

import importlib.util
import json

import jsonschema
import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.data.prompts import encode_prompt, encode_supervised, style_names
from guardrail.evaluation.utility import harness
from guardrail.evaluation.utility.harness import jinja_template

NAMED = [name for name in style_names() if name != "chat_template"]
CONVERSATIONS = [
    [("user", "Name two seas.")],
    [("system", 'Be "kind"\\n,\n{text} and {{ braces }}.'), ("user", "Name {system} two seas, 'quietly'.")],
    [
        ("user", "One."),
        ("assistant", "Ja, größer."),
        ("user", "Two.\n\n"),
        ("assistant", "Two it is."),
        ("user", "Three?"),
    ],
]
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval (pip install -r requirements-lm-eval.txt)"
)


def messages(conversation):
    return [{"role": role, "content": content} for role, content in conversation]


def copy_of(tokenizer, folder, style):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    copy = AutoTokenizer.from_pretrained(folder)
    copy.chat_template = jinja_template(style)
    return copy


@pytest.mark.parametrize("style", NAMED)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_chat_template_gives_the_styles_own_ids(tiny_tokenizer, tmp_path, style, conversation):
    tokenizer = copy_of(tiny_tokenizer, tmp_path, style)
    text = tokenizer.apply_chat_template(messages(conversation), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == encode_prompt(tiny_tokenizer, style, messages(conversation))
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("style", NAMED)
def test_a_closed_conversation_is_the_training_one(tiny_tokenizer, tmp_path, style):
    tokenizer = copy_of(tiny_tokenizer, tmp_path, style)
    closed = messages(CONVERSATIONS[2][:-1])
    ids = tokenizer(tokenizer.apply_chat_template(closed, tokenize=False), add_special_tokens=False)["input_ids"]
    assert ids == encode_supervised(tiny_tokenizer, style, closed).input_ids


def test_the_tokenizers_own_template_is_left_alone():
    assert jinja_template("chat_template") is None
    with pytest.raises(UserError, match="did you mean 'llama2_base'"):
        jinja_template("lama2_base")


REPORT = {
    "results": {
        "boats": {
            "alias": "boats",
            "acc,none": 0.75,
            "acc_stderr,none": 0.1,
            "sample_len": 4,
            "exact_match,strict": 0.5,
            "exact_match_stderr,strict": "N/A",
        }
    },
    "n-samples": {"boats": {"original": 9, "effective": 4}},
    "higher_is_better": {"boats": {"acc": True}},
    "samples": {
        "boats": [
            {
                "doc_id": 3,
                "doc_hash": "h",
                "target": "x",
                "filtered_resps": ["x"],
                "filter": "none",
                "metrics": ["acc"],
                "acc": 1.0,
            }
        ]
    },
}


def test_the_harness_report_in_our_schema():
    out = harness.convert(REPORT, ("boats",))
    scores = out["metrics"]["boats"]["scores"]
    assert scores["acc"]["value"] == 0.75 and scores["acc"]["interval"] == pytest.approx([0.554, 0.946])
    assert scores["exact_match,strict"] == {"value": 0.5, "standard_error": None, "interval": None}
    assert out["metrics"]["boats"]["n"] == 4
    assert out["utility"]["task"] == "lm_eval:boats" and out["utility"]["metric"] == "acc" and out["utility"]["n"] == 4
    assert out["results"][0]["id"] == "boats:3" and out["results"][0]["scores"] == {"acc": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ()}, "no task"),
        ({"model_name_or_path": None}, "needs --model_name_or_path"),
        ({"generation_backend": "openai"}, "cannot be used with lm_eval"),
        ({"tensor_parallel_size": 2}, "generation_backend vLLM"),
        ({"include_path": "./absent"}, "no such folder"),
        ({"num_fewshot": -1}, "expected 0 or more"),
        ({"prompt_style": "lama2"}, "did you mean 'llama2'"),
    ],
)
def test_wrong_options(options, message):
    good = {"tasks": ("boats",), "model_id": "toy", "output_dir": "out", "model_name_or_path": "m"}
    with pytest.raises(UserError, match=message):
        harness.HarnessConfig(**{**good, **options})


def test_an_unknown_task_gives_near_names():
    with pytest.raises(UserError, match="did you mean one of: arc_easy"):
        harness.check_tasks(("arc_esay",), ["arc_easy", "hellaswag"])


def test_a_missing_harness_is_one_clear_line(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"requirements-lm-eval\.txt"):
        harness.run_harness(
            harness.HarnessConfig(
                tasks=("boats",), model_id="toy", output_dir=str(tmp_path), model_name_or_path=str(tiny_model)
            )
        )


def load_entry():
    spec = importlib.util.spec_from_file_location("benchmarks_main_for_harness", REPOSITORY / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flags_of_another_benchmark_are_refused(tmp_path):
    with pytest.raises(UserError, match="--judge_model has no effect"):
        load_entry().main(
            ["--benchmark=lm_eval:boats", "--model_id=a", f"--output_dir={tmp_path}", "--judge_model=judge"]
        )


@needs_lm_eval
@pytest.mark.slow
def test_a_local_task_runs_for_real_with_one_bos_and_our_ids(tiny_model, tiny_tokenizer, tmp_path):
    rows = [{"question": "What floats?", "choices": ["a boat", "a stone"], "answer": 0}] * 3
    (tmp_path / "boats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "boats.yaml").write_text(
        f"""
task: boats_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "boats.jsonl"}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""
    )
    flags = [
        *("--benchmark=lm_eval:boats_choice", "--model_id=toy", f"--model_name_or_path={tiny_model}"),
        *(f"--output_dir={tmp_path / 'out'}", f"--include_path={tmp_path}", "--torch_dtype=float32"),
        *("--prompt_style=llama2_base", "--limit=2"),
    ]
    entry = load_entry()
    assert entry.main(flags)["reused"] is False
    assert entry.main(flags)["reused"] is True
    out = json.loads((tmp_path / "out" / "lm_eval_results.json").read_text())
    jsonschema.validate(out, json.loads((REPOSITORY / "configs/schemas/utility.schema.json").read_text()))
    assert out["metrics"]["boats_choice"]["n"] == 2 and len(out["results"]) == 2
    assert out["run"]["prompt_style"] == "llama2_base" and out["run"]["model_hash"]
    with pytest.raises(UserError, match="boats_choice"):
        entry.main([*(flag for flag in flags if "benchmark" not in flag), "--benchmark=lm_eval:boats_choise"])

    from lm_eval.models.huggingface import HFLM

    style = harness.style_tokenizer(str(tiny_model), "llama2_base", tmp_path / "tokenizer")
    model = HFLM(pretrained=str(tiny_model), tokenizer=style, device="cpu", dtype="float32")
    asked = [{"role": "user", "content": "What floats?"}]
    assert model.tok_encode(model.apply_chat_template(asked)) == encode_prompt(tiny_tokenizer, "llama2_base", asked)
