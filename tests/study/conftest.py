"""One finished toy study, with its tables, figures and report, for all tests that only look at it; no calibration."""

from __future__ import annotations

import pytest

from .fake_study import finished_study, write_results

SUBSETS = ["high", "low", "random", "high_length_matched", "low_length_matched"]


@pytest.fixture(scope="session")
def empty_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def no_calibration_of_this_machine(empty_cache, monkeypatch):
    """Plans of tests rest on the assumed rates, whatever somebody has calibrated here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty_cache))


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A finished study with its tables, figures and report."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("study")
        grid, config = finished_study(folder, subsets=SUBSETS)
        paths = write_results(patch, grid, config)
    return grid, config, paths
