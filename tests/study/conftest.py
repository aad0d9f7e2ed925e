"""One finished toy study, with its tables, figures and report, for all tests that only look at it."""

from __future__ import annotations

import pytest

from .fake_study import finished_study, write_results

SUBSETS = ["high", "low", "random", "high_length_matched", "low_length_matched"]


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A finished study with its tables, figures and report."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("study")
        grid, config = finished_study(folder, subsets=SUBSETS)
        paths = write_results(patch, grid, config)
    return grid, config, paths
