"""Teeth: the body's are a smooth band on each jaw; here they get fine samples, gaps between them, gums, and the photo's tone."""

import numpy as np
import torch

from aa.body import REGIONS, Body
from aa.gaussians import Layout

SPACING = 0.0013  # m, side of the pieces that triangles of the band are cut into
FRONT = 0.028  # m to either side of the middle, what a mouth shows
ARCH = 0.037  # m, radius of the arch of the front teeth
EDGES_MM = (0.0, 8.5, 15.2, 22.7, 29.7, 36.7, 47.0, 57.0)  # gaps along the arch from the middle: mean widths of upper teeth
LOWER = 0.72  # widths of lower over upper front teeth
CROWN_MM = 9.5  # height of the crowns, above (below) which there is gum
GAP_MM, NOTCH_MM = 0.3, 1.5  # half width of gaps; they widen over so much towards the edge
TOOTH, GUM = (0.86, 0.83, 0.77), (0.62, 0.34, 0.33)
GAP_DARK = 0.85  # brightness in gaps
TRIANGLE = torch.tensor([[2.0, -1.0], [-1.0, 2.0]]) / 36  # second moment of a triangle in units of its edges


def teeth_samples(body: Body) -> Layout:
    """Fine samples on the outer side of the front teeth: centres of the pieces that its triangles are cut into."""
    which = body.region_faces("teeth")
    corners = body.v_template[body.faces[which]]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    middle = corners.mean(1)
    outward = (normal[:, :2] * (middle[:, :2] - _centre(body))).sum(1) > 0.3 * normal.norm(dim=1) * ARCH
    which = which[outward & (middle[:, 0].abs() < FRONT)]
    tri, bary, cell, size = [], [], [], []
    for face in which.tolist():
        a, b, c = body.v_template[body.faces[face]]
        longest = float(torch.stack([b - a, c - b, a - c]).norm(dim=1).max())
        n = max(1, int(np.ceil(longest / SPACING)))
        i, j, up = _pieces(n)
        v, w = (i + np.where(up, 1, 2) / 3) / n, (j + np.where(up, 1, 2) / 3) / n
        bary.append(np.stack([1 - v - w, v, w], 1))
        tri += [face] * len(i)
        cell.append((TRIANGLE / n**2).expand(len(i), 2, 2))
        size += [longest / n] * len(i)
    tri, n = torch.tensor(tri), len(tri)
    return Layout(
        tri, body.faces[tri], torch.from_numpy(np.concatenate(bary)).float(), torch.ones(n, dtype=torch.long),
        body.face_region[tri], torch.tensor(size), "teeth", torch.cat(cell),
    )  # fmt: skip


def _pieces(n: int):
    """Rows and columns of the n^2 triangles in a triangle cut n times, and which of them point up."""
    i, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    up, down = i + j < n, i + j < n - 1
    return np.concatenate([i[up], i[down]]), np.concatenate([j[up], j[down]]), np.repeat([True, False], [up.sum(), down.sum()])


def _centre(body: Body) -> torch.Tensor:
    """Middle (2,) of the arch from above."""
    front = body.v_template[body.region_vertices("teeth"), 1].min()
    return torch.stack([torch.zeros_like(front), front + ARCH])


def paint_teeth(body: Body, rest, upper, tone) -> np.ndarray:
    """Colours (n, 3) of teeth at rest (n, 3) on the mean body, in the upper jaw where `upper` (n,); tone (3,) of the crowns."""
    band = body.v_template[body.region_vertices("teeth")].numpy()
    centre = _centre(body).numpy()
    along = lambda p: np.arctan2(p[:, 0], centre[1] - p[:, 1]) * ARCH * 1000  # noqa: E731  mm
    moved = body.action_dirs[body.action("jawOpen"), body.region_vertices("teeth")].norm(dim=1).numpy()
    height = np.zeros(len(rest))
    for jaw, sign in ((True, 1), (False, -1)):
        mine = band[(moved < 1e-3) == jaw]
        s, z = along(mine), mine[:, 2] * sign
        bins = np.linspace(-60, 60, 13)
        edge = np.array([z[np.abs(s - b) < 12].min() if (np.abs(s - b) < 12).any() else np.nan for b in bins])
        known = np.isfinite(edge)
        it = upper == jaw
        height[it] = 1000 * (rest[it, 2] * sign - np.interp(along(rest[it]), bins[known], edge[known]))
    place = np.abs(along(rest)) / np.where(upper, 1.0, LOWER)
    gaps = np.array(EDGES_MM)
    k = np.searchsorted(gaps, place).clip(1, len(gaps) - 1)
    from_gap = np.minimum(place - gaps[k - 1], gaps[k] - place).clip(0)
    within = from_gap / (0.5 * (gaps[k] - gaps[k - 1]))  # 0 at a gap, 1 in the middle of a tooth
    width = GAP_MM * (1 + 2 * np.clip(1 - height / NOTCH_MM, 0, 1))
    gap = np.exp(-0.5 * (from_gap / width) ** 2)[:, None]
    gum = np.clip(height - (CROWN_MM - 2 * (1 - within) ** 2), 0, 1)[:, None]
    rounded = (0.9 + 0.1 * within)[:, None]
    crown = np.asarray(tone) * rounded * (1 - (1 - GAP_DARK) * gap)
    return crown + gum * (np.asarray(GUM) * np.mean(tone) / np.mean(TOOTH) - crown)


def tooth_tone(view, shows_teeth, bright: float) -> np.ndarray:
    """Tone (3,) of the crowns: the photo's where it shows bright teeth (pixels (H, W) bool), else plausible in its light."""
    guess = np.array(TOOTH) * np.clip(bright, 0.85, 1.15)
    seen = view.front[shows_teeth]
    white = seen[(seen.min(1) > 0.72 * seen.max(1)) & (seen.mean(1) > 0.6 * guess.mean())] if len(seen) else seen
    if len(white) < 20:
        return guess
    light = white[white.mean(1) >= np.percentile(white.mean(1), 50)].mean(0)
    return guess + 0.8 * (light - guess)


def upper_jaw(body: Body, corners) -> np.ndarray:
    """Which samples on triangles (n, 3) of vertices belong to the skull and not to the jaw."""
    return (body.action_dirs[body.action("jawOpen")].norm(dim=1)[corners].mean(1) < 1e-3).numpy()


def on_teeth(body: Body, region) -> np.ndarray:
    """Which (n,) of the regions are teeth."""
    return np.asarray(region) == REGIONS.index("teeth")
