"""Eyelids: samples that are even when the eyes are closed, and the colours of what a photo with open eyes does not show of them.

Both are made in the chart of the closed eyes: the mean face, eyes shut, as a camera in front of it sees it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from aa.align import solid_faces
from aa.bluenoise import grid
from aa.body import REGIONS, Body
from aa.gaussians import Layout, intrinsics, look_at, project
from aa.zbuffer import zbuffer

LID_MM = 1.0  # what a blink moves further than this is lid
SPACING = 0.0008  # m between the extra particles of closed lids
CHART_MM = 0.2  # size of a pixel of the chart
HEXAGON = 0.265  # root of the second moment of a hexagonal cell over its spacing
FAR = 4.0  # m from the chart's camera to the face: nearly no perspective
LASH_MM = 0.35  # half width (standard deviation) of the line of lashes
RIM_MM = 1.6  # so far from the line the photo's open eyes show lashes on the lid
AROUND, NEARBY = 0.015, 0.007  # m around the lids from where their tone is taken; fall-off with distance
DARKEST, SHADE = 0.93, 0.84  # least brightness over the skin around: of what only closed lids show, and of what open ones do
COVERED_PX, COVERED_MM = 1.4, 0.6  # by how much lids are drawn too low: half a disc, and the blur of pixels
MOST_OPENED = 0.35  # of a blink
ALONG_MM, ACROSS_MM = 3.0, 0.4  # lashes are smoothed along the lid, hardly across


def blink_actions(body: Body) -> torch.Tensor:
    """Action coefficients (A,) of both eyes shut."""
    return torch.tensor([1.0 if name.startswith("eyeBlink") else 0.0 for name in body.action_names])


def blink_mm(body: Body) -> torch.Tensor:
    """How far (V, 1) in mm a blink moves each vertex."""
    return 1000 * (body.rest(actions=blink_actions(body)) - body.v_template).norm(dim=1, keepdim=True)


def open_lids(body: Body, view, vertices, turn) -> torch.Tensor:
    """Displacement (V, 3) m of a mesh (V, 3), turned (V, 3, 3), that raises the lids' particles off the eyes that they cover.

    The mesh's lids are where the photo has them, but particles have a size and pixels blur: drawn on it, eyes look sleepy.
    """
    blink = (turn @ (body.rest(actions=blink_actions(body)) - body.v_template)[..., None])[..., 0]
    depth = vertices[body.region_vertices("eye")] @ view.viewmat[2, :3] + view.viewmat[2, 3]
    covered = COVERED_PX * float(depth.median() / view.K[0, 0]) + COVERED_MM / 1000
    return -min(MOST_OPENED, covered / float(blink.norm(dim=1).max())) * blink


@dataclass(frozen=True)
class LidChart:
    """The closed eyes of the mean body, 0.2 mm a pixel."""

    shut: torch.Tensor  # (V, 3) m, vertices with closed eyes
    viewmat: torch.Tensor
    K: torch.Tensor
    depth: np.ndarray  # (H, W) m
    tri: np.ndarray  # (H, W) index into body.faces, -1
    bary: np.ndarray  # (H, W, 3)
    line_mm: np.ndarray  # (H, W) distance from where the lids meet, negative on the lower lid

    def read(self, points):
        """Signed distance (n,) mm from the line of lashes of points (n, 3) on the closed lids, and which (n,) are in sight."""
        pixels, z = (x.numpy() for x in project(torch.as_tensor(points), self.viewmat, self.K))
        h, w = self.depth.shape
        x, y = (pixels[:, k].astype(int).clip(0, n - 1) for k, n in ((0, w), (1, h)))
        return self.line_mm[y, x], z - self.depth[y, x] < 0.0006


def lid_chart(body: Body) -> LidChart:
    """Draw the closed eyes and find the line where upper and lower lid meet."""
    shut = body.rest(actions=blink_actions(body))
    eyes = body.v_template[body.region_vertices("eye")]
    low, high = eyes.amin(0), eyes.amax(0)
    middle = (low + high) / 2
    size = [int(1000 * float(high[k] - low[k] + 0.03) / CHART_MM) for k in (0, 2)]
    front = torch.tensor([0, float(low[1]), float(middle[2])])
    viewmat, K = look_at(front - torch.tensor([0, FAR, 0]), front), intrinsics(1000 * FAR / CHART_MM, *size)
    faces, which = solid_faces(body)
    depth, tri, bary = zbuffer(shut, faces, viewmat, K, *size)
    upper = _above_corners(body)[faces].float().mean(1).numpy()[tri] > 0.5
    lid = (body.face_region[which] == REGIONS.index("eyelid")).numpy()[tri] & (tri >= 0)
    line = np.zeros_like(lid)
    line[1:] = (lid[1:] | lid[:-1]) & ~upper[1:] & upper[:-1]
    distance = distance_transform_edt(~line) * CHART_MM
    tri = np.where(tri >= 0, which.numpy()[tri], -1)
    return LidChart(shut, viewmat, K, depth, tri, bary, np.where(upper, distance, -distance))


def _above_corners(body: Body) -> torch.Tensor:
    """Which vertices (V,) lie above the line from corner to corner of their open eye."""
    v, lids = body.v_template, body.region_vertices("eyelid")
    rim = v[lids[v[lids, 0] > 0]]
    inner, outer = (rim[rim[:, 0].argsort(descending=far)[:8]].mean(0) for far in (False, True))
    share = ((v[:, 0].abs() - inner[0]) / (outer[0] - inner[0])).clamp(0, 1)
    return v[:, 2] > inner[2] + share * (outer[2] - inner[2])


def lid_samples(body: Body) -> Layout:
    """Samples on a hexagonal grid over the closed lids: a blink spreads the layout's few until the eyeballs show through."""
    chart = lid_chart(body)
    moves = (blink_mm(body)[body.faces].amax((1, 2)) > LID_MM).numpy()
    skin = torch.isin(body.face_region, torch.tensor([REGIONS.index(n) for n in ("face", "eyelid")])).numpy()
    at = grid((chart.tri >= 0) & (moves & skin)[chart.tri], 1000 * SPACING / CHART_MM)
    tri = torch.from_numpy(chart.tri[at[:, 1], at[:, 0]])
    bary = torch.from_numpy(chart.bary[at[:, 1], at[:, 0]]).float()
    n, corners = len(at), body.faces[tri]
    flat = chart.shut[corners][..., [0, 2]]  # as the chart sees them
    inverse = torch.linalg.inv((flat[:, 1:] - flat[:, :1]).mT)
    cell = inverse @ inverse.mT * (HEXAGON * SPACING) ** 2
    region = body.face_region[tri]
    return Layout(tri, corners, bary, torch.ones(n, dtype=torch.long), region, torch.full((n,), SPACING), "lids", cell)


def paint_lids(chart: LidChart, names, blink, rest, shut, colors, seen):
    """Skin for what a blink unrolls: lids take the tone of the skin around the eye and end in a line of lashes.

    Args: names (n,) of the particles' regions; blink (n,) mm; rest, shut (n, 3) places on the mean body, eyes open and closed;
        colors (n, 3); seen (n,) bool. Returns colors and seen anew.
    """
    lid = (blink > LID_MM) & np.isin(names, ["face", "eyelid", "eye_cavity"])
    skin = seen & (names == "face") & (blink < LID_MM)
    if not lid.any() or skin.sum() < 20:
        return colors, seen
    colors, seen = colors.copy(), seen.copy()
    line, outside = (x[lid] for x in chart.read(shut))
    tone = _lid_tone(rest, colors, lid, skin)
    own, dark = colors[lid], colors[lid].mean(1) / tone.mean(1).clip(1e-3)
    rim = np.abs(line) < RIM_MM
    fold = np.clip((0.82 - dark) / 0.2, 0, 1) * np.clip((blink[lid] - LID_MM) / 2, 0, 1) * ~rim  # the photo shows a crease there
    known = seen[lid] & outside
    smooth = _along_lid(rest[lid, 0], line, own, known * (1 - fold), tone)
    unrolled = np.where(known, np.maximum(fold, np.clip(blink[lid] - 2, 0, 1)), 1.0)[:, None]
    painted = own + unrolled * (smooth - own)
    painted = np.where(rim[:, None], np.minimum(painted, 1.05 * tone), painted)  # no white of the eye on its rims
    away = np.clip(np.abs(line) / RIM_MM - 1, 0, 1) * np.clip((blink[lid] - LID_MM) / 3, 0, 1)
    least = np.where(known, SHADE, DARKEST) * tone.mean(1)  # shades of the open eye go when the lid unrolls
    lack = np.clip((least - painted.mean(1)) / (tone.mean(1) - painted.mean(1)).clip(1e-3), 0, 1)
    painted += (away * lack)[:, None] * (tone - painted)
    lash = _lashes(rest[lid, 0], own, known & (line > 0) & (line < 1), tone)
    share = (np.where(line > 0, 1.0, 0.5) * np.exp(-0.5 * (line / LASH_MM) ** 2))[:, None]
    painted += share * (np.minimum(lash, painted) - painted)
    colors[lid] = np.where(outside[:, None], painted, 0.8 * tone)
    seen[lid] &= outside & (fold < 0.5)
    return colors, seen


def _lid_tone(rest, colors, lid, skin) -> np.ndarray:
    """Tone (m, 3) of the m lid particles: a mean over near skin around the eye; brows and lashes do not count."""
    height, across = rest[lid, 2], np.abs(rest[lid, 0])
    around = skin & (rest[:, 2] > height.min() - AROUND) & (rest[:, 2] < height.max() + AROUND)
    around &= (np.abs(rest[:, 0]) > across.min() - AROUND / 2) & (np.abs(rest[:, 0]) < across.max() + AROUND)
    around = around if around.sum() > 40 else skin
    bright = colors[around].mean(1)
    distance, near = cKDTree(rest[around]).query(rest[lid], k=min(400, int(around.sum())))
    light = np.clip((bright / np.percentile(bright, 70) - 0.8) / 0.15, 0, 1)
    weight = (np.exp(-0.5 * (distance / NEARBY) ** 2) + 1e-6) * (light[near] + 1e-6)
    return (colors[around][near] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)


def _along_lid(x, line, own, weight, tone):
    """Colours (m, 3) smoothed along the lids, so that a blink unrolls neither jags nor lashes: kernel regression towards the tone.

    Args: x (m,) m across the face; line (m,) mm; own (m, 3) colours with weight (m,); tone (m, 3).
    """
    chart = np.stack([x * 1000 / ALONG_MM, line / ACROSS_MM + 50 * np.sign(line)], 1)
    distance, near = cKDTree(chart).query(chart, k=min(48, len(chart)))
    w = np.exp(-0.5 * distance**2) * weight[near]
    return ((own[near] * w[..., None]).sum(1) + 0.5 * tone) / (w.sum(1, keepdims=True) + 0.5)


def _lashes(x, own, edge, tone):
    """Colour (m, 3) of the line of lashes: the darkest that the edge of the upper lid shows near by."""
    if edge.sum() < 40:
        return 0.6 * tone
    there = own[edge][cKDTree(x[edge, None]).query(x[:, None], k=24)[1]]  # (m, 24, 3)
    darkest = np.argsort(there.mean(2), 1)[:, :6, None]
    return np.minimum(np.take_along_axis(there, darkest, 1).mean(1), 0.75 * tone)
