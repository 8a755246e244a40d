"""What a photo with open eyes and closed lips does not show: closed lids, the hidden part of the eyes, shade in the mouth."""

import numpy as np
import torch
from scipy.spatial import cKDTree

from aa.body import Body
from aa.view import project

LID_MM = 1.0  # what a blink moves further than this is lid


def paint_lids(names, blink, rest, colors, seen):
    """Skin for what a blink unrolls: lids take the tone of the cheek below, the photo's lashes stay on their rims."""
    lid = (blink > LID_MM) & np.isin(names, ["face", "eyelid", "eye_cavity"])
    skin = seen & (names == "face") & (blink < 0.2)
    if not lid.any() or skin.sum() < 20:
        return colors, seen
    colors = colors.copy()
    height = np.median(rest[lid & (names == "eyelid"), 2])
    below = np.flatnonzero(skin & (rest[:, 2] < height - 0.012) & (rest[:, 2] > height - 0.035))
    across = np.stack([rest[lid][:, 0], np.full(lid.sum(), rest[below, 1].min()), np.full(lid.sum(), height - 0.022)], 1)
    tone = 0.97 * colors[below[cKDTree(rest[below]).query(across, k=12)[1]]].mean(1)
    rim = (names == "eyelid")[lid]
    shown = seen[lid] & ~rim
    if shown.sum() > 20:  # lids lie in the shade of the brow: as bright as the brighter part of what shows of them
        tone *= np.clip(np.percentile(colors[lid][shown].mean(1), 65) / tone.mean(), 0.5, 1.0)
    own, dark = colors[lid], colors[lid].mean(1) / tone.mean(1).clip(1e-3)
    share = np.where(seen[lid], np.clip((0.82 - dark) / 0.2, 0, 1) * np.clip((blink[lid] - LID_MM) / 2, 0, 1), 1.0)[:, None]
    painted = own + share * (tone - own)
    colors[lid] = np.where(rim[:, None], np.where(seen[lid][:, None], own, 0.75 * tone), painted)
    return colors, seen & ~(lid & (names != "eyelid"))


def shade_mouth(body, rest, names, colors):
    """Darker towards the throat: what lies more than 3 cm behind the lips gets little light."""
    lips = body.v_template[body.region_vertices("lips")].numpy()
    deep = rest[:, 1] - lips[:, 1].min()
    inner = np.isin(names, ["mouth", "tongue", "teeth"])
    shade = np.clip(1.15 - deep / 0.07, 0.2, 1.0)
    colors = colors.copy()
    colors[inner] *= shade[inner, None]
    return colors


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


def blink_actions(body: Body) -> torch.Tensor:
    """Action coefficients (A,) of both eyes shut."""
    return torch.tensor([1.0 if name.startswith("eyeBlink") else 0.0 for name in body.action_names])


def blink_mm(body: Body) -> torch.Tensor:
    """How far (V, 1) in mm a blink moves each vertex."""
    return 1000 * (body.rest(actions=blink_actions(body)) - body.v_template).norm(dim=1, keepdim=True)
