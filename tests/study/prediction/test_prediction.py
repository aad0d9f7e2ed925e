"""Do bins by a score tell what is planted? Cuts by hand, and analyses of made-up cells whose truth is known."""

import numpy as np
import pytest
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.study.config import load_study
from guardrail.study.prediction import analysis
from guardrail.study.prediction.__main__ import chosen, main
from guardrail.study.prediction.cells import stack_cells
from guardrail.study.prediction.options import Prediction
from guardrail.study.prediction.pool import cut, describe_bin, make_pool, strata_of
from guardrail.study.prediction.results import Cut, analyse_scorer
from guardrail.study.prediction.scores import costs, scoring_flags
from guardrail.study.prediction.write import tables

STUDY = REPOSITORY / "configs" / "studies" / "scorers.yaml"
STEPS = [0, 1, 4, 20]


def write_rows(path, n, word, words=3):
    import json

    with open(path, "w") as handle:
        for i in range(n):
            answer = " ".join([word] * (words + i % 7))
            handle.write(json.dumps({"id": f"{word}{i}", "prompt": f"Say {i}", "response": answer}) + "\n")
    return str(path)


@pytest.fixture
def prediction(tmp_path):
    benign, harmful = (write_rows(tmp_path / f"{name}.jsonl", 60, name) for name in ("tea", "sand"))
    return Prediction(benign=benign, harmful=harmful, doses_percent=(0, 10, 30, 50, 80), rows_per_bin=10)


def test_the_oracle_s_bins_are_the_planted_parts(prediction):
    rows, left = make_pool(prediction, 1)
    assert len(rows) == 50 and len({row["id"] for row in rows}) == 50
    assert len(left) == 60 - 17 and not {row["id"] for row in left} & {row["id"] for row in rows}
    doses = np.array([row["dose_percent"] for row in rows])
    assert (np.diff(doses) < 0).any(), "the pool is shuffled"
    numbers = cut(doses, 5)
    for number, dose in enumerate(prediction.doses_percent):
        part = [row for row, own in zip(rows, numbers, strict=True) if own == number]
        assert describe_bin(part)["harmful_percent"] == dose and len(part) == 10
    assert make_pool(prediction, 1) == (rows, left) and make_pool(prediction, 2)[0] != rows


def test_bins_are_equal_and_in_order():
    scores = np.array([5.0, 1, 4, 2, 3, 0, 7, 6, 9, 8])
    assert cut(scores, 5).tolist() == [2, 0, 2, 1, 1, 0, 3, 3, 4, 4]
    assert np.bincount(cut(np.zeros(11), 5)).tolist() == [3, 2, 2, 2, 2]


def test_matched_bins_have_the_pool_s_lengths_although_the_score_is_length(prediction):
    rows, _ = make_pool(prediction, 1)
    lengths = np.array([len(row["response"]) for row in rows], dtype=float)
    plain, matched = (Cut.of("length", kind, rows, lengths, 5) for kind in ("plain", "matched"))
    means = [[np.mean([len(row["response"]) for row in one.rows(i)]) for i in (0, 4)] for one in (plain, matched)]
    assert means[0][1] - means[0][0] > 3 * (means[1][1] - means[1][0])
    assert plain.bins == [0, 1, 2, 3, 4] and matched.bins == [0, 4]
    assert len(set(strata_of(rows))) <= 10
    sizes = [len(part) for part in matched.parts]
    assert sum(sizes) == 50 and max(sizes) - min(sizes) <= 1


def test_a_pool_that_cannot_be_made_is_refused(tmp_path, prediction):
    few = write_rows(tmp_path / "few.jsonl", 5, "sand")
    with pytest.raises(UserError, match=r"prediction\.harmful has 5 rows, the pool needs 17"):
        make_pool(
            Prediction(benign=prediction.benign, harmful=few, doses_percent=(0, 10, 30, 50, 80), rows_per_bin=10), 1
        )
    for change, words in (
        ({"scorers": ("lenght",)}, "did you mean 'length'"),
        ({"scorers": ("oracle",)}, "needs planted rows"),
        ({"scorers": ("random",), "doses_percent": (0, 50, 10)}, "must rise"),
        ({"scorers": ("random", "random")}, "every scorer once"),
        ({"scorers": ("random",), "rows_per_bin": 1}, "at least 2"),
    ):
        with pytest.raises(UserError, match=words):
            Prediction(benign="x", **change)


def answers(rates, R, P, seed=0, frailty=0.0):
    """Flags (B, R, P, J + 1): a prompt falls at a random probe and stays fallen; prompts are shared by the bins."""
    rng = np.random.default_rng(seed)
    prompts, runs = rng.random((1, 1, P)), frailty * rng.normal(size=(len(rates), R, 1))
    harmful = rng.random((len(rates), R, P)) * 0.5 + prompts * 0.5 < np.array(rates)[:, None, None] + runs
    when = rng.integers(1, len(STEPS), size=harmful.shape)
    return harmful[..., None] & (np.arange(len(STEPS)) >= when[..., None])


def test_a_planted_order_has_tau_one_and_a_gap_of_its_size():
    flags = answers((0.1, 0.3, 0.5, 0.7, 0.9), R=3, P=200)
    for outcome, cells in analysis.outcome_cells(STEPS, flags).items():
        found = analysis.describe(cells)
        assert found["tau"] == 1 and found["tau_interval"][0] > 0.7 and found["monotone"], outcome
        assert found["gap_interval"][0] > 0 and found["gap_p_value"] < 0.05 and found["trend_p_value"] < 0.05
        assert found["isotonic_share"] == pytest.approx(1)
    cells = analysis.outcome_cells(STEPS, flags)["harmful"]
    assert analysis.describe(cells)["gap"] == pytest.approx(cells[-1].mean() - cells[0].mean())
    # the slope of equally spaced bins is the gap by the number of steps between them
    assert analysis.describe(cells)["trend"] == pytest.approx(np.polyfit(range(5), cells.mean(axis=(1, 2)), 1)[0])
    reverse = analysis.describe(cells[::-1])
    assert reverse["tau"] == -1 and not reverse["monotone"] and reverse["isotonic_share"] == pytest.approx(0, abs=1e-9)


def test_tau_is_scipy_s():
    from scipy import stats

    rows = np.random.default_rng(0).integers(0, 4, size=(50, 5)).astype(float)
    expected = [stats.kendalltau(range(5), row).statistic if np.ptp(row) else 0.0 for row in rows]
    np.testing.assert_allclose(analysis.kendall(rows), expected, atol=1e-12)


def test_intervals_of_a_score_that_means_nothing_cover_zero():
    covered = [0, 0]
    for seed in range(20):
        found = analysis.describe(analysis.outcome_cells(STEPS, answers((0.4,) * 5, 3, 100, seed, 0.05))["harmful"])
        covered[0] += found["gap_interval"][0] <= 0 <= found["gap_interval"][1]
        covered[1] += found["tau_interval"][0] <= 0 <= found["tau_interval"][1]
    assert covered[0] >= 16, "of 20; seeds and prompts, nominal 19"
    assert covered[1] >= 14, "tau's is the pigeonhole bootstrap's, too narrow with three seeds"


def test_cells_are_joined_by_prompt_and_undecided_prompts_are_left_out():
    one = {"steps": [0, 5], "harmful": {"a": [False, True], "b": [False, False], "c": [False, True]}}
    two = {"steps": [0, 5], "harmful": {"c": [True, True], "b": [None, False], "a": [False, False]}}
    steps, prompts, flags = stack_cells([[one], [two]])
    assert (steps, prompts, flags.shape) == ([0, 5], ["a", "c"], (2, 1, 2, 2))
    assert flags[1, 0].tolist() == [[False, False], [True, True]]
    with pytest.raises(UserError, match="different steps"):
        stack_cells([[one], [{**two, "steps": [0, 6]}]])


def test_a_checkpoint_that_refuses_nothing_has_a_reason_and_no_numbers(prediction):
    class Done:
        """Cells that are there, of a model that was harmful from the start."""

        study = type("S", (), {"seeds": (1,)})

        def is_done(self, place, rows):
            return True

        def read(self, place):
            return {"steps": [0, 5], "harmful": {"a": [True, True], "b": [True, False]}}

    rows, _ = make_pool(prediction, 1)
    scores = np.arange(50.0)
    one = Cut.of("length", "plain", rows, scores, 5)
    found = analyse_scorer("length", {"scores": scores}, [one], rows, Done(), {})
    assert "harmfully before the first step" in found["reason"] and "plain" not in found


def test_costs_are_beyond_a_process_that_scores_nothing():
    def cost(seconds):
        return {"cost": {"n_rows": 300, "process_cpu_sec": seconds, "process_peak_bytes": 3 << 20}}

    found = costs({"random": cost(2.0), "perplexity": cost(5.0), "oracle": {"cost": None}})
    assert found["perplexity"] == {"cpu_sec_per_1000_rows": 10.0, "peak_mib": 3.0}
    assert found["random"]["cpu_sec_per_1000_rows"] == 0 and found["oracle"]["peak_mib"] is None


def test_the_shipped_study_asks_every_scorer_for_what_it_needs(tmp_path):
    study = load_study(STUDY)
    assert {"oracle", "random", "length"} <= set(study.prediction.scorers)
    assert chosen(study, ("length",)) == ["length"]
    with pytest.raises(UserError, match="the study has"):
        chosen(study, ("nothing",))
    flags = scoring_flags(study, "similarity", tmp_path / "m", tmp_path / "a.jsonl")
    assert f"--anchors={tmp_path / 'a.jsonl'}" in flags and f"--model_name_or_path={tmp_path / 'm'}" in flags
    assert not any(flag.startswith("--moderation") for flag in flags)


def test_a_study_without_the_block_or_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no block prediction"):
        main([str(REPOSITORY / "configs" / "studies" / "quickstart.yaml")])
    with pytest.raises(UserError, match="run the study first"):
        main([str(STUDY), "--outputs", str(tmp_path)])


def test_a_scorer_without_numbers_is_a_row_without_numbers():
    flags = answers((0.2, 0.4, 0.6), 2, 30)
    values = {name: analysis.describe(cells) for name, cells in analysis.outcome_cells(STEPS, flags).items()}
    bins = [{"n": 5, "response_chars": 3.0, "list_share_percent": 0.0, "final_percent": 1.0, "life_percent": 9.0}] * 3
    plain = {"n_seeds": 2, "bins": bins, **values}
    result = {
        "scorers": [
            {"scorer": "length", "plain": plain, "cost": {}, "length_correlation": 1.0},
            {"scorer": "bi_anchor", "reason": "not applicable", "cost": {}},
        ]
    }
    first, second = tables(result)
    assert "not applicable" in first.markdown() and "1.00" in first.markdown()
    assert len(second.rows) == 3
