"""The picture behind a person: the photo with the person painted out.

A standing person hides a tall strip of rooms whose lines (tables, boards, skirting, horizon) run mostly across. So the hole is
filled by a membrane, the smoothest picture that meets what is around, that bends more easily up and down than across: the solution
of Laplace's equation with a conductance per direction. The grain of the photo is laid over it.
A plain backdrop has no lines: a smooth shade is fitted to it instead.
"""

import cv2
import numpy as np
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import splu

COLUMNS = 128  # columns at which the membrane is solved; rows are kept, for the lines' sake
UPDOWN = 0.004  # conductance up and down per conductance across, at a pixel's size each
PLAIN = 3.0  # levels of 255 by which a plain backdrop may deviate from a smooth shade
GRAIN = 1.5  # px, finest detail, which is repeated in the hole


def clean_plate(picture, mask) -> np.ndarray:
    """The photo (H, W, 3) uint8 with the person of mask (H, W) in [0, 1] painted out. Deterministic."""
    h, w = mask.shape
    r = max(2, round(max(h, w) / 70))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))
    hole = cv2.dilate((mask > 0.1).astype(np.uint8), disc) > 0
    if not hole.any():
        return picture.copy()
    if hole.mean() > 0.98:
        return np.full_like(picture, np.median(picture.reshape(-1, 3), 0))
    image = picture.astype(np.float32)
    smooth = plain(image, hole)
    filled = (membrane(image, hole) if smooth is None else smooth) + grain(image, hole)
    near = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), r / 3)
    blend = np.maximum(near, mask > 0.02)[..., None]
    return (image * (1 - blend) + filled * blend + 0.5).clip(0, 255).astype(np.uint8)


def plain(image, hole) -> np.ndarray | None:
    """A plain backdrop (H, W, 3) float32, a cubic in x and y fitted to what is outside the hole (H, W), with what is left
    continued evenly; None if the backdrop is not plain. What does not fit (the person's soft rim, a shadow) is left out."""
    h, w = hole.shape
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    basis = np.stack([x**i * y**j for i in range(4) for j in range(4 - i)], -1)
    at = np.flatnonzero(~hole)[:: max(1, (~hole).sum() // 20000)]
    A, b = basis.reshape(-1, basis.shape[-1])[at], cv2.GaussianBlur(image, (0, 0), GRAIN).reshape(-1, 3)[at]
    good = np.ones(len(at), bool)
    for _ in range(5):  # trimmed least squares
        fit = np.linalg.lstsq(A[good], b[good], rcond=None)[0]
        off = np.abs(b - A @ fit).max(1)
        good = off < 3 * np.median(off) + 0.5
    if np.median(off) > PLAIN or good.mean() < 0.8:
        return None
    whole = (basis @ fit).astype(np.float32)
    rest = image - whole
    strange = np.abs(cv2.GaussianBlur(rest, (0, 0), GRAIN)).max(2) > 3 * np.median(off) + 0.5
    known = (~hole & ~strange).astype(np.float32)
    sigma = max(h, w) / 20
    near = cv2.GaussianBlur(known, (0, 0), sigma)[..., None]
    return whole + cv2.GaussianBlur(rest * known[..., None], (0, 0), sigma) / (near + 0.02)


def membrane(image, hole, updown: float = UPDOWN) -> np.ndarray:
    """Image (H, W, 3) float32 with the hole (H, W) bool filled by what is around it."""
    h, w = hole.shape
    columns = min(COLUMNS, w)
    known = cv2.resize((~hole).astype(np.float32), (columns, h), interpolation=cv2.INTER_AREA)
    mean = cv2.resize(image * ~hole[..., None], (columns, h), interpolation=cv2.INTER_AREA) / known.clip(1e-6)[..., None]
    solved = _laplace(mean, known < 0.3, updown * (w / columns) ** 2)
    return np.where(hole[..., None], cv2.resize(solved, (w, h), interpolation=cv2.INTER_LINEAR), image)


def _laplace(values, unknown, updown: float) -> np.ndarray:
    """Values (H, W, C) with the unknown ones (H, W) such that each is the weighted mean of its four neighbours."""
    h, w = unknown.shape
    index = np.full((h, w), -1)
    n = int(unknown.sum())
    index[unknown] = np.arange(n)
    rows, columns, weights, right = [], [], [], np.zeros((n, values.shape[2]))
    total = np.full(n, 1e-9)
    for a, b, weight in (
        (np.s_[:, 1:], np.s_[:, :-1], 1.0), (np.s_[:, :-1], np.s_[:, 1:], 1.0),
        (np.s_[1:], np.s_[:-1], updown), (np.s_[:-1], np.s_[1:], updown),
    ):  # fmt: skip
        i, j = index[a], index[b]
        both, edge = (i >= 0) & (j >= 0), (i >= 0) & (j < 0)
        rows.append(i[both])
        columns.append(j[both])
        weights.append(np.full(int(both.sum()), -weight))
        np.add.at(total, i[both | edge], weight)
        np.add.at(right, i[edge], weight * values[b][edge])
    matrix = coo_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n)) + diags(total)
    out = values.copy()
    if n:
        solver = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        out[unknown] = solver.solve(right)
    return out


def grain(image, hole) -> np.ndarray:
    """Finest detail (H, W, 3) for the hole (H, W): that of the known pixels of each row, mirrored at the hole's edge; else 0."""
    h, w = hole.shape
    fine = image - cv2.GaussianBlur(image, (0, 0), GRAIN)
    margin = cv2.dilate(hole.astype(np.uint8), np.ones((1, 7), np.uint8)) > 0  # the blur reaches into the hole
    away = np.arange(w)[None].repeat(h, 0)
    left = np.maximum.accumulate(np.where(margin, -1, away), 1)
    right = np.minimum.accumulate(np.where(margin, 2 * w, away)[:, ::-1], 1)[:, ::-1]
    source = np.where((left >= 0) & ((away - left <= right - away) | (right >= w)), 2 * left - away, 2 * right - away)
    inside = (source >= 0) & (source < w)
    source = source.clip(0, w - 1)
    ok = inside & ~np.take_along_axis(margin, source, 1) & hole
    spread = 3 * np.median(np.abs(fine[~margin]), 0) if (~margin).any() else 0  # grain, not edges of things
    return np.where(ok[..., None], np.take_along_axis(fine, source[..., None], 1).clip(-spread, spread), 0)
