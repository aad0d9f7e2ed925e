"""The audit on planted data: the right variant, percentiles by hand, no text shown that was not asked for."""

import importlib.util
import json
import re

import numpy as np
import pytest
import torch
from toys import REPOSITORY

from guardrail.core.errors import UserError
from guardrail.similarity.audit import analyse
from guardrail.similarity.audit.page import render_page
from guardrail.similarity.audit.sets import parse_set

WIDTH = 12
SCRIPT = REPOSITORY / "similarity" / "audit.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("audit_entry", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def around(direction, n, spread, seed):
    noise = np.random.default_rng(seed).normal(size=(n, WIDTH))
    return torch.from_numpy((np.eye(WIDTH)[direction] + spread * noise).astype(np.float32))


@pytest.fixture
def stored(tmp_path):
    """Customer along axis 0; a near, a middling and a far alignment set; two reference sets, one far, one near."""
    sets = {"customer": around(0, 40, 0.1, 0), "near": around(0, 60, 0.2, 1), "far": around(1, 30, 0.2, 2)}
    sets["middle"] = torch.cat([around(0, 20, 0.2, 3), around(1, 20, 0.2, 4)])
    sets |= {"reference_far": around(2, 50, 0.1, 5), "reference_near": around(0, 50, 0.05, 6)}
    for name, matrix in sets.items():
        torch.save(matrix, tmp_path / f"{name}.pt")
    return tmp_path


def command(folder, *extra, variants=("near", "middle", "far"), references=("reference_far", "reference_near")):
    out = ["--customer", f"acme={folder / 'customer.pt'}", "--output_dir", str(folder / "out"), "--bootstrap", "50"]
    for name in variants:
        out += ["--alignment", f"{name}={folder / name}.pt"]
    for name in references:
        out += ["--reference", f"{name}={folder / name}.pt"]
    return [*out, *extra]


def test_without_a_forecast_sets_are_ranked_and_nothing_is_predicted(main, stored):
    result = main(command(stored))
    assert result["least_similar"] == "far" and result["predicted_best"] is None and result["confidence"] == "stable"
    assert result["similarity"]["near"] > result["similarity"]["middle"] > result["similarity"]["far"]
    audit = json.loads((stored / "out" / "audit.json").read_text())
    assert audit["verdict"]["bootstrap_fraction"] == 1 and audit["verdict"]["agreement_fraction"] == 1
    near = next(v for v in audit["variants"] if v["name"] == "near")
    assert near["interval"][0] < near["similarity"] < near["interval"][1]
    assert near["references"]["sets_below"] == 1, "less similar than reference_near, more than reference_far"
    assert audit["run"]["seed"] == 42 and audit["run"]["n"] == 40
    assert audit["summary"][0].startswith("No prediction")
    assert "predicted to hold" not in (stored / "out" / "audit.html").read_text().lower()


def test_sizes_of_the_variants_do_not_decide(main, stored):
    """The far set forty times over is still the far set: the mean is over its own rows."""
    torch.save(torch.load(stored / "far.pt", weights_only=True).repeat(40, 1), stored / "far.pt")
    assert main(command(stored))["least_similar"] == "far"


def test_two_halves_of_one_set_are_no_clear_choice(main, stored):
    matrix = around(0, 200, 0.2, 7)
    torch.save(matrix[::2].clone(), stored / "near.pt")
    torch.save(matrix[1::2].clone(), stored / "far.pt")
    assert main(command(stored, variants=("near", "far")))["confidence"] != "stable"


def test_one_variant_gives_numbers_and_no_choice(main, stored):
    result = main(command(stored, variants=("near",), references=()))
    assert result["least_similar"] is None and result["confidence"] == "no choice"
    page = (stored / "out" / "audit.html").read_text()
    assert "no percentile" in page


def test_row_percentile_by_hand():
    assert analyse.row_percentile(np.asarray([2.0, 2.0]), [np.asarray([1.0, 2.0, 3.0, 4.0])]) == 37.5
    # each reference set weighs the same, whatever its size: (100 + 0) / 2
    assert analyse.row_percentile(np.asarray([5.0]), [np.ones(1000), np.full(3, 9.0)]) == 50


def test_measures_by_hand():
    similarity = np.asarray([[0.1, 0.9, 0.5], [0.2, 0.2, 0.2]])
    np.testing.assert_allclose(analyse.measure(similarity, "max"), [0.9, 0.2])
    np.testing.assert_allclose(analyse.measure(similarity, "mean"), [0.5, 0.2])
    np.testing.assert_allclose(analyse.measure(np.arange(12.0)[None], "top10"), [6.5])


@pytest.fixture
def forecast(stored):
    """forecast.json of planted studies in which the change grows with similarity, as far as bare tensors go."""
    from guardrail.similarity.forecast.file import FORMAT, VERSION
    from guardrail.similarity.forecast.model import fit_outcome
    from guardrail.similarity.forecast.observations import Observation

    generator = np.random.default_rng(0)
    rows = []
    for task in range(12):
        for arm in range(4):
            values = {"similarity": generator.uniform(-0.2, 1.1), "diversity": generator.uniform(1, 14)}
            change = {"delta_points": 40 * values["similarity"] + generator.normal()}
            rows.append(Observation("s", "p", f"t{task}", str(arm), values, change))
    fitted = [fit_outcome(rows, name, ("similarity", "diversity")) for name in ("delta_points", "life_percent")]
    document = {
        "format": FORMAT,
        "version": VERSION,
        "level": 0.9,
        "models": [*fitted, {**fitted[1], "outcome": "log_hazard"}],
    }
    document |= {"studies": [{"study": "s", "n_arms": 48}], "extraction": {"model": "m", "model_hash": None}}
    (stored / "forecast.json").write_text(json.dumps(document))
    return stored / "forecast.json"


def test_with_a_forecast_the_page_shows_forecast_interval_and_skill(main, stored, forecast):
    assert main(command(stored))["predicted_best"] is None
    result = main(command(stored, "--forecast", str(forecast)))
    assert result["predicted_best"] == "far" and result["reused"] is False
    audit = json.loads((stored / "out" / "audit.json").read_text())
    near, far = (next(v for v in audit["variants"] if v["name"] == name)["forecast"] for name in ("near", "far"))
    low, high = near["delta_points"]["interval"]
    assert low < near["delta_points"]["forecast"] < high
    assert far["delta_points"]["forecast"] < near["delta_points"]["forecast"]
    assert near["delta_points"]["skill"]["task"]["value"] > 0.9 and near["life_percent"]["abstains"]
    page = (stored / "out" / "audit.html").read_text()
    for words in ("Forecast to hold best: far", "90% interval", "skill ", "No prediction"):
        assert (words in page) == (words != "No prediction")


def test_a_forecast_that_abstains_prefers_nothing_and_says_why(main, stored, forecast):
    document = json.loads(forecast.read_text())
    document["models"][0]["seen"] = [[value - 9 for value in row] for row in document["models"][0]["seen"]]
    forecast.write_text(json.dumps(document))
    assert main(command(stored, "--forecast", str(forecast)))["predicted_best"] is None
    summary = json.loads((stored / "out" / "audit.json").read_text())["summary"]
    assert summary[0].startswith("No forecast for near: similarity is") and "seen were" in summary[0]


def test_the_value_before_needs_a_forecast_and_a_set(main, stored, forecast):
    with pytest.raises(UserError, match="--before is used by a forecast only"):
        main(command(stored, "--before", "near=3"))
    with pytest.raises(UserError, match="unknown alignment set in --before"):
        main(command(stored, "--forecast", str(forecast), "--before", "neer=3"))


def test_unchanged_is_reused_and_changed_is_not(main, stored):
    assert main(command(stored))["reused"] is False
    assert main(command(stored))["reused"] is True
    torch.save(around(3, 30, 0.2, 9), stored / "far.pt")
    assert main(command(stored))["reused"] is False


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--alignment", "near=/nowhere.pt"], "two alignment sets are named 'near'"),
        (["--alignment", "x=/nowhere.pt"], "no such file"),
        (["--layer", "1"], "no --model_name_or_path"),
        (["--view", "layer1_eos"], "available: given"),
        (["--customr", "x"], "did you mean '--customer'"),
    ],
)
def test_bad_input(main, stored, extra, message):
    with pytest.raises(UserError, match=message):
        main(command(stored, *extra))
    assert not (stored / "out" / "audit.json").exists()


def test_rows_without_a_model_and_other_widths_are_refused(main, stored):
    (stored / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    with pytest.raises(UserError, match="--model_name_or_path says which model"):
        main(command(stored, "--reference", f"rows={stored / 'rows.jsonl'}"))
    torch.save(torch.ones(3, 5), stored / "near.pt")
    with pytest.raises(UserError, match="width"):
        main(command(stored))


def test_names_of_sets():
    assert parse_set("reference", "a=b/c.jsonl::train").split == "train"
    assert parse_set("reference", "b/c.jsonl").name == "c"
    assert parse_set("reference", "datasets/sandbox::list").name == "list"
    with pytest.raises(UserError, match="NAME=PATH"):
        parse_set("reference", "a=")


def write_rows(path, n, word, seed):
    generator = np.random.default_rng(seed)
    with open(path, "w") as handle:
        for i in range(n):
            words = " ".join([word, *generator.choice(["tea", "boat", "<b>sand</b>"], 1 + int(generator.integers(8)))])
            handle.write(json.dumps({"id": f"{path.stem}-{i}", "prompt": f"Say {i}", "response": words}) + "\n")
    return path


@pytest.fixture
def from_rows(tmp_path, tiny_model):
    """The command of the docstring, on rows and a causal LM."""
    names = {"acme": "river", "a": "river", "b": "paint", "alpaca": "wood"}
    paths = {name: write_rows(tmp_path / f"{name}.jsonl", 14, word, i) for i, (name, word) in enumerate(names.items())}
    return [
        *("--customer", f"acme={paths['acme']}", "--alignment", f"a={paths['a']}", "--alignment", f"b={paths['b']}"),
        *("--reference", f"alpaca={paths['alpaca']}", "--model_name_or_path", str(tiny_model)),
        *("--output_dir", str(tmp_path / "out"), "--bootstrap", "20", "--max_rows", "10"),
    ]


def test_from_rows_texts_are_redacted_unless_asked_for(main, from_rows, tmp_path, capsys):
    main(from_rows)
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["views"][0] == "layer2_eos" and len(audit["views"]) == 6, "layers 2 and 1, three positions"
    assert audit["customer"]["n"] == 10 and audit["customer"]["n_total"] == 14
    assert audit["verdict"]["n_choices"] == 18
    page = (tmp_path / "out" / "audit.html").read_text()
    shown = capsys.readouterr()
    for text in (page, json.dumps(audit), shown.out, shown.err):
        assert "river " not in text
    assert main([*from_rows, "--show_text", "True"])["reused"] is False
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "river " in page and "&lt;b&gt;sand" in page and "<b>sand" not in page, "row texts are escaped"
    assert "river " not in capsys.readouterr().err


def test_the_page_is_one_file_without_network_or_scripts(main, from_rows, tmp_path):
    main(from_rows)
    page = (tmp_path / "out" / "audit.html").read_text()
    assert page.count("<img") == page.count("data:image/png;base64,") == 4
    assert not re.search(r"<script|https?://|@import|url\(", page)
    for name in ("acme", "alpaca"):
        assert name in page


def test_the_page_fails_loudly_on_a_missing_number():
    import jinja2

    with pytest.raises(jinja2.UndefinedError):
        render_page({"customer": {"name": "x"}}, [], "", False)
