"""A hub name as a folder on this machine, so that everything that is checked in a folder is checked in it too.

    folder = local_checkpoint("PKU-Alignment/beaver-dam-7b")                    # all that it takes to load the model
    folder = local_checkpoint("meta-llama/Llama-2-7b-hf", weights=False)        # configuration and tokenizer only

Downloads go through the hub's client into its cache. Of several weight formats the one that transformers would take is
downloaded, once: Llama-2 is published as safetensors and as torch files, 13 GB each. A cut connection is taken up where
it broke off; a killed download keeps its whole files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.hub import MAIN, cached_commit, hub_error, is_offline, study_commit
from guardrail.models.adapters import read_adapter
from guardrail.models.checkpoints import WEIGHT_FILES, WEIGHT_SUFFIXES, read_object, resolve_checkpoint

SMALL = ["*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py"]
NO_FOLDERS = ["*/*"]  # Meta's originals, ONNX and the like; a checkpoint's own files lie at the top
INDEX = ".index.json"


def local_checkpoint(name: str | Path, weights: bool = True) -> str:
    """The folder of a model: the resolved one, or what the hub has under ``name``, downloaded where it is not yet.

    Raises ``UserError``: neither a folder nor a hub name; gated, private, missing; the hub does not work; no weights.
    """
    resolved = resolve_checkpoint(name)
    if Path(resolved).is_dir():
        adapter = None if weights or (Path(resolved) / "config.json").is_file() else read_adapter(resolved)
        return resolved if adapter is None else local_checkpoint(adapter.base, weights=False)
    commit = study_commit("model", resolved)
    folder = _download(resolved, commit, SMALL)
    if not (folder / "config.json").is_file():
        raise UserError(f"the hub's {resolved} is no model: it has no config.json; check the name")
    if weights:
        folder = _download(resolved, folder.name, _weight_files(resolved, folder))
    return str(folder)


def read_config(name: str | Path) -> dict[str, Any]:
    """``config.json`` of a model folder or of a hub model. Raises ``UserError``: as above, or no JSON object."""
    return read_object(Path(local_checkpoint(name, weights=False)) / "config.json")


def _weight_files(name: str, folder: Path) -> list[str]:
    """Weights of the format that transformers looks for first, of those that the hub (or the cache) has."""
    there = _listing(name, folder)
    found = next((file for file in WEIGHT_FILES if file in there), None)
    if found is None:
        others = sorted(file for file in there if "/" not in file and file.endswith(WEIGHT_SUFFIXES))
        if not others and is_offline():
            raise UserError(f"the weights of {name} are not in the cache and the hub is off (HF_HUB_OFFLINE=1)")
        if not others:
            raise UserError(
                f"the hub's {name} has no weights (*.safetensors, *.bin); is it an adapter or a GGUF model?"
            )
        return others
    if not found.endswith(INDEX):
        return [found]
    shards = read_object(folder / found).get("weight_map")
    return [found, *sorted(set(map(str, shards.values())))] if isinstance(shards, dict) else [found]


def _listing(name: str, folder: Path) -> set[str]:
    """The files of the commit, from the hub; without it, those of the cache."""
    if not is_offline():
        from huggingface_hub import HfApi

        try:
            info = HfApi().model_info(name, revision=folder.name)
            return {one.rfilename for one in info.siblings or []}
        except Exception as error:  # the client raises a dozen types; what lies in the cache may do
            if not any((folder / file).is_file() for file in WEIGHT_FILES):
                raise hub_error(error, "model", name, "give a folder") from error
    return {file.name for file in folder.iterdir()}


def _download(name: str, commit: str | None, patterns: list[str]) -> Path:
    """The snapshot's folder with the files that match; its name is the commit."""
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"revision": commit, "allow_patterns": patterns, "ignore_patterns": NO_FOLDERS}
    if is_offline():
        if cached_commit("model", name) is None and commit is None:
            raise UserError(f"{name} is not in the cache and the hub is off (HF_HUB_OFFLINE=1); give a folder")
        options |= {"local_files_only": True, "revision": commit or MAIN}
    try:
        return Path(snapshot_download(name, **options))
    except Exception as error:  # the client raises a dozen types; the reason is what the user needs
        raise hub_error(error, "model", name, "give a folder", commit) from error
