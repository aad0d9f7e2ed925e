"""What transformers exports comes from the cache as the scan gives it; where the cache is no good, from the scan."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardrail.models.import_structure import cache_file, decode, encode, remembered


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """A folder that looks like transformers'."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "transformers" / "models"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "../__init__.py", "../modeling_utils.py"):
        (folder / name).touch()
    return folder


def test_transformers_own_structure_survives():
    import transformers
    from transformers.utils.import_utils import create_import_structure_from_path

    structure = create_import_structure_from_path(Path(transformers.__file__).parent / "models")
    assert decode(encode(structure)) == structure
    assert "LlamaForCausalLM" in structure["llama"][frozenset({"torch"})]["modeling_llama"]


def test_it_is_scanned_once_and_again_when_the_package_or_the_file_is_another(models):
    calls = []

    def scan(place):
        calls.append(Path(place).name)
        return {"llama": {frozenset({"torch"}): {"modeling_llama": {f"Llama{len(calls)}"}}}}

    found = remembered(scan)
    first = found(models)
    assert found(models) == first and calls == ["models"]
    cache_file(models).write_text('{"folders": {')
    assert found(models) != first and calls == ["models"] * 2
    (models / "new").mkdir()  # another state of the package
    found(models)
    assert calls == ["models"] * 3
    found(models / "llama")
    assert calls[3:] == ["llama"], "a part is not what is remembered"


def test_a_cache_that_cannot_be_written_changes_nothing(models, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(models / "__init__.py"))
    assert remembered(lambda place: {"a": {frozenset(): {"b": {"C"}}}})(models) == {"a": {frozenset(): {"b": {"C"}}}}
