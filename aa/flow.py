"""Tracks of a person in a video by dense optical flow between neighbouring frames.

Flow (OpenCV's DIS, Kroeger et al. 2016) gives where each pixel goes in the next frame; chained from frame to frame it gives tracks.
A track ends where flow there and back disagree, and new ones are started where the person is left without: what is hidden is never
guessed.
"""

import cv2
import numpy as np

APART = 0.75  # px + 5% of the step: there-and-back error at which a track ends
RESEED = 5  # frames between looks for places without a track
LEAST_LIFE = 6  # frames: shorter tracks say little


def flow_tracks(frames, mask, spacing: float | None = None, points=None) -> tuple[np.ndarray, np.ndarray]:
    """Follow points of the person through (T, H, W, 3) uint8 frames.

    Args: mask (T, H, W) bool; spacing of the tracks in px; points (P, 2) px of frame 0 to follow instead of a grid: no track is
        then added or dropped.
    Returns: tracks (P, T, 2) px, held where they are not visible, and visibility (P, T): from start to end of each track.
    """
    T, H, W, _ = frames.shape
    spacing = spacing or max(4.0, max(H, W) / 64)
    inner = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    inside = [cv2.erode(m.astype(np.uint8), inner) > 0 for m in mask]  # flow smears over the outline
    fixed = points is not None
    x = np.asarray(points, np.float32) if fixed else fill(inside[0], np.zeros((0, 2), np.float32), spacing)
    alive, flow = np.ones(len(x), bool), _Flow()
    places, seen = [x], [alive]
    for t in range(1, T):
        x, alive = places[-1].copy(), seen[-1].copy()
        at = np.flatnonzero(alive)
        x[at], good = flow.step(frames[t - 1], frames[t], x[at])
        good &= pick(inside[t] if not fixed else mask[t], x[at])
        alive[at] = good
        if not fixed and t % RESEED == 0 and t < T - LEAST_LIFE:
            new = fill(inside[t], x[alive], spacing)
            x, alive = np.concatenate([x, new]), np.concatenate([alive, np.ones(len(new), bool)])
        places.append(x), seen.append(alive)
    return _stack(places, seen, 0 if fixed else min(LEAST_LIFE, T))


def _stack(places: list, seen: list, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Growing lists of places (p_t, 2) and flags (p_t,) -> (P, T, 2) and (P, T), without tracks seen in fewer frames than that."""
    P, T = len(places[-1]), len(places)
    tracks, visible = np.zeros((P, T, 2), np.float32), np.zeros((P, T), bool)
    for t, (x, a) in enumerate(zip(places, seen)):
        tracks[: len(x), t], visible[: len(x), t] = x, a
    first = visible.argmax(1)
    before = np.arange(T) < first[:, None]
    tracks = np.where(before[..., None], tracks[np.arange(P), first][:, None], tracks)
    keep = visible.sum(1) >= least
    return tracks[keep], visible[keep]


class _Flow:
    """Dense flow between neighbouring frames, there and back."""

    def __init__(self):
        self.dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.dis.setFinestScale(0)  # full resolution: 1 is four times as fast and drifts four times as much
        self.dis.setUseSpatialPropagation(True)

    def step(self, a: np.ndarray, b: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points x (P, 2) of frame a are in frame b, and whether the way back agrees (P,)."""
        if not len(x):
            return x, np.zeros(0, bool)
        grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (a, b)]
        there = sample(self.dis.calc(grey[0], grey[1], None), x)
        y = x + there
        error = np.linalg.norm(there + sample(self.dis.calc(grey[1], grey[0], None), y), axis=1)
        return y, error < APART + 0.05 * np.linalg.norm(there, axis=1)


def sample(field: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear values (n, C) of a field (H, W, C) at x (n, 2) px, pixel centres at +0.5."""
    at = np.zeros((max(1, -(-len(x) // 1024)), 1024, 2), np.float32)  # OpenCV takes no rows longer than 32767
    at.reshape(-1, 2)[: len(x)] = x - 0.5
    return cv2.remap(field, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(-1, field.shape[-1])[: len(x)]


def pick(mask: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Values (n,) of a mask (H, W) at x (n, 2) px; False outside the picture."""
    i = np.floor(np.clip(x, -1e6, 1e6)).astype(int)
    ok = (i >= 0).all(1) & (i[:, 0] < mask.shape[1]) & (i[:, 1] < mask.shape[0])
    ok[ok] = mask[i[ok, 1], i[ok, 0]]
    return ok


def fill(mask: np.ndarray, taken: np.ndarray, spacing: float) -> np.ndarray:
    """Points (n, 2) of a grid inside a mask (H, W) that have none of the points taken (m, 2) within 3/4 of the spacing."""
    H, W = mask.shape
    y, x = np.meshgrid(np.arange(spacing / 2, H, spacing), np.arange(spacing / 2, W, spacing), indexing="ij")
    grid = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)
    grid = grid[pick(mask, grid)]
    if len(taken) and len(grid):
        from scipy.spatial import cKDTree

        grid = grid[cKDTree(taken).query(grid)[0] > 0.75 * spacing]
    return grid
