"""The paper's similarity score: cosines of pool rows to anchor rows, in blocks. The (N, M) matrix never exists.

Memory beyond the inputs is at most ``BUDGET_BYTES`` on a CPU, whatever N and M; on a GPU a quarter of what is free.
Shapes: N pool rows, M anchor rows, D hidden. Representations that are zero have cosine 0 with everything.

Scores do not depend on blocks, threads, ranks, row order or hardware. A float32 product does (its rounding changes with
the shape of the block), so it only finds the candidates: anchors within ``margin`` of the best. Their cosines are then
computed in fixed point: a unit row rounded to multiples of 2**-26 is a row of integers of Euclidean length about 2**26,
so every partial sum of a product of two of them is an integer below 2**53, and float64 adds those without rounding, in
any order. The error of such a cosine is about 1e-8; scores are stored as float32, as in the public selection code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from guardrail.core import ranks
from guardrail.core.errors import UserError
from guardrail.data.rows import Row
from guardrail.similarity.scorers import Inputs

BUDGET_BYTES = 160 << 20
MAX_BLOCK_ROWS = 4096
MAX_COPY_BYTES = 48 << 20  # unit anchors are kept whole up to this size, made block by block above it
FIXED_POINT = float(1 << 26)
GROUP = 64  # columns whose largest product is compared first
CHUNK_BYTES = 2 << 20  # fixed-point rows in work at once: they stay in the processor's cache
MAX_CANDIDATES = 8  # per row and cosine wanted, on average; above it the whole block is computed in fixed point
Array = np.ndarray[Any, Any]


def pick_scoring_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    from guardrail.models.loading import pick_device

    return pick_device()


def margin(width: int) -> float:
    """Twice the error of a float32 cosine of two rows of ``width``, in whatever order it was summed.

    Six standard deviations of the random walk of rounding errors when terms are added one by one (Higham and Mary
    2019, doi 10.1137/18M1226312). Libraries add in panels: errors measured for widths of 64 to 4,096, also with one
    large dimension or all terms positive, were 1e-6 at most.
    """
    return max(1e-5, 2 * (6 * width**0.5 + 4) * 2.0**-24)


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
        self.shape: tuple[int, int] = (len(rows), matrix.shape[1])

    def __getitem__(self, part: slice | int | torch.Tensor) -> torch.Tensor:
        return self.matrix[self.index[part]]


Matrix = torch.Tensor | RowView


def blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def inverse_norms(matrix: Matrix, name: str) -> torch.Tensor:
    """1 / Euclidean norm of every row in float32, (N,); 0 for a zero row.

    Raises ``UserError`` when a representation is not finite, with the row numbers.
    """
    out = torch.empty(matrix.shape[0], dtype=torch.float32)
    for part in blocks(matrix.shape[0], block_rows(matrix.shape[1])):
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
    for part in blocks(matrix.shape[0], block_rows(matrix.shape[1])):
        yield part, matrix[part].float() * inverse[part][:, None]


def unit_rows(matrix: Matrix, name: str = "representations") -> torch.Tensor:
    """A float32 copy of ``matrix`` with rows of length 1 (or 0): for inputs that are small enough to copy."""
    return torch.cat([block for _, block in unit_blocks(matrix, name)])


def check_widths(pool: Matrix, anchors: Matrix) -> None:
    """Raises ``UserError`` when the two cannot be compared."""
    if pool.shape[1] != anchors.shape[1]:
        raise UserError(f"the pool has width {pool.shape[1]}, the anchors {anchors.shape[1]}; use one model and layer")


class Products:
    """Blocks of ``pool @ unit(anchors).T`` with every buffer allocated once.

    ``rows(part)`` yields ``(anchor slice, (b, m) product)`` for a slice of the pool; the product is overwritten by the
    next one. Pool rows are *not* normalised: a positive factor per row changes no order within the row, so callers
    multiply their (b,) results by ``pool_inverse`` instead of (b, m) products. In memory, rows of the product go on
    with minus infinity up to a multiple of ``GROUP``.
    """

    def __init__(self, pool: Matrix, anchors: Matrix, device: torch.device | None = None) -> None:
        check_widths(pool, anchors)
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
        self.size_m = -(-min(self.size, M) // GROUP) * GROUP
        self._whole = self._unit(slice(0, M)) if keep_bytes >= 4 * M * D else None
        self._product = torch.empty((self.size * self.size_m,), dtype=torch.float32, device=self.device)

    def _unit(self, part: slice) -> torch.Tensor:
        block = self.anchors[part].to(self.device, torch.float32, copy=True)
        return block.mul_(self.anchor_inverse[part].to(self.device)[:, None])

    def parts(self) -> Iterator[slice]:
        """Slices of the pool, one block each."""
        return blocks(self.pool.shape[0], self.size)

    def rows(self, part: slice) -> Iterator[tuple[slice, torch.Tensor]]:
        block = self.pool[part].to(self.device, torch.float32)  # no copy when it is float32 here already
        for columns in blocks(self.anchors.shape[0], self.size_m):
            unit = self._whole[columns] if self._whole is not None else self._unit(columns)
            b, m = block.shape[0], unit.shape[0]
            whole = -(-m // GROUP) * GROUP
            padded = self._product[: b * whole].view(b, whole)
            padded[:, m:] = -torch.inf
            torch.mm(block, unit.T, out=padded[:, :m])
            yield columns, padded[:, :m]


def fixed_point(rows: torch.Tensor) -> torch.Tensor:
    """Unit rows times 2**26, rounded to whole numbers: (n, D) float64 on the CPU; a zero row stays zero."""
    # numpy: threads of torch that wait for one another would cost more than these small pieces
    values = rows.cpu().to(torch.float64 if rows.dtype == torch.float64 else torch.float32).numpy().astype(np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", values, values))  # row by row: independent of the other rows
    scale = np.divide(FIXED_POINT, norms, out=np.zeros_like(norms), where=norms > 0)
    values *= scale[:, None]
    return torch.from_numpy(np.rint(values, out=values))


class FixedRows:
    """Rows of a matrix in fixed point, by number. Small matrices of which much is used are converted once, as int32."""

    def __init__(self, matrix: Matrix, uses: int) -> None:
        n, D = matrix.shape
        self.matrix = matrix
        self._whole: Array | None = None
        if uses >= n and 4 * n * D <= MAX_COPY_BYTES:
            self._whole = np.empty((n, D), dtype=np.int32)
            for part in blocks(n, max(16, CHUNK_BYTES // (8 * D))):
                self._whole[part] = fixed_point(matrix[part]).numpy()

    def __getitem__(self, numbers: Array) -> Array:
        """(n, D) float64."""
        if self._whole is not None:
            return np.take(self._whole, numbers, axis=0).astype(np.float64)
        return fixed_point(_take(self.matrix, numbers)).numpy()


def exact_cosines(matrix: Matrix, rows: Array, others: FixedRows, columns: Array) -> Array:
    """Cosine of ``matrix[rows[i]]`` and row ``columns[i]`` of ``others``, (n,) float64: whatever else is asked.

    ``rows`` must be ascending: a row that occurs several times in a chunk is converted once.
    """
    out = np.empty(len(rows))
    for part in blocks(len(rows), max(16, CHUNK_BYTES // (8 * matrix.shape[1]))):
        new = np.diff(rows[part], prepend=-1) > 0
        names = rows[part][new]
        consecutive = names[-1] - names[0] == len(names) - 1
        left = fixed_point(matrix[slice(names[0], names[-1] + 1)] if consecutive else _take(matrix, names)).numpy()
        right = others[columns[part]]
        out[part] = np.einsum("nd,nd->n", left if len(left) == len(right) else left[np.cumsum(new) - 1], right)
    return out / FIXED_POINT**2


def _take(matrix: Matrix, rows: Array) -> torch.Tensor:
    if isinstance(matrix, torch.Tensor) and matrix.dtype == torch.float32 and matrix.device.type == "cpu":
        return torch.from_numpy(matrix.numpy()[rows])
    return matrix[torch.from_numpy(rows)]


def top_cosines(
    pool: Matrix, anchors: Matrix, n: int = 1, device: torch.device | None = None
) -> Iterator[tuple[slice, Array, Array]]:
    """The ``n`` largest cosines of every pool row: ``(slice, (b, n) float64 descending, (b, n) anchor numbers)``.

    Of anchors with equal cosines the first ones are named.
    """
    products = Products(pool, anchors, device)
    fixed = FixedRows(anchors, n * pool.shape[0])
    for part in products.parts():
        found = _candidates(products, part, n)
        if found is None:
            yield part, *_whole_block(products, part, n)
            continue
        rows, columns = found
        values = exact_cosines(pool, rows + part.start, fixed, columns)
        order = np.lexsort((columns, -values, rows))
        first = np.searchsorted(rows[order], np.arange(part.stop - part.start))
        best = order[first[:, None] + np.arange(n)]  # (b, n)
        yield part, values[best], columns[best]


def _candidates(products: Products, part: slice, n: int) -> tuple[Array, Array] | None:
    """Places in the block and anchors whose cosine may be among the row's ``n`` largest; ``None``: too many.

    On a CPU everything after the product and its groups' maxima is numpy: threads that wait for one another on a busy
    machine cost more than they save on such small pieces.
    """
    b = part.stop - part.start
    inverse = products.pool_inverse[part].numpy()
    empty = inverse == 0  # all products are 0: the first n anchors stand for them
    slack = margin(products.pool.shape[1]) / np.maximum(inverse, 1e-30)
    limit = MAX_CANDIDATES * n * b
    best = np.empty((b, 0), dtype=np.float32)
    kept: list[tuple[Array, Array, Array]] = []
    for columns, product in products.rows(part):
        grouped = product.as_strided((b, -(-product.shape[1] // GROUP), GROUP), (product.stride(0), GROUP, 1))
        groups = grouped.amax(dim=2)
        # the n-th largest of enough groups' maxima is a little below the n-th largest product, and cheaper
        few = n > 1 and groups.shape[1] < 4 * n
        value = torch.topk(product, min(n, product.shape[1])).values if few else groups
        best = _largest(np.concatenate([best, _largest(value, n)], axis=1), n)
        bound = np.where(empty, np.inf, best.min(axis=1) - slack).astype(np.float32)
        row, group = at_least(groups, bound)
        total = len(row)  # at least one candidate in each
        for some in blocks(len(row), max(16, CHUNK_BYTES // GROUP)):
            if total > limit:
                return None
            values = _take_groups(grouped, row[some], group[some])
            hit, place = np.nonzero(values >= bound[row[some]][:, None])
            kept.append((row[some][hit], columns.start + group[some][hit] * GROUP + place, values[hit, place]))
            total += len(hit) - (some.stop - some.start)
    if not kept:  # a block of zero rows
        kept = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
    rows, places, values = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    still = values >= bound[rows]
    zeros = np.flatnonzero(empty)
    rows = np.concatenate([rows[still], zeros.repeat(n)])
    places = np.concatenate([places[still], np.tile(np.arange(n), len(zeros))])
    if len(rows) > limit:
        return None
    order = np.argsort(rows, kind="stable")
    return rows[order], places[order]


def _largest(values: torch.Tensor | Array, n: int) -> Array:
    """The ``n`` largest (or all) of every row, in any order, on the CPU."""
    if isinstance(values, torch.Tensor) and values.device.type == "cuda":
        values = torch.topk(values, min(n, values.shape[1])).values.cpu()
    values = np.asarray(values)
    if values.shape[1] <= n:
        return values
    return values.max(axis=1, keepdims=True) if n == 1 else np.partition(values, -n, axis=1)[:, -n:]


def at_least(values: torch.Tensor, bound: Array) -> tuple[Array, Array]:
    """Row and column numbers of ``values`` that reach their row's ``bound``, on the CPU."""
    if values.device.type == "cpu":
        row, column = np.nonzero(values.numpy() >= bound[:, None])
        return row, column
    places = (values >= torch.from_numpy(bound).to(values.device)[:, None]).nonzero().cpu().numpy()
    return places[:, 0], places[:, 1]


def _take_groups(grouped: torch.Tensor, row: Array, group: Array) -> Array:
    """The products of some groups, (n, GROUP) on the CPU."""
    if grouped.device.type == "cpu":
        taken: Array = grouped.numpy()[row, group]
        return taken
    device = grouped.device
    return grouped[torch.from_numpy(row).to(device), torch.from_numpy(group).to(device)].cpu().numpy()


def _whole_block(products: Products, part: slice, n: int) -> tuple[Array, Array]:
    """The same as the candidates' way, for anchors that are nearly alike: all cosines of a block in fixed point."""
    M = products.anchors.shape[0]
    size = max(16, min(block_rows(products.pool.shape[1], BUDGET_BYTES // 4), MAX_BLOCK_ROWS // 4))
    values = np.empty((part.stop - part.start, n))
    columns = np.empty_like(values, dtype=np.int64)
    for rows in blocks(len(values), size):
        left = fixed_point(products.pool[slice(part.start + rows.start, part.start + rows.stop)])
        best = np.empty((len(left), 0)), np.empty((len(left), 0), dtype=np.int64)
        for others in blocks(M, size):
            cosine = (left @ fixed_point(products.anchors[others]).T).numpy() / FIXED_POINT**2
            numbers = np.broadcast_to(np.arange(others.start, others.stop), cosine.shape)
            both = np.concatenate([best[0], cosine], axis=1), np.concatenate([best[1], numbers], axis=1)
            order = np.argsort(-both[0], axis=1, kind="stable")[:, :n]  # stable: the first of equal anchors
            best = np.take_along_axis(both[0], order, axis=1), np.take_along_axis(both[1], order, axis=1)
        values[rows], columns[rows] = best
    return values, columns


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
    out = np.empty(N, dtype=np.float32)
    for part, values, _ in top_cosines(pool, anchors, avg_n, device):
        out[part] = values.mean(axis=1)
    return out


def score_similarity(rows: Sequence[Row], inputs: Inputs) -> Array:
    """``score_pool`` on all ranks: each scores a contiguous share of the pool, all get the whole in row order."""
    pool, anchors = inputs.representations, inputs.anchors
    N, world = pool.shape[0], ranks.world_size()
    if len(rows) != N:
        raise UserError(f"{len(rows)} rows and {N} representations of them; they must agree")
    if world == 1:
        return score_pool(pool, anchors, inputs.avg_n)
    start, stop = (N * (ranks.rank() + end) // world for end in (0, 1))
    share = RowView(pool, np.arange(start, stop))
    # an empty share of a pool smaller than the number of ranks has nothing to score
    part = score_pool(share, anchors, inputs.avg_n) if stop > start else np.empty(0, np.float32)
    return np.concatenate(ranks.gather(part))


def mean_scores(pool: Matrix, anchors: Matrix) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Mean cosine of every pool row to all anchors: one product with the mean unit anchor, (N,) float32."""
    check_widths(pool, anchors)
    inverse_norms(anchors, "anchors")
    inverse_norms(pool, "pool")
    size = max(16, CHUNK_BYTES // (8 * pool.shape[1]))
    centre = np.zeros(anchors.shape[1])
    for part in blocks(anchors.shape[0], size):
        centre += fixed_point(anchors[part]).numpy().sum(axis=0)  # whole numbers: exact
    direction = np.rint(centre / anchors.shape[0])
    out = np.empty(pool.shape[0], dtype=np.float32)
    for part in blocks(pool.shape[0], size):
        out[part] = fixed_point(pool[part]).numpy() @ direction / FIXED_POINT**2
    return out


def nearest_anchors(rows: Matrix, anchors: Matrix) -> tuple[Array, Array]:
    """The anchor with the largest cosine and that cosine, per row: ``(indices (n,) int64, cosines (n,) float32)``."""
    found = [(columns[:, 0], values[:, 0]) for _, values, columns in top_cosines(rows, anchors)]
    indices, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return indices, values.astype(np.float32)
