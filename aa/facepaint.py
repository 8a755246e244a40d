"""What a photo does not show of eyes and mouth: the hidden part of iris and white, the shade in the mouth."""

import numpy as np

from aa.view import project


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
