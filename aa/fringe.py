"""Loose particles for what the body mesh does not cover in the photo: hair, skirts, wide sleeves.

Each hangs on up to three body vertices of different parts, the nearer the stronger, so that hair on a shoulder shears smoothly when
the head turns. In depth the fringe is rounded and has a back.
"""

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from aa.align import solid_faces
from aa.body import Body
from aa.gaussians import FACE_REGIONS
from aa.particles import Particles, grid
from aa.view import View

SPACING = 2.2  # px between neighbours
THICK = 0.035  # m, half of the greatest thickness
STIFF_MM = 2.0  # what facial actions move further carries no hair
BLEND = 0.3  # distances between the pupils over which the hold of one part gives way to another's
COLOUR = 5.0  # distances between the pupils that a colour difference of 1 (black to pure red) counts for
VOTES = 20  # neighbours that decide together what they hang on
THIN_PX, SMALL_PX = 3, 60  # strips thinner and patches smaller than this belong to the outline's own blur
JOINED = np.eye(10)  # parts between which hold may be shared: an arm comes off the trunk instead
for a, b in ((0, 1), (2, 4), (3, 5), (4, 6), (5, 7), (8, 9)):
    JOINED[a, b] = JOINED[b, a] = 1
BACK = 0.8  # brightness of the far side


def parts_of_vertices(body: Body, stiff: bool = True) -> np.ndarray:
    """Part (V,) of each vertex: 0 head, 1 trunk, then arms, hands and legs left and right; if stiff, -1 for what the face moves."""
    part = np.full(len(body.v_template), -1)
    left = (body.v_template[:, 0] > 0).numpy().astype(int)
    groups = (("upperarm",), ("forearm",), ("hand", "nail"), ("leg", "foot"))
    for k, names in enumerate(groups):
        ids = body.region_vertices(*names).numpy()
        part[ids] = 2 + 2 * k + left[ids]
    part[body.region_vertices("torso", "neck").numpy()] = 1
    head = body.region_vertices("scalp", "ear", "face", *(() if stiff else FACE_REGIONS)).numpy()
    part[head] = 0
    moved = body.action_dirs.norm(dim=-1).amax(0).numpy() * 1000 > STIFF_MM
    part[moved] = -1 if stiff else 0
    return part


def fringe(body: Body, view: View, vertices, eyes_px: float) -> Particles:
    """Loose particles for the pixels of the person that show no mesh."""
    faces, _ = solid_faces(body)
    part = parts_of_vertices(body)
    gap = _solid((view.mask > 0.5) & ((view.tri < 0) | view.claimed))
    at = grid(gap, SPACING)
    if len(at) == 0:
        return _nothing()
    strongest = np.take_along_axis(faces.numpy()[view.tri], view.bary.argmax(-1)[..., None], -1)[..., 0]
    strongest[view.tri < 0] = -1
    owner = np.where((strongest >= 0) & ~view.claimed & ~view.stray & (view.mask > 0.5), part[strongest], -1)
    corners, weights, depth = _hold(owner, strongest, view, at, eyes_px)
    back, colors = _rounded(gap, at, depth, view), view.front[at[:, 1], at[:, 0]]
    f = float(view.K[0, 0])
    pieces = []
    for sign, keep in ((-1, np.ones(len(at), bool)), (1, np.arange(len(at)) % 2 == 0)):
        z = (depth + sign * back)[keep]
        camera = np.stack(
            [(at[keep, 0] + 0.5 - float(view.K[0, 2])) / f * z, (at[keep, 1] + 0.5 - float(view.K[1, 2])) / f * z, z], 1
        )
        means = (torch.from_numpy(camera).float() - view.viewmat[:3, 3]) @ view.viewmat[:3, :3]
        size = torch.from_numpy(SPACING * z / f * (0.62 if sign < 0 else 1.1)).float()
        n = int(keep.sum())
        tint = torch.from_numpy(colors[keep]).float() * (1.0 if sign < 0 else BACK)
        pieces.append(
            Particles(
                torch.from_numpy(corners[keep]),
                torch.from_numpy(weights[keep]).float(),
                torch.ones(n, dtype=torch.bool),
                means,
                torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
                size[:, None].repeat(1, 3),
                torch.full((n,), 0.9),
                tint,
                torch.full((n,), sign < 0),
            )
        )
    from aa.particles import join

    return join(pieces)


def _solid(gap) -> np.ndarray:
    """Drop thin strips and small patches of a mask (H, W)."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * (THIN_PX // 2) + 1,) * 2)
    core = cv2.morphologyEx(gap.astype(np.uint8), cv2.MORPH_OPEN, disc)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(core)
    small = stats[:, cv2.CC_STAT_AREA] < SMALL_PX
    small[0] = True
    kept = (~small[labels]).astype(np.uint8)
    return (cv2.dilate(kept, np.ones((3, 3), np.uint8)) > 0) & gap


def _hold(owner, strongest, view, at, eyes_px: float):
    """Vertices (n, 3), weights (n, 3) and depth (n,) from the nearest covered pixels of each part; a like colour counts as near."""
    soft = cv2.GaussianBlur(view.front, (0, 0), 2.0)
    mine, depth = soft[at[:, 1], at[:, 0]], view.depth
    groups = [g for g in np.unique(owner) if g >= 0]
    far, vertex, z = [], [], []
    for g in groups:
        distance, (y, x) = distance_transform_edt(owner != g, return_indices=True)
        yy, xx = y[at[:, 1], at[:, 0]], x[at[:, 1], at[:, 0]]
        unlike = np.linalg.norm(soft[yy, xx] - mine, axis=1)
        far.append(distance[at[:, 1], at[:, 0]] + COLOUR * eyes_px * unlike)
        vertex.append(strongest[yy, xx])
        z.append(depth[yy, xx])
    while len(far) < 3:
        far.append(np.full(len(at), 1e6))
        vertex.append(vertex[0])
        z.append(z[0])
    far, vertex, z = np.stack(far, 1), np.stack(vertex, 1), np.stack(z, 1)
    near = cKDTree(at).query(at, k=min(VOTES, len(at)))[1].reshape(len(at), -1)
    for _ in range(2):  # neighbours go together
        far = far[near].mean(1)
    best = np.argsort(far, 1)[:, :3]
    pick = lambda a: np.take_along_axis(a, best, 1)  # noqa: E731
    group = pick(np.broadcast_to(np.array((groups + [groups[0]] * 2)[: far.shape[1]]), far.shape))
    weight = np.exp(-(pick(far) - pick(far)[:, :1]) / (BLEND * eyes_px))
    weight *= JOINED[group[:, :1], group]
    weight /= weight.sum(1, keepdims=True)
    return pick(vertex), weight, (pick(z) * weight).sum(1)


def _rounded(gap, at, depth, view) -> np.ndarray:
    """Half thickness (n,) m: grows from the outline inwards like a circle."""
    person = (view.mask > 0.5).astype(np.uint8)
    inward = cv2.distanceTransform(person, cv2.DIST_L2, 5)[at[:, 1], at[:, 0]] * depth / float(view.K[0, 0])
    d = np.minimum(inward, THICK)
    return np.sqrt(d * (2 * THICK - d))


def _nothing() -> Particles:
    e = torch.empty
    return Particles(
        e(0, 3, dtype=torch.long), e(0, 3), e(0, dtype=torch.bool), e(0, 3), e(0, 4), e(0, 3), e(0), e(0, 3), e(0, dtype=torch.bool)
    )  # fmt: skip
