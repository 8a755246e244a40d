"""What a photo does not show of eyes and mouth: the hidden part of iris and white, the shade in the mouth."""

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from aa.align import solid_faces
from aa.body import REGIONS
from aa.lips import jaw_share
from aa.view import project

RIM = 0.035  # distance between the pupils over which lips near the line of the mouth are not trusted to the photo


def shade_mouth(body, rest, names, colors):
    """Darker towards the throat: what lies more than 3 cm behind the lips gets little light."""
    lips = body.v_template[body.region_vertices("lips")].numpy()
    deep = rest[:, 1] - lips[:, 1].min()
    inner = np.isin(names, ["mouth", "tongue", "teeth"])
    shade = np.clip(1.15 - deep / 0.07, 0.2, 1.0)
    colors = colors.copy()
    colors[inner] *= shade[inner, None]
    return colors


def paint_lips(body, view, points, rest, region, jaw, colors, seen, eyes_px: float):
    """Lips to their rims: what lies near the line of the mouth, or inside, takes the colour of the lip beside it.

    In the photo these pixels mix with teeth or with the shade between the lips, which an opening mouth would spread out.

    Args: points (n, 3) m as in the photo; rest (n, 3); region (n,) index into REGIONS; jaw (n,) share of the jaw's
        movement; colors (n, 3); seen (n,). Returns colors anew and which (n,) are such rims.
    """
    lips, rims = region == REGIONS.index("lips"), np.zeros(len(region), bool)
    faces, which = solid_faces(body)
    there = np.where(view.tri >= 0, body.face_region[which].numpy()[view.tri], -1)
    lower = (view.tri >= 0) & (jaw_share(body)[faces].mean(1).numpy()[view.tri] > 0.5)
    inside = np.isin(there, [REGIONS.index(n) for n in ("mouth", "teeth", "tongue")])
    lip = there == REGIONS.index("lips")
    line = inside.copy()
    line[1:] |= lip[1:] & lip[:-1] & lower[1:] & ~lower[:-1]
    pixels, _ = project(points[torch.from_numpy(lips)], view.viewmat, view.K)
    x, y = (pixels[:, i].astype(int).clip(0, n - 1) for i, n in enumerate(view.size))
    away = distance_transform_edt(~line)[y, x] if line.any() else np.full(len(x), 1e3)
    donor = seen[lips] & (away > max(0.75, RIM * eyes_px))
    if donor.sum() < 20:
        return colors, rims
    place = rest[lips] * 1000 / 4 + np.array([0, 0, 50]) * (jaw[lips] > 0.5)[:, None]
    distance, near = cKDTree(place[donor]).query(place, k=12)
    weight = np.exp(-0.5 * (distance - distance[:, :1]) ** 2)[..., None]
    smooth = (colors[lips][donor][near] * weight).sum(1) / weight.sum(1)
    colors = colors.copy()
    colors[lips] = np.where(donor[:, None], colors[lips], smooth)
    rims[lips] = ~donor
    return colors, rims


def paint_eyes(body, view, person, vertices, points, names, seen, colors, scale_px):
    """Continue iris and white of each eye under the lids."""
    colors = colors.copy()
    eye = names == "eye"
    x = body.v_template[:, 0]
    members = body.region_vertices("eye")
    for side, centre, ring in ((1, 473, (474, 475, 476, 477)), (-1, 468, (469, 470, 471, 472))):
        mine = members[x[members] * side > 0]
        middle = vertices[mine].mean(0)
        r = float((vertices[mine] - middle).norm(dim=1).median())
        mine_p = eye & ((points - middle).norm(dim=1).numpy() < 1.5 * r)
        pixels, z = project(middle[None], view.viewmat, view.K)
        px_per_m = float(view.K[0, 0]) / float(z[0])
        iris = person.face[[centre, *ring]] * scale_px
        offset = (iris[0] - pixels[0]) / px_per_m
        angle = np.arcsin(np.clip(np.linalg.norm(iris[1:] - iris[0], axis=1).mean() / px_per_m / r, 0.2, 0.8))
        axis = np.array([offset[0], offset[1], -np.sqrt(max(r * r - (offset**2).sum(), 0.3 * r * r))])
        pole = view.viewmat[:3, :3].T.numpy() @ (axis / np.linalg.norm(axis))
        direction = (points[mine_p] - middle).numpy()
        theta = np.arccos(np.clip(direction @ pole / np.linalg.norm(direction, axis=1), -1, 1)) / angle
        own, ok = colors[mine_p], seen[mine_p]
        white = ok & (theta > 1.15)
        sclera = np.percentile(own[white], 60, axis=0) if white.sum() > 5 else np.array([0.8, 0.77, 0.75])
        ringed = ok & (theta > 0.5) & (theta < 0.9)
        tone = np.median(own[ringed], 0) if ringed.sum() > 3 else np.array([0.2, 0.13, 0.1])
        hidden = np.where((theta < 0.4)[:, None], 0.3 * tone, np.where((theta < 1.0)[:, None], tone, 0.9 * sclera))
        colors[mine_p] = np.where(ok[:, None], own, hidden)
    return colors
