"""Even sampling of a surface: Poisson-disk sets with a radius that varies, and the cell of surface that each sample stands for."""

import numpy as np
from scipy.spatial import cKDTree

SAME_SIDE = 0.2  # least cosine between the normals of neighbours: closed lips are two surfaces


def on_triangles(corners, weight, count: int, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random points on triangles (F, 3, 3), `weight` (F,) of them on each: triangle (n,), barycentric (n, 3), points (n, 3)."""
    tri = rng.choice(len(corners), size=count, p=weight / weight.sum())
    u = np.sqrt(rng.random(count))
    w = rng.random(count)
    bary = np.stack([1 - u, u * (1 - w), u * w], 1)
    return tri, bary, (corners[tri] * bary[..., None]).sum(1)


def poisson_disk(points, normals, radius, n: int, rng) -> np.ndarray:
    """Indices (n,) of a Poisson-disk subset: rounds of "keep whoever comes first among its neighbours".

    Args: points, normals (P, 3); radius (P,), how near the next sample may be.
    """
    order = rng.permutation(len(points))
    rank = np.empty(len(points), int)
    rank[order] = np.arange(len(points))
    pairs = _close_pairs(cKDTree(points), points, normals, radius)
    alive, kept = np.ones(len(points), bool), np.zeros(len(points), bool)
    while len(pairs):
        first = np.where(rank[pairs[:, 0]] < rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
        second = pairs.sum(1) - first
        loses = np.zeros(len(points), bool)
        loses[second] = True
        winners = alive & ~loses
        kept |= winners
        alive &= ~winners
        alive[second[winners[first]]] = False
        pairs = pairs[alive[pairs[:, 0]] & alive[pairs[:, 1]]]
    kept |= alive
    chosen = np.flatnonzero(kept)
    gap = cKDTree(points[chosen]).query(points[chosen], k=2)[0][:, 1] / radius[chosen]
    if len(chosen) >= n:
        return np.sort(chosen[np.argsort(-gap)[:n]])
    rest = np.flatnonzero(~kept)
    gap = cKDTree(points[chosen]).query(points[rest])[0] / radius[rest]
    return np.sort(np.concatenate([chosen, rest[np.argsort(-gap)[: n - len(chosen)]]]))


def _close_pairs(tree, points, normals, radius) -> np.ndarray:
    """Pairs (m, 2) nearer than their smaller radius on surfaces that face the same way."""
    chunks = []
    for low, high in [(q, q + 0.1) for q in np.arange(0, 1, 0.1)]:
        lo, hi = np.quantile(radius, [low, high])
        mine = np.flatnonzero((radius >= lo) & ((radius < hi) | (high > 0.99)))
        near = cKDTree(points[mine]).sparse_distance_matrix(tree, hi, output_type="coo_matrix")
        i, j = mine[near.row], near.col
        keep = (near.data < np.minimum(radius[i], radius[j])) & (i != j) & ((normals[i] * normals[j]).sum(1) > SAME_SIDE)
        chunks.append(np.stack([i[keep], j[keep]], 1))
    pairs = np.sort(np.concatenate(chunks), 1)
    return np.unique(pairs, axis=0)


def cells(samples, frames, points, normals, radius) -> np.ndarray:
    """Second moments (N, 2, 2) m^2 of the samples' Voronoi cells: how far each reaches along its two tangents.

    Args: samples (N, 3) with frames (N, 3, 3), columns (tangent, tangent, normal); points (P, 3) with normals (P, 3) all over the
        surface: each belongs to the nearest sample that faces its way; radius (N,) m, reach of a sample to which none belongs.
    """
    near = cKDTree(samples).query(points, k=4)[1]  # (P, 4)
    same = np.einsum("pkc,pc->pk", frames[near, :, 2], normals) > SAME_SIDE
    owner = np.take_along_axis(near, same.argmax(1)[:, None], 1)[:, 0]
    owner, points = owner[same.any(1)], points[same.any(1)]
    local = np.einsum("pca,pc->pa", frames[owner, :, :2], points - samples[owner])  # (P, 2)
    # A few points of a round cell as a prior: a disc of radius r has r^2 / 4 along each axis.
    prior, count = 4, np.bincount(owner, minlength=len(samples))
    moment = np.tile(np.eye(2), (len(samples), 1, 1)) * (prior * (radius / 1.9) ** 2 / 4)[:, None, None]
    np.add.at(moment, owner, local[:, :, None] * local[:, None, :])
    return moment / (count + prior)[:, None, None]


def grid(where: np.ndarray, spacing: float) -> np.ndarray:
    """Pixels (n, 2) as (x, y) integers on a hexagonal grid of `spacing` px inside `where` (H, W)."""
    h, w = where.shape
    rows = np.arange(spacing / 2, h, spacing * 0.866)
    points = [np.stack([x := np.arange(spacing / 2 * (1 + k % 2), w, spacing), np.full(len(x), y)], 1) for k, y in enumerate(rows)]
    at = np.concatenate(points).astype(int)
    return at[where[at[:, 1], at[:, 0]]]
