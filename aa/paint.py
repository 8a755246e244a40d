"""Colours of an avatar's particles: from the photo where it shows them, else from their mirror image or their neighbourhood."""

import numpy as np
from scipy.spatial import cKDTree

from aa.body import REGIONS, Body
from aa.facepaint import paint_eyes, shade_mouth
from aa.lids import lid_chart, paint_lids
from aa.ownership import is_skin, parts_of_regions
from aa.surface import continue_colours, limb_axes
from aa.view import View, part_colours, visible

# Regions whose hidden particles may borrow each other's colours
MATERIALS = {
    "face": 0, "eyelid": 0, "lips": 1, "neck": 2, "ear": 3, "scalp": 4, "torso": 5, "upperarm": 5, "forearm": 6, "hand": 7,
    "nail": 7, "leg": 8, "foot": 9,
}  # fmt: skip
BELOW_HEAD = ("neck", "torso", "upperarm", "forearm", "hand", "nail", "leg", "foot")
DRESSED_ALIKE = (("neck",), ("torso", "upperarm", "forearm"), ("hand", "nail"), ("leg", "foot"))
STEEP = 0.5  # cosine of normal and view ray from which a colour is taken as it is: below, a pixel stretches over much surface
INSIDE = {"mouth": (0.30, 0.08, 0.08), "tongue": (0.55, 0.24, 0.23), "teeth": (0.80, 0.77, 0.71), "eye_cavity": (0.3, 0.1, 0.1)}


def paint(body: Body, view: View, person, vertices, points, normals, radius, rest, shut, region, scale_px):
    """Colours (n, 3) of particles and which of them the photo shows (n,).

    Args: vertices (V, 3) as in the photo; points, normals (n, 3); radius (n,) px; rest (n, 3) their places on the mean body;
        shut (n, 3) the same with closed eyes; region (n,) index into REGIONS; scale_px: px of the view per px of the photo.
    """
    seen, pixels, facing = visible(view, points, normals)
    names = np.array(REGIONS)[region]
    inner = np.isin(names, list(INSIDE))
    seen &= ~inner
    own, lit = (part_colours(view, im, pixels, radius, parts_of_regions(names, rest[:, 0])) for im in (view.front, view.lit))
    colors = spread(lit, seen, rest, materials(body, region, rest))
    colors = dress(body, colors, seen, facing, rest, normals.numpy(), names)
    colors += (seen * np.clip(facing / STEEP, 0, 1) ** 2)[:, None] * (own - lit)  # where the photo shows them, shadows are right
    blink = 1000 * np.linalg.norm(shut - rest, axis=1)
    colors, seen = paint_lids(lid_chart(body), names, blink, rest, shut, colors, seen)
    face = np.isin(names, ["face"]) & seen
    bright = float(np.median(colors[face].mean(1))) / 0.6 if face.any() else 1.0
    for name, rgb in INSIDE.items():
        least = 0.85 if name == "teeth" else 0.35  # teeth are white whatever the skin
        colors[names == name] = np.array(rgb) * np.clip(bright, least, 1.2)
    colors = shade_mouth(body, rest, names, colors)
    colors = paint_eyes(body, view, person, vertices, points, names, seen, colors, scale_px)
    return colors.clip(0, 1), seen


def dress(body: Body, colors, seen, facing, rest, normals, names) -> np.ndarray:
    """Colours (n, 3) below the head: hidden ones continued over the surface, those seen at a grazing angle partly."""
    below = np.isin(names, BELOW_HEAD)
    if not (below & seen).any():
        return colors
    sure = seen[below] * np.clip(facing[below] / STEEP, 0, 1) ** 2
    place, own = rest[below], names[below]
    bare = is_skin(colors[below], colors[seen & (names == "face")])
    trust = lit(colors[below], sure, own, bare)
    colors = colors.copy()
    axes = limb_axes(body, place, own)
    colors[below] = continue_colours(colors[below], sure, place, normals[below], own, axes, bare, trust)
    return colors


def lit(colors, sure, names, bare) -> np.ndarray:
    """Trust (n,) in colours (n, 3): little in those far darker than usual for skin or cloth there: they lie in shadow."""
    bright, out = colors.mean(1), np.ones(len(colors))
    for group in DRESSED_ALIKE:
        for kind in (False, True):
            mine = np.isin(names, group) & (bare == kind)
            if (mine & (sure > 0.3)).any():
                usual = np.median(bright[mine & (sure > 0.3)])
                out[mine] = np.clip((bright[mine] / max(usual, 0.02) - 0.4) / 0.4, 0.05, 1)
    return out


def materials(body: Body, region, rest) -> np.ndarray:
    """Material (n,) of particles by region; below the ears the back of the head and the skin under the jaw count as neck."""
    out = np.array([MATERIALS.get(n, -1) for n in REGIONS])[region]
    low = float(body.v_template[body.region_vertices("ear"), 2].min())
    out[(out == MATERIALS["scalp"]) & (rest[:, 2] < low)] = MATERIALS["neck"]
    return out


def spread(colors, seen, rest, material) -> np.ndarray:
    """Give hidden particles the colour of their visible mirror image, else a mean over near visible ones of their material."""
    colors = colors.copy()
    for m in np.unique(material):
        mine = material == m
        known = mine & seen
        if known.sum() < 8:
            known = seen if m != 1 else seen & (material == 0)
        want = mine & ~seen
        if not want.any() or not known.any():
            continue
        place = rest[known]
        tree = cKDTree(place)
        distance, near = tree.query(rest[want], k=min(12, int(known.sum())))
        weight = 1 / (distance + 0.25 * distance[:, -1:] + 1e-4) ** 2
        own = (colors[known][near] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
        twin, at = tree.query(rest[want] * [-1, 1, 1])
        use = np.clip((distance[:, 0] - 0.02) / 0.03, 0, 1) * (twin < 0.01)
        colors[want] = own + use[:, None] * (colors[known][at] - own)
    return colors
