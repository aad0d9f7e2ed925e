"""Load representations: from a store, a ``.pt``, ``.npy`` or ``.safetensors`` file, or a folder of ``reps-*.pt``.

A ``reps-full.pt`` inside a store is its export: the store's manifest (ids, model, options) comes along.
`align_rows` brings a matrix and its rows together; `check_comparable` refuses matrices of different kinds.
Nothing is unpickled: ``torch.load(weights_only=True)``, ``numpy.load(allow_pickle=False)``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.core.errors import UserError, unknown
from guardrail.core.files import atomic_path, hash_file
from guardrail.data.rows import Row, hash_rows
from guardrail.similarity.representations import store as stores

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pt", ".npy", ".safetensors")
FINITE_ROWS = 4096  # rows looked at in one go
PIECE = re.compile(r"^reps-?(\d+)\.pt$")


@dataclass(frozen=True)
class Representations:
    """``matrix`` is (rows, D), float32, bfloat16 or float16, in the order of ``ids`` (``None``: of the data file).

    ``manifest`` is the store's, or ``None`` for a bare tensor; ``n_tokens`` are the lengths the model saw.
    """

    path: str
    matrix: torch.Tensor
    ids: list[str] | None = None
    n_tokens: list[int] | None = None
    manifest: dict[str, Any] | None = None
    view: str | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.matrix.shape[0]

    @property
    def dim(self) -> int:
        return self.matrix.shape[1]

    def describe(self) -> dict[str, Any]:
        """Where the numbers come from, for a result's ``run`` block."""
        out: dict[str, Any] = {"path": self.path, "n": len(self), "dim": self.dim, "view": self.view}
        if self.manifest is not None:
            out |= {"model": self.manifest["model"], "data_hash": self.manifest["data_hash"]}
            out |= {"options": self.manifest["options"], "fingerprint": self.manifest["fingerprint"]}
        return out


def locate(path: str | Path, stack: bool = False) -> tuple[str, Path]:
    """What ``path`` is: ``("store", folder)``, ``("file", file)`` or ``("pieces", folder)``; cheap, loads nothing.

    With ``stack``, the ``reps-*.pt`` pieces beside ``path`` are joined into it first (see ``stack_pieces``).
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if stack:
        if stores.read_manifest(folder) is not None:
            raise UserError(
                f"--stack_vector_tf True: {folder} is a finished store, there is nothing to stack; use False"
            )
        return "file", stack_pieces(folder, path if path.suffix == ".pt" else folder / stores.EXPORT)
    if not path.exists():
        if path.name == stores.EXPORT and folder.is_dir() and stores.read_manifest(folder) is None:
            hint = "its extraction has not finished" if list(folder.glob("shards-*")) else _piece_hint(folder)
            raise UserError(f"no such file: {path}; {hint}")
        raise UserError(
            f"no such file or folder: {path}; expected a store, {', '.join(SUFFIXES)} or a folder of reps-*.pt"
        )
    if path.name == stores.EXPORT and stores.read_manifest(folder) is not None:
        return "store", folder
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(
                f"cannot read representations from {path}; expected one of {', '.join(SUFFIXES)} or a store"
            )
        return "file", path
    if stores.read_manifest(path) is not None:
        return "store", path
    if list(path.glob("shards-*")):
        raise UserError(
            f"{path} is an unfinished store (no {stores.MANIFEST}); run get_representation.py again, it goes on"
        )
    if (path / stores.EXPORT).is_file():
        return "file", path / stores.EXPORT
    if _pieces(path):
        return "pieces", path
    raise UserError(f"{path} holds no representations: no {stores.MANIFEST}, {stores.EXPORT} or reps-<number>.pt in it")


def _piece_hint(folder: Path) -> str:
    return (
        "stack the pieces there with --stack_vector_tf True" if _pieces(folder) else "run get_representation.py first"
    )


def identify(path: str | Path, stack: bool = False) -> str:
    """A hash that changes when the representations do; reads a store's manifest only."""
    kind, place = locate(path, stack)
    if kind == "store":
        manifest = stores.read_manifest(place)
        assert manifest is not None
        return manifest["fingerprint"]
    if kind == "file":
        return hash_file(place)
    return "-".join(hash_file(piece) for piece in _pieces(place))


def read_representations(path: str | Path, view: str | None = None, stack: bool = False) -> Representations:
    """Load one matrix of representations.

    Args:
        view: which of a store's matrices (``layer16_eos``); the first one by default. Refused for bare tensors.

    Raises ``UserError``: nothing readable there, unfinished store, unknown view, not a 2-D tensor of numbers, empty.
    Rows with NaN or infinity are refused with their numbers.
    """
    kind, place = locate(path, stack)
    if kind == "store":
        return _finite(_read_store(place, view))
    if view is not None:
        raise UserError(f"--view {view} needs a representation store, {path} is a bare tensor; leave --view out")
    if kind == "pieces":
        return _finite(Representations(str(path), _join([_load_pt(piece) for piece in _pieces(place)], place)))
    loaders = {".pt": _load_pt, ".npy": _load_npy, ".safetensors": _load_safetensors}
    return _finite(Representations(str(path), loaders[place.suffix](place)))


def _finite(reps: Representations) -> Representations:
    import torch

    bad: list[int] = []
    for start in range(0, len(reps), FINITE_ROWS):
        finite = torch.isfinite(reps.matrix[start : start + FINITE_ROWS]).all(dim=1)
        if not bool(finite.all()):
            bad += [start + row for row in (~finite).nonzero().flatten().tolist()]
    if bad:
        shown = ", ".join(str(row) for row in bad[:5])
        raise UserError(
            f"{reps.path}: {len(bad)} of {len(reps)} representations hold NaN or infinity (rows {shown}, counted from "
            "0); extract them again with --torch_dtype bfloat16 or float32"
        )
    return reps


def _read_store(folder: Path, view: str | None) -> Representations:
    manifest = stores.read_manifest(folder)
    assert manifest is not None
    view = view or manifest["views"][0]
    if view not in manifest["views"]:
        raise unknown(f"view of {folder}:", view, manifest["views"])
    export = folder / stores.EXPORT
    if view == manifest["views"][0] and export.is_file():
        matrix = _load_pt(export)  # memory-mapped: no copy
    else:
        matrix = stores.read_view(folder, manifest, view)
    if tuple(matrix.shape) != (manifest["n_rows"], manifest["dim"]):
        raise UserError(
            f"{export} has shape {tuple(matrix.shape)}, its manifest says ({manifest['n_rows']}, {manifest['dim']}): "
            "one of the two was replaced; extract again"
        )
    index = stores.read_row_index(folder)
    if len(index["id"]) != manifest["n_rows"]:
        raise UserError(
            f"{folder / stores.ROWS} has {len(index['id'])} rows, its manifest says {manifest['n_rows']}; extract again"
        )
    return Representations(str(folder), matrix, index["id"], index["n_tokens"], manifest, view)


def _pieces(folder: Path) -> list[Path]:
    """``reps-100.pt``, ``reps-200.pt``, ... in numeric order; never ``reps-full.pt``, which would double the rows."""
    found = [(int(match.group(1)), file) for file in folder.iterdir() if (match := PIECE.match(file.name))]
    return [file for _, file in sorted(found)]


def stack_pieces(folder: Path, target: Path) -> Path:
    """Join a folder's ``reps-<number>.pt`` into ``target``; doing it twice changes nothing. Returns ``target``."""
    import torch

    if not folder.is_dir():
        raise UserError(f"--stack_vector_tf True: no such folder: {folder}")
    pieces = _pieces(folder)
    if not pieces:
        raise UserError(f"--stack_vector_tf True: no reps-<number>.pt in {folder}; use --stack_vector_tf False")
    matrix = _join([_load_pt(piece) for piece in pieces], folder)
    with atomic_path(target) as temporary:
        torch.save(matrix, temporary)
    return target


def _join(pieces: list[torch.Tensor], folder: Path) -> torch.Tensor:
    import torch

    widths = sorted({piece.shape[1] for piece in pieces})
    if len(widths) > 1:
        raise UserError(f"the reps-*.pt in {folder} have different widths {widths}; are they of one model?")
    return torch.cat(pieces)


def _check(matrix: Any, path: Path) -> torch.Tensor:
    import torch

    if not isinstance(matrix, torch.Tensor) or matrix.ndim != 2 or not matrix.dtype.is_floating_point:
        what = (
            f"shape {tuple(matrix.shape)}, {matrix.dtype}"
            if isinstance(matrix, torch.Tensor)
            else type(matrix).__name__
        )
        raise UserError(f"{path} does not hold one 2-D floating-point tensor (rows, width), but {what}")
    if matrix.shape[0] == 0 or matrix.shape[1] == 0:
        raise UserError(f"{path} is empty: shape {tuple(matrix.shape)}; expected at least one row and one column")
    return matrix if matrix.dtype != torch.float64 else matrix.float()


def _unreadable(path: Path, what: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
    return UserError(f"cannot read {path} as {what}: {reason}; expected one 2-D matrix, extract it again")


def _load_pt(path: Path) -> torch.Tensor:
    import torch

    try:
        try:
            matrix = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written in torch's old, non-zip format
            matrix = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on junk, the unpickler raises whatever the bytes happen to mean
        raise _unreadable(path, "a tensor", error) from error
    return _check(matrix, path)


def _load_npy(path: Path) -> torch.Tensor:
    import numpy
    import torch

    try:
        array = numpy.load(path, allow_pickle=False)
    except Exception as error:  # on junk, the header's parser raises whatever the bytes happen to mean
        raise _unreadable(path, "a numpy array", error) from error
    if not isinstance(array, numpy.ndarray) or array.dtype.kind != "f":
        what = array.dtype if isinstance(array, numpy.ndarray) else "an archive of arrays"
        raise UserError(f"{path} does not hold floating-point numbers, but {what}; expected one 2-D matrix")
    if array.dtype.itemsize > 8:
        array = array.astype(numpy.float64)  # long double: torch has none
    return _check(torch.from_numpy(numpy.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))), path)


def _load_safetensors(path: Path) -> torch.Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            names = [name for name in handle.keys() if len(handle.get_slice(name).get_shape()) == 2]  # noqa: SIM118
            if len(names) != 1:
                raise UserError(f"{path} holds {len(names)} 2-D tensors; expected exactly one")
            return _check(handle.get_tensor(names[0]), path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, "safetensors", error) from error


def align_rows(rows: list[Row], reps: Representations, where: str) -> tuple[list[Row], int]:
    """The rows in the order of ``reps.matrix``, and how many rows have no representation (excluded as too long).

    Raises ``UserError``: a store of other data, a bare tensor with another number of rows (both numbers shown).
    """
    if reps.ids is None or reps.manifest is None:
        if len(rows) != len(reps):
            raise UserError(
                f"{where} has {len(rows)} rows, {reps.path} has {len(reps)} representations; they must agree"
            )
        return rows, 0
    if hash_rows(rows) != reps.manifest["data_hash"]:
        source = reps.manifest["source"]
        raise UserError(
            f"{reps.path} was extracted from other data than {where}: "
            f"{len(reps) + reps.manifest['n_excluded']} rows of {source['path']} "
            f"(data hash {reps.manifest['data_hash']}), against {len(rows)} rows "
            f"(data hash {hash_rows(rows)}); extract again or name the right file"
        )
    by_id = {row["id"]: row for row in rows}
    strange = next((one for one in reps.ids if one not in by_id), None)
    if strange is not None:
        raise UserError(f"{reps.path} holds a representation of row {strange}, which {where} lacks; extract again")
    return [by_id[one] for one in reps.ids], len(rows) - len(reps)


def check_comparable(pool: Representations, anchors: Representations) -> list[str]:
    """Refuse a pool and anchors that cannot be compared; return notes on what could not be checked.

    Raises ``UserError``: other width, other model or tokenizer, other layer, position, text part, style or length cap.
    """
    if pool.dim != anchors.dim:
        raise UserError(
            f"{pool.path} has width {pool.dim}, {anchors.path} has width {anchors.dim}; "
            "both must come from the same model and layer"
        )
    if pool.manifest is None or anchors.manifest is None:
        bare = pool.path if pool.manifest is None else anchors.path
        return [f"{bare} is a bare tensor: model, layer and position could not be checked"]
    a, b = pool.manifest, anchors.manifest
    for key in ("hash", "tokenizer_hash"):
        if a["model"][key] != b["model"][key]:
            raise UserError(
                f"{pool.path} and {anchors.path} come from different models ({a['model']['path']}, "
                f"{b['model']['path']}: {key} differs); extract both with one model"
            )
    if pool.view != anchors.view:
        raise UserError(f"{pool.path} holds {pool.view}, {anchors.path} {anchors.view}; compare one layer and position")
    differing = [key for key in stores.COMPARED if a["options"][key] != b["options"][key]]
    if differing:
        shown = ", ".join(f"{key} {a['options'][key]!r} against {b['options'][key]!r}" for key in differing)
        raise UserError(f"{pool.path} and {anchors.path} were extracted with different options: {shown}")
    if a.get("prompt_template") != b.get("prompt_template"):
        raise UserError(
            f"{pool.path} and {anchors.path} were extracted with different texts of the prompt style "
            f"{a['options']['prompt_style']}; extract both again"
        )
    return []
