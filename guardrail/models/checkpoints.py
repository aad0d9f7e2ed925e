"""From what the user names to a loadable model folder: is it whole, and what is its content hash?

A path may be the folder itself, an output folder holding ``slice_end/`` (align-anything's habit), or a hub name. A
folder with an adapter (`guardrail.models.adapters`) is a checkpoint like any other.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

from guardrail.core.errors import UserError
from guardrail.core.files import hash_file, hash_json, write_json
from guardrail.core.hub import is_offline, refresh_commit, repository_cache, study_commit
from guardrail.models.adapters import WEIGHT_FILE, check_base, is_adapter, read_adapter

SLICE = "slice_end"
WEIGHT_SUFFIXES = (".safetensors", ".bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
SENTENCEPIECE_FILE = "tokenizer.model"
VOCABULARY_FILES = ("tokenizer.json", SENTENCEPIECE_FILE, "vocab.json", "vocab.txt")  # one of them holds the tokens
OLD_TOKENIZER_FILES = ("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json")
SENTENCEPIECE_PACKAGES = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
# The files that transformers looks for, in its order: whole, or an index that names shards.
WEIGHT_FILES = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
REDO = "copy or download the checkpoint again (config.json and weights must belong together)"


def resolve_checkpoint(name: str | Path) -> str:
    """The loadable folder, or the hub name unchanged. Raises ``UserError`` when it can be neither."""
    path = Path(name).expanduser()
    if path.is_dir():
        for folder in (path, path / SLICE):
            if (folder / "config.json").is_file() or is_adapter(folder):
                if not any(file.name.endswith(WEIGHT_SUFFIXES) for file in folder.iterdir()):
                    raise UserError(f"{folder} has a config.json but no weights (*.safetensors); is it complete?")
                return str(folder)
        raise UserError(f"{path} is no model folder: no config.json in it nor in {path / SLICE}")
    text = str(name)
    if path.is_file() or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise UserError(f"no such model folder: {name}; expected a Hugging Face folder or a hub name like org/model")
    if is_offline() and not repository_cache("model", text).is_dir():
        raise UserError(f"no model folder {name!r} here, and the hub is off (HF_HUB_OFFLINE=1); give a folder")
    return text


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; ``UserError`` names the file and the line."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not valid JSON ({error.msg}); {REDO}") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"cannot read {file}: {error}; {REDO}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a JSON object, got {type(value).__name__}; {REDO}")
    return value


def check_checkpoint_files(name: str | Path) -> None:
    """Refuse a local model folder whose files are broken or incomplete; costs milliseconds, reads no weights.

    Checks what transformers and vLLM would read: ``config.json`` and the tokenizer's JSON files are JSON objects, every
    shard that an index names is there and holds the tensors that the index promises, every safetensors file is as long
    as its header says. Which tensors a model *needs* is checked where one is loaded (`guardrail.models.loading`).
    Hub names are left to `guardrail.models.fetch`, whose folders come here.
    """
    resolved = Path(resolve_checkpoint(name))
    if not resolved.is_dir():
        return
    if (adapter := read_adapter(resolved)) is not None:
        _check_weights(resolved / WEIGHT_FILE)
        check_tokenizer_files(resolved)
        check_checkpoint_files(adapter.base)
        check_base(adapter, hash_checkpoint(adapter.base))
        return
    read_object(resolved / "config.json")
    check_tokenizer_files(resolved)
    found = next((resolved / file for file in WEIGHT_FILES if (resolved / file).is_file()), None)
    if found is None:
        return  # a name of its own (a variant, an adapter): transformers knows it, or says so
    if not found.name.endswith(".index.json"):
        _check_weights(found)
        return
    shards: dict[str, set[str]] = {}
    weight_map = read_object(found).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise UserError(f"{found}: expected weight_map, an object from tensor to file; {REDO}")
    for tensor, shard in weight_map.items():
        shards.setdefault(shard, set()).add(tensor)
    for shard, tensors in sorted(shards.items()):
        file = resolved / shard
        if not file.is_file():
            raise UserError(f"{found} names {shard}, which is not there; {REDO}")
        there = _check_weights(file)
        absent = sorted(tensors - there) if there is not None else []
        if absent:
            raise UserError(f"{file} lacks {shorten(absent)}, which {found.name} says it holds; {REDO}")


def check_tokenizer_files(folder: Path, with_packages: bool = False) -> None:
    """Refuse a tokenizer without its vocabulary, with a broken file or (``with_packages``) that cannot be read here.

    Without these checks, transformers 5 makes a tokenizer of three tokens where there is no vocabulary, one of as many
    tokens as are left where ``tokenizer.model`` is cut off, and advises another library where sentencepiece is missing.
    """
    for name in TOKENIZER_FILES:
        if name.endswith(".json") and (folder / name).is_file():
            read_object(folder / name)
    file = folder / SENTENCEPIECE_FILE
    if file.is_file() and not (folder / "tokenizer.json").is_file() and not _is_tiktoken(file):
        _check_sentencepiece(file)
        if with_packages:
            absent = [name for name, module in SENTENCEPIECE_PACKAGES.items() if not _importable(module)]
            if absent:
                raise UserError(
                    f"the tokenizer of {folder} is {SENTENCEPIECE_FILE} alone, which needs {' and '.join(absent)}; "
                    f"run: pip install {' '.join(absent)}"
                )


def require_vocabulary(folder: Path) -> None:
    """Refuse a folder that holds a class name for a tokenizer at most, and no tokens."""
    config = folder / "tokenizer_config.json"
    own_class = config.is_file() and "auto_map" in read_object(config)  # code of its own may name any file
    if not own_class and not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise UserError(
            f"the tokenizer of {folder} has no vocabulary; expected one of {', '.join(VOCABULARY_FILES)}; {REDO}"
        )


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # the package that it lies in is missing, or is blocked
        return False


def _is_tiktoken(file: Path) -> bool:
    """Lines of a base64 token and its rank: another format that has gone by the same name."""
    with open(file, "rb") as handle:
        return re.match(rb"[A-Za-z0-9+/]+=* \d+\n", handle.read(200)) is not None


def _check_sentencepiece(file: Path) -> None:
    """Walk the model's top level (a protocol buffer: pieces, trainer's settings, normaliser) to its very end."""
    data = file.read_bytes()
    place, found = 0, set()
    try:
        while place < len(data):
            tag, place = _varint(data, place)
            if tag & 7 != 2:  # every top-level field is a message: a length and as many bytes
                raise ValueError(f"field type {tag & 7}")
            length, place = _varint(data, place)
            place += length
            found.add(tag >> 3)
    except (ValueError, IndexError):
        place = -1
    if place != len(data) or not {1, 2} <= found:  # the settings come after the last piece
        raise UserError(f"{file} is no sentencepiece model or is cut off ({len(data)} bytes); {REDO}")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A protocol buffer's number at ``place`` and the place after it. ``IndexError`` at the end of the data."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _check_weights(file: Path) -> set[str] | None:
    """Names of the tensors in a safetensors file that is as long as its header says; None for another format."""
    if file.suffix != ".safetensors":
        with open(file, "rb") as handle:
            start = handle.read(1)
        # torch's format is a zip archive whose directory is at the end; before that, pickles
        if start != b"\x80" and not zipfile.is_zipfile(file):
            raise UserError(f"{file} is no torch weight file or is cut off; {REDO}")
        return None
    size = file.stat().st_size
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise UserError(f"{file} is no safetensors file or is cut off ({size} bytes); {REDO}")
        try:
            header = json.loads(handle.read(length))
            tensors = {key: value for key, value in header.items() if key != "__metadata__"}
            end = max((int(value["data_offsets"][1]) for value in tensors.values()), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise UserError(f"{file} has a broken safetensors header; {REDO}") from error
    if end != size - 8 - length:
        raise UserError(f"{file} is cut off or damaged: {size - 8 - length} bytes of weights, expected {end}; {REDO}")
    return set(tensors)


def shorten(names: list[str], limit: int = 3) -> str:
    """``a, b, c and 5 more``."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def hash_hub_model(name: str) -> str:
    """What the hub has under ``name``: its commit is content. Outside of a study's job the hub is asked for the newest,
    which is what would be downloaded."""
    return hash_json({"hub": name, "commit": study_commit("model", name) or refresh_commit("model", name)})


def hash_checkpoint(name: str | Path) -> str:
    """A 16-character hash of configuration, tokenizer and weights of a local folder; of name and commit for the hub.

    Weights are hashed once per file state: the result is kept in the user's cache keyed on path, size and time.
    """
    resolved = Path(resolve_checkpoint(name))
    if not resolved.is_dir():
        return hash_hub_model(str(resolved))
    # the generation configuration says which tokens end an answer; the last ones are older forms of a tokenizer
    names = ("config.json", "generation_config.json", *TOKENIZER_FILES, *OLD_TOKENIZER_FILES)
    files = [f for f in sorted(resolved.iterdir()) if f.name in names or f.name.endswith(WEIGHT_SUFFIXES)]
    cache_file = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "guardrail" / "hashes.json"
    try:
        cache = json.loads(cache_file.read_text())
    except (OSError, ValueError):
        cache = {}
    parts: dict[str, Any] = {}
    changed = False
    if (adapter := read_adapter(resolved)) is not None:  # wherever its base lies
        parts["adapter"] = [adapter.rank, adapter.alpha, hash_checkpoint(adapter.base)]
    for file in files:
        stat = file.stat()
        key = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in cache:
            cache[key] = hash_file(file)
            changed = changed or stat.st_size > 1 << 26
        parts[file.name] = cache[key]
    if changed:  # only worth keeping for large files
        with contextlib.suppress(OSError, UserError):  # a read-only home costs a re-hash, nothing else
            write_json(cache_file, cache)
    return hash_json(parts)
