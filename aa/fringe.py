"""Loose particles for what the body mesh does not cover in the photo: hair, skirts, wide sleeves, things in a hand.

The owner of each pixel (aa.ownership) says what a particle hangs on. It is held by up to three body vertices of parts that keep
together, the nearer the stronger, so that hair over a shoulder shears smoothly when the head turns. In depth every piece is round:
as thick as it is wide, with a front, a back and walls.
"""

from dataclasses import replace

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from aa.align import solid_faces
from aa.bluenoise import grid
from aa.body import Body
from aa.detail import UNSURE
from aa.ownership import ALIKE, HAIR, HAND, HEAD, LEG, TRUNK, UPPER_ARM, chain, is_skin, parts_of_vertices, unlike
from aa.particles import Particles, join
from aa.view import View, part_colours, project

SPACING = 2.2  # px between neighbours
FINE, COARSE = 0.62, 1.4  # radius (standard deviation) over that in front, and at the back, where each fourth is left
THICK = {HAIR: 0.08, TRUNK: 0.06, LEG: 0.06, LEG + 1: 0.06, HAND: 0.012, HAND + 1: 0.012}  # m, half of the greatest thickness
SLEEVE = 0.02  # the same for arms
FRONT = 0.6  # thickness before the middle over that behind it: hair grows towards the back
BLEND = 0.3  # distances between the pupils over which the hold of one part gives way to another's
THIN_PX, SMALL_PX = 3, 60  # strips thinner and patches smaller than this belong to the outline's own blur
STRIP, HELD, SLEEVE_WIDE = 0.06, 0.25, 0.13  # distances between the pupils: least width of loose pieces, of things held, of sleeves
BESIDE = 0.2  # the same within which hair may be mixed with an arm before it
BETWEEN = 0.15  # the square of that distance: least area of a piece between arm and trunk
BACK = 0.8  # brightness of the far side
MOST_WALL = 12  # particles one behind the other where the surface runs away from the eye
OTHER = 1.0  # distances between the pupils that the next part along a limb counts as farther away
SHADOW = 0.8  # brightness of cloth in the shade over its usual one, at least
BEFORE = 0.015  # m by which hair lies before the clothes it covers


def fringe(body: Body, view: View, vertices, eyes_px: float) -> Particles:
    """Loose particles for the pixels of the person that show no mesh, or something before it."""
    gap = _solid((view.owner >= 0) & ((view.tri < 0) | view.claimed))
    gap = _rooted(gap & ~_debris(gap, view, eyes_px), view)
    at = grid(gap, SPACING)
    if len(at) == 0:
        return _nothing()
    owner = view.owner[at[:, 1], at[:, 0]]
    owner = np.where((owner == HEAD) & (view.tri[at[:, 1], at[:, 0]] < 0), HAIR, owner)
    keeps = (owner != HAIR) | _by_arm(view, eyes_px)[at[:, 1], at[:, 0]]  # their first colours, in the refinement
    pieces, held = [], []
    corners, weights, depth = (np.zeros((len(at), *shape), kind) for shape, kind in (((3,), int), ((3,), float), ((), float)))
    half = np.zeros(len(at))
    vertex = _vertices_seen(body, view)
    for k in np.unique(owner):
        mine = owner == k
        corners[mine], weights[mine], depth[mine] = _hold(k, vertex, view, at[mine], eyes_px)
        half[mine] = _rounded(k, at[mine], depth[mine], view)
    colors = _unshaded(part_colours(view, view.front, at + 0.5, np.full(len(at), 0.4 * SPACING), owner), owner, view)
    front, back = _sheets(at, depth, half, view, owner)
    for (index, z), size in ((front, FINE), (back, COARSE)):
        pieces.append(_place(view, at[index], z, corners[index], weights[index], colors[index], size))
        held.append(keeps[index])
    hanging = (owner == HAIR) & (view.tri[at[:, 1], at[:, 0]] < 0)
    if hanging.any():
        nape, z, tint = _nape(body, view, vertices, at[hanging], (depth + half)[hanging], colors[hanging])
        hold = _hold(HAIR, vertex, view, nape, eyes_px)
        pieces.append(_place(view, nape, z, *hold[:2], tint, COARSE))
        held.append(np.zeros(len(nape), bool))
    out = join(pieces)
    return replace(out, firm=UNSURE * torch.from_numpy(np.concatenate(held)).float())


def _unshaded(colors, owner, view: View):
    """Colours (n, 3) without the deep shadow between arm and body, which is no colour of the cloth: seen elsewhere it is dirt."""
    colors = colors.copy()
    for k in range(TRUNK, HAND):
        mine, body = owner == k, (view.owner == k) & (view.tri >= 0) & ~view.claimed
        if mine.any() and body.any():
            usual = np.median(view.front[body], 0)
            dark = np.clip(1 - colors[mine].mean(1) / max(SHADOW * usual.mean(), 1e-3), 0, 1)[:, None]
            colors[mine] += dark * (SHADOW * usual - colors[mine])
    return colors.clip(0, 1)


def _nape(body: Body, view: View, vertices, at, depth, colors):
    """Pixels (m, 2), depths (m,) m and colours (m, 3) of hair behind the neck: what hangs down on both sides of it is joined there.

    Args: vertices (V, 3); at (n, 2) pixels, depth (n,) of the back and colors (n, 3) of hair beside the head.
    """
    pixels, z = project(vertices[torch.unique(solid_faces(body)[0])], view.viewmat, view.K)
    ears = project(vertices[body.region_vertices("ear")], view.viewmat, view.K)[0]
    middle, top = ears[:, 0].mean(), ears[:, 1].max() - 0.3 * np.ptp(ears[:, 1])
    step = 2 * SPACING
    out = []
    for y in np.arange(top, np.quantile(at[:, 1], 0.97), step):
        row = np.abs(at[:, 1] - y) < step
        left, right = (row & (at[:, 0] < middle)).nonzero()[0], (row & (at[:, 0] > middle)).nonzero()[0]
        if not len(left) or not len(right):
            continue
        a, b = left[at[left, 0].argmax()], right[at[right, 0].argmin()]  # the inner ends
        x = np.arange(at[a, 0], at[b, 0], step)
        share = ((x - at[a, 0]) / max(at[b, 0] - at[a, 0], 1))[:, None]
        away = np.hypot(pixels[:, 0] - x[:, None], pixels[:, 1] - y)
        body_back = np.where(away < np.maximum(3 * step, away.min(1, keepdims=True) + 1), z, 0).max(1)
        between = (depth[a] + share * (depth[b] - depth[a]))[:, 0]
        tint = colors[left].mean(0) + share * (colors[right].mean(0) - colors[left].mean(0))
        out.append(np.c_[x, np.full(len(x), y), np.maximum(body_back + 0.5 * BEFORE, between), tint])
    out = np.concatenate(out) if out else np.zeros((0, 6))
    return out[:, :2].astype(int), out[:, 2], out[:, 3:]


def _place(view: View, at, z, corners, weights, colors, size: float) -> Particles:
    """Round particles of `size` spacings at pixels (n, 2) and depths (n,) m; coarse ones are at the back, in the shade."""
    f, n = float(view.K[0, 0]), len(at)
    centre = view.K[:2, 2].numpy()
    camera = np.c_[(at + 0.5 - centre) / f * z[:, None], z]
    means = (torch.from_numpy(camera).float() - view.viewmat[:3, 3]) @ view.viewmat[:3, :3]
    radius, front = torch.from_numpy(size * SPACING * z / f).float(), size == FINE
    return Particles(
        torch.from_numpy(corners), torch.from_numpy(weights).float(), torch.ones(n, dtype=torch.bool), means,
        torch.tensor([1.0, 0, 0, 0]).repeat(n, 1), radius[:, None].repeat(1, 3), torch.full((n,), 0.9),
        torch.from_numpy(colors * (1.0 if front else BACK)).float(), torch.full((n,), front),
    )  # fmt: skip


def _solid(gap) -> np.ndarray:
    """Drop thin strips and small patches of a mask (H, W)."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * (THIN_PX // 2) + 1,) * 2)
    core = cv2.morphologyEx(gap.astype(np.uint8), cv2.MORPH_OPEN, disc)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(core)
    small = stats[:, cv2.CC_STAT_AREA] < SMALL_PX
    small[0] = True
    kept = (~small[labels]).astype(np.uint8)
    return (cv2.dilate(kept, np.ones((3, 3), np.uint8)) > 0) & gap


def _debris(gap, view: View, eyes_px: float) -> np.ndarray:
    """Pixels (H, W) of the gap that are not clearly hair, skirt, sleeve or a thing in a hand. Seen from elsewhere they would hang
    in the air; a small hole is the lesser evil. They are: the background's colour, on arms a colour that the arm does not have,
    strips beside and before limbs, and what little of the trunk shows between it and an arm."""
    out = np.zeros_like(gap)
    limb = (view.owner >= UPPER_ARM) & (view.owner < LEG)
    behind = view.image[tuple(distance_transform_edt(view.mask > 0.02, return_distances=False, return_indices=True))]
    face = view.lit[view.owner == HEAD]
    hair = gap & (view.owner == HAIR)
    beside = hair & _by_arm(view, eyes_px)
    if beside.any():  # the colours of fingers before it
        out[beside] = unlike(view.lit[beside], view.lit[hair]) > ALIKE
    for k in np.intersect1d(view.owner[gap], range(TRUNK, LEG)):
        mine, body = gap & (view.owner == k), (view.owner == k) & (view.shown == k) & ~view.edge
        strange = np.zeros_like(gap)
        if body.sum() > 20:
            color = view.lit[mine]
            other = unlike(color, view.lit[body])
            out[mine] = np.linalg.norm(color - behind[mine], axis=1) < np.minimum(other, ALIKE)
            strange[mine] = (k != TRUNK) & (other > 1.5 * ALIKE) & ~is_skin(color, face)
        own = _broad(mine & ~strange, (SLEEVE_WIDE if UPPER_ARM <= k < HAND else STRIP) * eyes_px)
        if k == TRUNK:
            _, pieces, stats, _ = cv2.connectedComponentsWithStats(own.astype(np.uint8))
            by_arm = np.unique(pieces[cv2.dilate(limb.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0])
            own &= ~np.isin(pieces, by_arm[stats[by_arm, cv2.CC_STAT_AREA] < BETWEEN * eyes_px**2])
        held = _broad(mine & ~out, HELD * eyes_px) if k >= HAND else np.zeros_like(gap)
        out |= mine & ~own & ~held
    return out


def _by_arm(view: View, eyes_px: float) -> np.ndarray:
    """Pixels (H, W) bool close to an arm that the photo shows."""
    arm = (view.owner >= UPPER_ARM) & (view.owner < LEG)
    return distance_transform_edt(~arm) < BESIDE * eyes_px if arm.any() else arm


def _broad(where, width: float) -> np.ndarray:
    """The pixels of a mask (H, W) where it is broader than `width` px; what the picture's edge cuts counts as narrow."""
    size = round(width) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    core = cv2.morphologyEx(np.pad(where, size).astype(np.uint8), cv2.MORPH_OPEN, disc)[size:-size, size:-size]
    return (cv2.dilate(core, np.ones((3, 3), np.uint8)) > 0) & where


def _rooted(gap, view: View) -> np.ndarray:
    """The pieces of a mask (H, W) that touch what they belong to: others would hang in the air."""
    out = np.zeros_like(gap)
    for k in np.unique(view.owner[gap]):
        mine = gap & (view.owner == k)
        body = (view.tri >= 0) & ~view.claimed & np.isin(view.owner, chain(k))
        _, pieces = cv2.connectedComponents(mine.astype(np.uint8))
        touched = np.unique(pieces[cv2.dilate(body.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0])
        out |= mine & np.isin(pieces, np.setdiff1d(touched, 0))
    return out


def _vertices_seen(body: Body, view: View):
    """For each part, the pixels (H, W) of the mesh that particles may hang on; and the strongest vertex of each pixel."""
    part = parts_of_vertices(body)
    part[body.region_vertices("neck").numpy()] = -1  # it follows the head halfway: a poor hold for hair
    faces = solid_faces(body)[0].numpy()
    vertex = np.take_along_axis(faces[view.tri], view.bary.argmax(-1)[..., None], -1)[..., 0]
    shows = np.where((view.tri >= 0) & ~view.claimed & ~view.stray & (view.mask > 0.5), part[vertex], -1)
    return shows, vertex


def _hold(k: int, seen, view: View, at, eyes_px: float):
    """Vertices (n, 3), weights (n, 3) and middle depth (n,) for pixels (n, 2) of part k."""
    shows, vertex = seen
    allowed = (HEAD, TRUNK) if k == HAIR else [j for j in chain(k) if j != HEAD and j != HAIR]
    x, y = at.T
    far, corner, z, held = [], [], [], []
    for j in allowed:
        if not (shows == j).any():
            continue
        distance, (yy, xx) = distance_transform_edt(shows != j, return_indices=True)
        held.append(j)
        far.append(distance[y, x])
        corner.append(vertex[yy[y, x], xx[y, x]])
        z.append(_smooth(view.depth[yy, xx], np.minimum(distance, 40))[y, x])
    if not far:
        raise ValueError(f"nothing in view holds part {k}")
    far, corner, z = (np.stack(v, 1) for v in (far, corner, z))
    own = z[:, held.index(k)] if k in held else (z / far.clip(1)).sum(1) / (1 / far.clip(1)).sum(1)
    far = far + OTHER * eyes_px * (np.array(held) != k) if k in held else far
    best = np.argsort(far, 1)[:, :3]
    far, corner = (np.take_along_axis(v, best, 1) for v in (far, corner))
    if k == HAIR:  # from the head to the shoulders, the share of either falls with the distance to it
        weight = 1 / (far + 2.0) ** 2
    else:
        weight = np.exp(-(far - far[:, :1]) / (BLEND * eyes_px))
    weight /= weight.sum(1, keepdims=True)
    fill = 3 - weight.shape[1]
    corner, padded = np.pad(corner, ((0, 0), (0, fill)), mode="edge"), np.pad(weight, ((0, 0), (0, fill)))
    return corner, padded, own


def _smooth(depth, away) -> np.ndarray:
    """Depths (H, W) copied from the nearest outline, softened: each pixel's neighbours copy from somewhere else."""
    return cv2.GaussianBlur(np.where(np.isfinite(depth), depth, 0).astype(np.float32), (0, 0), 4.0)


def _rounded(k: int, at, depth, view: View) -> np.ndarray:
    """Half thickness (n,) m at pixels (n, 2) of part k: grows inwards from the edge of what it belongs to, like a circle, and no
    thicker than the loose piece is wide."""
    own = np.isin(view.owner, chain(k))
    inward = cv2.distanceTransform(np.pad(own, 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    x, y = at.T
    pixel = depth / float(view.K[0, 0])  # m
    alone = np.zeros_like(inward)
    alone[y, x] = inward[y, x]
    reach = max(3, round(float(THICK[HAIR] / np.median(pixel)))) | 1
    radius = np.minimum(cv2.dilate(alone, np.ones((reach, reach), np.uint8))[y, x] * pixel, THICK.get(k, SLEEVE))
    d = np.minimum(inward[y, x] * pixel, radius)
    return np.sqrt(d * (2 * radius - d))


def _sheets(at, depth, half, view: View, owner):
    """Indices and depths of the front's particles and of the back's: where the surface runs away from the eye, several in a row.

    What lies before the mesh is one sheet; hair touches it.
    """
    x, y = at.T
    mesh = view.depth[y, x]
    on_mesh = np.isfinite(mesh)
    front = depth - FRONT * half
    front = np.where(on_mesh & ((owner == HAIR) | (front > mesh)), mesh - BEFORE, front)
    surface = np.full(view.mask.shape, 1e3, np.float32)
    surface[y, x] = half
    fall = half - cv2.erode(surface, np.ones((5, 5), np.uint8))[y, x]
    rows = np.ceil(fall * float(view.K[0, 0]) / (1.5 * SPACING * depth)).clip(1, MOST_WALL).astype(int)
    rows[on_mesh] = 1
    index = np.repeat(np.arange(len(at)), rows)
    inside = (np.arange(len(index)) - np.repeat(np.cumsum(rows) - rows, rows)) / rows[index] * fall[index]
    thick = half * float(view.K[0, 0]) > COARSE * SPACING * depth  # else the back would look out beside the front
    behind = (~on_mesh & thick)[index] & (index % 4 == 0)
    return (index, front[index] + FRONT * inside), (index[behind], (depth + half)[index[behind]] - inside[behind])


def _nothing() -> Particles:
    e = torch.empty
    return Particles(
        e(0, 3, dtype=torch.long), e(0, 3), e(0, dtype=torch.bool), e(0, 3), e(0, 4), e(0, 3), e(0), e(0, 3), e(0, dtype=torch.bool)
    )  # fmt: skip
