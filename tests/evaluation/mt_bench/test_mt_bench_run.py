"""``python __main__.py --benchmark mt_bench`` end to end on a toy model."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import pytest
from openai_server import ScriptedServer, Status
from toys import REPOSITORY

from guardrail.core import openai_client
from guardrail.core.errors import UserError
from guardrail.data.prompts import encode_prompt
from guardrail.evaluation import benchmarks as entry
from guardrail.evaluation.mt_bench import answers as answering
from guardrail.evaluation.mt_bench.data import load_question_set


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(openai_client, "FIRST_WAIT_SEC", 0.01)
    monkeypatch.setattr(openai_client, "MAX_WAIT_SEC", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def flags(tiny_model, tmp_path, question_folder):
    return [
        *("--benchmark=mt_bench", "--model_id=toy", f"--model_name_or_path={tiny_model}"),
        *(f"--output_dir={tmp_path / 'out'}", "--generation_backend=hf", "--torch_dtype=float32"),
        *(f"--data_dir={question_folder}", "--max_new_tokens=6"),
    ]


SCHEMA = json.loads((REPOSITORY / "configs/schemas/utility.schema.json").read_text())


def read(tmp_path, *names):
    """A results file, checked against its schema."""
    out = json.loads(tmp_path.joinpath("out", *names).read_text())
    jsonschema.validate(out, SCHEMA)
    return out


def lines(tmp_path, *names):
    return [json.loads(line) for line in tmp_path.joinpath("out", *names).read_text().splitlines()]


def test_answers_in_fastchats_shape(flags, tmp_path):
    headline = entry.main(flags)
    assert headline["n_questions"] == 3 and headline["measure"] == "custom_mt_bench"
    rows = lines(tmp_path, "model_answer", "toy.jsonl")
    assert [row["question_id"] for row in rows] == [1, 2, 3]
    assert all(set(row) == {"question_id", "answer_id", "model_id", "choices", "tstamp"} for row in rows)
    assert all(len(row["choices"]) == 1 and len(row["choices"][0]["turns"]) == 2 for row in rows)
    result = read(tmp_path, "results.json")
    assert result["metrics"]["scores"] is None and result["utility"]["value"] is None
    assert result["run"]["generation"]["prompt_style"] == "llama2_base"  # the toy tokenizer has no chat template
    assert not list((tmp_path / "out").glob(".*"))


def test_unchanged_is_not_answered_again(flags, tmp_path, monkeypatch):
    entry.main(flags)
    before = (tmp_path / "out" / "results.json").read_bytes()
    monkeypatch.setattr("guardrail.evaluation.mt_bench.stage._answer", lambda *a: pytest.fail("answered again"))
    assert entry.main(flags)["reused"] is True
    assert (tmp_path / "out" / "results.json").read_bytes() == before


def test_judge_later_then_keep_the_judgements(flags, tmp_path, monkeypatch):
    entry.main(flags)
    monkeypatch.setattr("guardrail.evaluation.mt_bench.stage._answer", lambda *a: pytest.fail("answered again"))
    with ScriptedServer(lambda payload, n: "Fine. Rating: [[6]]") as server:
        judged = [*flags, "--judge_model=judge", f"--judge_base_url={server.base_url}"]
        headline = entry.main(judged)
        assert len(server.requests) == 6
        assert entry.main(judged)["reused"] is True and len(server.requests) == 6
    assert headline["custom_mt_bench_score_1_to_10"] == 6 and headline["n_failed"] == 0
    result = read(tmp_path, "results.json")
    assert result["utility"]["value"] == 6 and result["utility"]["judge"] == "judge" and result["utility"]["n"] == 3
    assert [len(row["judgements"]) for row in result["results"]] == [2, 2, 2]
    assert len(lines(tmp_path, "model_judgment", "judge_single.jsonl")) == 6
    assert all((tmp_path / "out" / name).stat().st_size > 1000 for name in ("radar.png", "radar.pdf"))
    assert "| overall | 6.00 |" in (tmp_path / "out" / "table.md").read_text()
    assert entry.main(flags)["reused"] is True  # without a judge: the judgements stay
    assert read(tmp_path, "results.json")["utility"]["value"] == 6


def test_a_failing_judge_leaves_answers_and_earlier_scores(flags, tmp_path):
    entry.main(flags)
    with ScriptedServer(lambda payload, n: "[[6]]") as server:
        entry.main([*flags, "--judge_model=judge", f"--judge_base_url={server.base_url}"])
    with ScriptedServer(lambda payload, n: Status(500)) as server, pytest.raises(UserError, match="none of 6"):
        entry.main([*flags, "--judge_model=other", f"--judge_base_url={server.base_url}", "--judge_max_retries=0"])
    assert (
        read(tmp_path, "results.json")["utility"] | {"value": 6, "judge": "judge"}
        == read(tmp_path, "results.json")["utility"]
    )


def test_failed_judgements_are_asked_for_again(flags, tmp_path):
    with ScriptedServer(lambda payload, n: "[[8]]" if n >= 6 else "[[6]]" if n % 2 else Status(400)) as server:
        judged = [*flags, "--judge_model=judge", f"--judge_base_url={server.base_url}", "--judge_workers=1"]
        headline = entry.main(judged)
        assert headline["n_failed"] == 3 and headline["custom_mt_bench_score_1_to_10"] == 6
        headline = entry.main(judged)
        assert len(server.requests) == 9 and headline["n_failed"] == 0
        assert headline["custom_mt_bench_score_1_to_10"] == 7


def test_another_server_is_another_judge(flags, tmp_path, monkeypatch):
    """The same name may be another model there: its ratings are never reused, wherever the address comes from."""
    with ScriptedServer(lambda payload, n: "[[6]]") as one, ScriptedServer(lambda payload, n: "[[8]]") as two:
        judged = [*flags, "--judge_model=judge"]
        assert entry.main([*judged, f"--judge_base_url={one.base_url}"])["custom_mt_bench_score_1_to_10"] == 6
        monkeypatch.setenv("OPENAI_BASE_URL", two.base_url)
        assert entry.main(judged)["custom_mt_bench_score_1_to_10"] == 8
        monkeypatch.setenv("OPENAI_BASE_URL", one.base_url)
        assert entry.main(judged)["custom_mt_bench_score_1_to_10"] == 6
        assert (len(one.requests), len(two.requests)) == (12, 6)
        assert entry.main(judged)["reused"] is True


def test_answers_of_a_file_are_judged_without_a_model(tmp_path, question_folder, answers_file):
    with ScriptedServer(lambda payload, n: "[[4]]") as server:
        headline = entry.main(
            [
                *(
                    "--benchmark=mt_bench",
                    "--model_id=toy",
                    f"--answers={answers_file}",
                    f"--output_dir={tmp_path / 'out'}",
                ),
                *(f"--data_dir={question_folder}", "--judge_model=judge", f"--judge_base_url={server.base_url}"),
            ]
        )
        assert any("first answer 2" in request["messages"][1]["content"] for request in server.requests)
    assert headline["custom_mt_bench_score_1_to_10"] == 4


def test_the_older_measure_has_its_own_folder_and_name(flags, tmp_path):
    entry.main(flags)
    with ScriptedServer(lambda payload, n: "[[6]]" if n else "no rating") as server:
        headline = entry.main(
            [*flags, "--protocol=align_anything", "--judge_model=judge", f"--judge_base_url={server.base_url}"]
        )
        assert len(server.requests) == 3
    assert headline["align_anything_old_protocol_on_custom_mt_bench_score_0_to_10"] == 4  # (0 + 6 + 6) / 3
    assert read(tmp_path, "results.json")["metrics"]["measure"] == "custom_mt_bench"
    assert read(tmp_path, "align_anything_old_protocol", "results.json")["utility"]["n_failed"] == 1


class Echo:
    """A backend that says what it was asked, as text; ids are the toy tokenizer's."""

    name = "hf"
    many_processes = True
    unit_rows, unit_tokens = 64, 1 << 20

    def __init__(self, tokenizer, answer="  one two three  "):
        self.tokenizer, self.answer, self.seen = tokenizer, answer, []

    def generate(self, requests, options):
        from guardrail.generation import Completion

        self.seen += [(request, options) for request in requests]
        return [Completion(r.id, r.sample, self.answer, [1], "eos", len(r.prompt_ids), 1, False) for r in requests]


def answer(tokenizer, question_folder, tmp_path, backend, context=None, **options):
    questions = load_question_set(str(question_folder))
    rows = answering.answer_questions(
        backend, "llama2_base", questions, answering.AnswerOptions(**options), context, tmp_path / "work", "key"
    )
    return questions, rows


def test_the_first_answer_is_fed_back_and_temperatures_follow_the_category(tiny_tokenizer, question_folder, tmp_path):
    backend = Echo(tiny_tokenizer)
    questions, rows = answer(tiny_tokenizer, question_folder, tmp_path, backend)
    assert rows[0]["answers"] == ["one two three"] * 2  # stripped
    asked = {request.id: (request, options) for request, options in backend.seen}
    first = questions.questions[0]["turns"]
    expected = [
        {"role": "user", "content": first[0]},
        {"role": "assistant", "content": "one two three"},
        {"role": "user", "content": first[1]},
    ]
    assert asked["1/turn-2"][0].prompt_ids == encode_prompt(tiny_tokenizer, "llama2_base", expected)
    assert asked["1/turn-1"][1].temperature == 0.7 and asked["1/turn-1"][1].do_sample
    assert asked["2/turn-1"][1].do_sample is False
    assert asked["3/turn-2"][1].temperature == 0.1
    assert answering.AnswerOptions().sampling("unheard of").temperature == 0.7
    # no top-p, no top-k: plain temperature sampling
    assert (asked["1/turn-1"][1].top_p, asked["1/turn-1"][1].top_k) == (1.0, 0)


def test_the_older_measure_prefills_and_samples_at_005(tiny_tokenizer, question_folder, tmp_path):
    backend = Echo(tiny_tokenizer)
    _, rows = answer(tiny_tokenizer, question_folder, tmp_path, backend, protocol="align_anything")
    assert {options.temperature for _, options in backend.seen} == {0.05}
    for request, _ in backend.seen:
        assert tiny_tokenizer.decode(request.prompt_ids).endswith("Let's think step by step.")
    assert "step by step" not in rows[0]["answers"][0]


def test_two_turns_longer_than_the_context_are_cut_and_counted(tiny_tokenizer, question_folder, tmp_path):
    backend = Echo(tiny_tokenizer, answer="very long " * 100)
    _, rows = answer(tiny_tokenizer, question_folder, tmp_path, backend, context=200, max_new_tokens=20)
    assert [row["turns"][0]["prompt_cut_tokens"] for row in rows] == [0, 0, 0]
    assert all(row["turns"][1]["prompt_cut_tokens"] > 0 for row in rows)
    assert all(len(request.prompt_ids) <= 180 for request, _ in backend.seen)
    assert rows[0]["answers"][0] == ("very long " * 100).strip()  # what is judged is the whole answer


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--benchmark=mt_bnch"], "did you mean 'mt_bench'"),
        (["--model_id=a/b"], "names files"),
        (["--answers=x.jsonl"], "or --answers"),
        (["--judge_base_url=http://127.0.0.1:9/v1"], "needs --judge_model"),
        (["--judge_model=judge"], "OPENAI_BASE_URL"),
        (["--judge_model=./absent", "--judge_backend=hf"], "no such model folder"),
        (["--protocol=fastchatt"], "did you mean 'fastchat'"),
        (["--prompt_style=lama2"], "did you mean 'llama2'"),
        (["--tensor_parallel_size=2"], "generation_backend vLLM"),
        (["--include_path=x"], "no effect with --benchmark mt_bench"),
        (["--data_dir=./absent"], "no question"),
    ],
)
def test_bad_input_is_refused_before_a_model_loads(flags, tmp_path, monkeypatch, extra, message):
    monkeypatch.setattr("guardrail.evaluation.mt_bench.stage._answer", lambda *a: pytest.fail("loaded a model"))
    names = {flag.split("=")[0] for flag in extra}
    with pytest.raises(UserError, match=message):
        entry.main([*(flag for flag in flags if flag.split("=")[0] not in names), *extra])
    assert not (tmp_path / "out").exists()


def test_another_models_result_is_not_overwritten(flags):
    entry.main(flags)
    with pytest.raises(UserError, match="for model_id 'toy'"):
        entry.main([*(f for f in flags if not f.startswith("--model_id")), "--model_id=other"])


def test_radar_of_several_runs_and_refusal_of_different_measures(flags, tmp_path, question_folder, answers_file):
    from guardrail.core.files import read_json
    from guardrail.evaluation.mt_bench.figure import radar_of_results

    results = []
    with ScriptedServer(lambda payload, n: "[[4]]") as server:
        for model_id in ("a", "b"):
            common = [f"--data_dir={question_folder}", "--judge_model=judge", f"--judge_base_url={server.base_url}"]
            out = tmp_path / model_id
            entry.main(
                [
                    "--benchmark=mt_bench",
                    f"--model_id={model_id}",
                    f"--answers={answers_file}",
                    f"--output_dir={out}",
                    *common,
                ]
            )
            results.append(read_json(out / "results.json"))
    (figure,) = radar_of_results(results, [tmp_path / "both.png"])
    assert figure.stat().st_size > 1000
    results[1]["metrics"]["judge"] = "another"
    with pytest.raises(UserError, match="do not compare"):
        radar_of_results(results, [tmp_path / "no.png"])
    with pytest.raises(UserError, match="occurs twice"):
        radar_of_results([results[0], results[0]], [tmp_path / "no.png"])


def test_help_is_light():
    code = (
        "import sys, runpy\nsys.argv = ['__main__.py', '--help']\n"
        "try:\n    runpy.run_path('__main__.py', run_name='__main__')\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
