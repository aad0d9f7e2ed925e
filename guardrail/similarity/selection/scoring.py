"""Cosine scores of pool rows against anchor rows, in blocks: the (N, M) similarity matrix never exists.

Memory beyond the inputs is at most ``BUDGET_BYTES`` on a CPU, whatever N and M; on a GPU a quarter of what is free.
Everything is float32, as in the public selection code. Shapes: N pool rows, M anchor rows, D hidden.

Representations that are zero have cosine 0 with everything. Rows of the pool with identical bytes get identical
scores: a matrix product may round the same row differently in different places of a block, and ties must not depend
on that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from guardrail.core.errors import UserError

BUDGET_BYTES = 160 << 20
MAX_BLOCK_ROWS = 4096
MAX_COPY_BYTES = 48 << 20  # unit anchors are kept whole up to this size, made block by block above it


def pick_scoring_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    from guardrail.models.loading import pick_device

    return pick_device()


def block_rows(width: int, budget_bytes: int = BUDGET_BYTES) -> int:
    """Rows per block b with two (b, D) float32 copies, a (b, b) product and a (b, b) mask inside the budget."""
    b = MAX_BLOCK_ROWS
    while b > 16 and 8 * b * width + 5 * b * b > budget_bytes:
        b //= 2
    return b


class RowView:
    """Some rows of a matrix, gathered block by block when they are used: a subset of a huge matrix without a copy."""

    def __init__(self, matrix: torch.Tensor | RowView, rows: np.ndarray[Any, Any]) -> None:
        self.matrix, self.index = matrix, torch.from_numpy(np.asarray(rows, dtype=np.int64))
        self.shape = (len(rows), matrix.shape[1])

    def __getitem__(self, part: slice | int | torch.Tensor) -> torch.Tensor:
        return self.matrix[self.index[part]]


Matrix = torch.Tensor | RowView


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def inverse_norms(matrix: Matrix, name: str) -> torch.Tensor:
    """1 / Euclidean norm of every row in float32, (N,); 0 for a zero row.

    Raises ``UserError`` when a representation is not finite, with the row numbers.
    """
    out = torch.empty(matrix.shape[0], dtype=torch.float32)
    for part in _blocks(matrix.shape[0], block_rows(matrix.shape[1])):
        torch.linalg.vector_norm(matrix[part].float(), dim=1, out=out[part])
    bad = (~torch.isfinite(out)).nonzero().flatten()
    if len(bad):
        shown = ", ".join(str(int(row)) for row in bad[:5])
        raise UserError(
            f"{name}: {len(bad)} of {len(out)} representations hold NaN or infinity (rows {shown}, counted from 0); "
            "extract them again with --torch_dtype bfloat16 or float32"
        )
    return torch.where(out > 0, 1.0 / out, torch.zeros_like(out))


def unit_blocks(matrix: Matrix, name: str = "representations") -> Iterator[tuple[slice, torch.Tensor]]:
    """``(slice, (b, D) float32 rows of length 1 (or 0))`` over the whole matrix."""
    inverse = inverse_norms(matrix, name)
    for part in _blocks(matrix.shape[0], block_rows(matrix.shape[1])):
        yield part, matrix[part].float() * inverse[part][:, None]


def unit_rows(matrix: Matrix, name: str = "representations") -> torch.Tensor:
    """A float32 copy of ``matrix`` with rows of length 1 (or 0): for inputs that are small enough to copy."""
    return torch.cat([block for _, block in unit_blocks(matrix, name)])


class Products:
    """Blocks of ``pool @ unit(anchors).T`` with every buffer allocated once.

    ``rows(part)`` yields ``(anchor slice, (b, m) product)`` for a slice of the pool; the product is overwritten by the
    next one. Pool rows are *not* normalised: a positive factor per row changes no order within the row, so callers
    multiply their (b,) results by ``pool_inverse`` instead of (b, m) products.
    """

    def __init__(self, pool: Matrix, anchors: Matrix, device: torch.device | None = None) -> None:
        if pool.shape[1] != anchors.shape[1]:
            raise UserError(
                f"the pool has width {pool.shape[1]}, the anchors {anchors.shape[1]}; use one model and layer"
            )
        self.device = device or pick_scoring_device()
        self.pool, self.anchors = pool, anchors
        self.pool_inverse = inverse_norms(pool, "pool")
        self.anchor_inverse = inverse_norms(anchors, "anchors")
        D = pool.shape[1]
        if self.device.type == "cuda":
            budget = torch.cuda.mem_get_info(self.device)[0] // 4
            self.size = next((b for b in (32768, 16384, 8192, 4096) if 4 * (3 * b * D + 2 * b * b) < budget), 2048)
            keep_bytes = budget
        else:
            self.size = block_rows(D)
            keep_bytes = MAX_COPY_BYTES
        M = anchors.shape[0]
        self.size_m = min(self.size, M)
        self._whole = self._unit(slice(0, M)) if keep_bytes >= 4 * M * D else None
        self._product = torch.empty((self.size * self.size_m,), dtype=torch.float32, device=self.device)

    def _unit(self, part: slice) -> torch.Tensor:
        block = self.anchors[part].to(self.device, torch.float32, copy=True)
        return block.mul_(self.anchor_inverse[part].to(self.device)[:, None])

    def parts(self) -> Iterator[slice]:
        """Slices of the pool, one block each."""
        return _blocks(self.pool.shape[0], self.size)

    def rows(self, part: slice) -> Iterator[tuple[slice, torch.Tensor]]:
        block = self.pool[part].to(self.device, torch.float32)  # no copy when it is float32 here already
        for columns in _blocks(self.anchors.shape[0], self.size_m):
            unit = self._whole[columns] if self._whole is not None else self._unit(columns)
            shape = (block.shape[0], unit.shape[0])
            product = self._product[: shape[0] * shape[1]].view(shape)
            yield columns, torch.mm(block, unit.T, out=product)


def score_pool(
    pool: Matrix, anchors: Matrix, avg_n: int = 1, device: torch.device | None = None
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Score of every pool row: mean of its ``avg_n`` largest cosines to the anchors, (N,) float32.

    ``avg_n`` 1 is the maximum, ``avg_n`` M the mean over all anchors. Source: ``top_n_score`` of
    princeton-nlp/benign-data-breaks-safety. Raises ``UserError``: other widths, non-finite rows, ``avg_n`` > M.
    """
    N, M = pool.shape[0], anchors.shape[0]
    if not 1 <= avg_n <= M:
        raise UserError(f"--avg_n {avg_n} is not between 1 and the number of anchor rows, {M}")
    if avg_n == M and M > 1:
        return mean_scores(pool, anchors)
    products = Products(pool, anchors, device)
    out = torch.empty(N, dtype=torch.float32)
    for part in products.parts():
        best: torch.Tensor | None = None
        for _, product in products.rows(part):
            if avg_n == 1:
                value = product.amax(dim=1)
                best = value if best is None else torch.maximum(best, value, out=best)
            else:
                value = torch.topk(product, min(avg_n, product.shape[1]), dim=1, sorted=False).values
                if best is not None:
                    value = torch.cat([best, value], dim=1)
                best = torch.topk(value, min(avg_n, value.shape[1]), dim=1, sorted=False).values
        assert best is not None
        out[part] = (best if avg_n == 1 else best.mean(dim=1)).cpu()
    out *= products.pool_inverse
    return unify_duplicates(pool, products.pool_inverse, out.numpy())


def mean_scores(pool: Matrix, anchors: Matrix) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Mean cosine of every pool row to all anchors: one product with the mean unit anchor, (N,) float32."""
    centre = torch.zeros(anchors.shape[1], dtype=torch.float64)
    inverse = inverse_norms(anchors, "anchors")
    for part in _blocks(anchors.shape[0], block_rows(anchors.shape[1])):
        centre += (anchors[part].float() * inverse[part][:, None]).sum(dim=0, dtype=torch.float64)
    direction = (centre / anchors.shape[0]).float()
    pool_inverse = inverse_norms(pool, "pool")
    out = torch.empty(pool.shape[0], dtype=torch.float32)
    for part in _blocks(pool.shape[0], block_rows(pool.shape[1])):
        out[part] = pool[part].float() @ direction
    out *= pool_inverse
    return unify_duplicates(pool, pool_inverse, out.numpy())


def unify_duplicates(
    pool: Matrix, inverse: torch.Tensor, scores: np.ndarray[Any, np.dtype[np.float32]]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Give byte-identical pool rows the score of the first of them. Only rows of equal norm are compared."""
    for group in duplicate_groups(pool, inverse):
        scores[group] = scores[group[0]]
    return scores


def duplicate_groups(matrix: Matrix, inverse: torch.Tensor) -> list[list[int]]:
    """Groups (of at least two, ascending) of rows with identical bytes."""
    order = torch.sort(inverse, stable=True)
    same = (order.values[1:] == order.values[:-1]).numpy()
    groups: list[list[int]] = []
    position, n = 0, len(same)
    starts = np.flatnonzero(same)
    for start in starts:
        if start < position:
            continue
        end = int(start)
        while end < n and same[end]:
            end += 1
        position = end
        by_bytes: dict[bytes, list[int]] = {}
        for row in sorted(int(i) for i in order.indices[start : end + 1]):
            by_bytes.setdefault(matrix[row].contiguous().view(torch.uint8).numpy().tobytes(), []).append(row)
        groups += [group for group in by_bytes.values() if len(group) > 1]
    return groups


def nearest_anchors(rows: Matrix, anchors: Matrix) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The anchor with the largest cosine and that cosine, per row: ``(indices (n,) int64, cosines (n,) float32)``."""
    products = Products(rows, anchors)
    indices = torch.empty(rows.shape[0], dtype=torch.long)
    values = torch.empty(rows.shape[0], dtype=torch.float32)
    for part in products.parts():
        best_value: torch.Tensor | None = None
        best_index: torch.Tensor | None = None
        for columns, product in products.rows(part):
            value, index = product.max(dim=1)
            index = index + columns.start
            if best_value is None or best_index is None:
                best_value, best_index = value, index
            else:
                better = value > best_value
                best_value, best_index = torch.where(better, value, best_value), torch.where(better, index, best_index)
        assert best_value is not None and best_index is not None
        indices[part], values[part] = best_index.cpu(), best_value.cpu()
    return indices.numpy(), (values * products.pool_inverse).numpy()


def best_ranks(
    pool: Matrix, anchors: Matrix, depth: int, nearest: bool, device: torch.device | None = None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Per pool row, its best place in any anchor's list and its cosine there: ``(ranks (N,), cosines (N,))``.

    Every anchor lists the pool by descending cosine (ascending with ``nearest=False``); place 0 is the first. Rows
    in no list's first ``depth`` places have rank N. Memory is O(N) beyond the blocks: lists are used and dropped.
    """
    N = pool.shape[0]
    sign = 1.0 if nearest else -1.0
    device = device or pick_scoring_device()
    pool_inverse = inverse_norms(pool, "pool").to(device)
    anchor_inverse = inverse_norms(anchors, "anchors")
    ranks = torch.full((N,), N, dtype=torch.long, device=device)
    cosines = torch.zeros(N, dtype=torch.float32, device=device)
    depth = min(depth, N)
    # (m, N) cosines, their sorted copy with indices, all within the budget
    m = max(1, min(anchors.shape[0], BUDGET_BYTES // 2 // (4 * N + 12 * depth)))
    places = torch.arange(depth, device=device)
    size = block_rows(pool.shape[1], BUDGET_BYTES // 2)
    for part in _blocks(anchors.shape[0], m):
        unit = anchors[part].to(device, torch.float32) * anchor_inverse[part].to(device)[:, None]
        similarity = torch.empty((unit.shape[0], N), dtype=torch.float32, device=device)
        for columns in _blocks(N, size):
            torch.mm(unit, pool[columns].to(device, torch.float32).T, out=similarity[:, columns])
        similarity *= sign * pool_inverse
        for row in similarity:  # one anchor's list at a time: stable, so ties go by row order
            top = torch.topk(row, depth).values[-1]
            candidates = (row >= top).nonzero().flatten()
            listed = candidates[torch.sort(row[candidates], descending=True, stable=True).indices[:depth]]
            value = sign * row[listed]
            better = (places < ranks[listed]) | ((places == ranks[listed]) & (sign * value > sign * cosines[listed]))
            ranks[listed] = torch.where(better, places, ranks[listed])
            cosines[listed] = torch.where(better, value, cosines[listed])
    return ranks.cpu().numpy(), cosines.cpu().numpy()
