"""Bring a fitted body to the photo's outline and landmarks: a smooth displacement of its vertices in the image plane.

Bi-Laplacian smoothing (Botsch and Kobbelt 2004) with soft targets: face and hand landmarks, and the nearest points of the person's
outline along its normals. Displacements in px are lifted to metres by depth over focal length, so the projection is kept exactly.
"""

from itertools import pairwise

import cv2
import numpy as np
import torch
from scipy.sparse import coo_matrix, diags, identity
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from aa.body import HELPERS, REGIONS, Body
from aa.landmarks import BOUNDARY, load_landmarks
from aa.zbuffer import zbuffer

# How far, in distances between the pupils, the outline of a region may move to meet the photo's (hair, clothes).
REACH = {
    "scalp": 0.75, "ear": 0.12, "face": 0.25, "neck": 0.5, "torso": 1.0, "upperarm": 1.0, "forearm": 0.8, "hand": 0.15, "nail": 0.1,
    "leg": 1.2, "foot": 0.5,
}  # fmt: skip
ARM = ("upperarm", "forearm", "hand", "nail")
FLOATING = ("eye", "teeth", "tongue")  # parts of their own, tied to what surrounds them
OUTLINE_SIDE = 512  # px, longer side of the image in which outlines are compared
INSET = 0.7  # px of that image by which the mesh stays inside: its particles reach about so far beyond it


def solid_faces(body: Body) -> tuple[torch.Tensor, torch.Tensor]:
    """Triangles (F', 3) that carry particles, and their indices (F',) in body.faces."""
    helper = torch.tensor([REGIONS.index(n) for n in HELPERS], device=body.device)
    keep = (~torch.isin(body.face_region, helper)).nonzero()[:, 0]
    return body.faces[keep], keep


class _Surface:
    """Smoothness of a displacement field on the body's vertices."""

    def __init__(self, body: Body):
        faces = solid_faces(body)[0].cpu().numpy()
        rest = body.v_template.cpu().double().numpy()
        pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]], self._ties(body, rest)])
        n = len(rest)
        W = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(n, n))
        W = ((W + W.T) > 0).astype(float)
        degree = np.asarray(W.sum(1))[:, 0]
        L = identity(n) - diags(1 / np.maximum(degree, 1)) @ W
        self.bend, self.n = (L.T @ L + 1e-5 * identity(n)).tocsc(), n

    @staticmethod
    def _ties(body, rest):
        """Edges (m, 2) from each vertex of eyes, teeth and tongue to the nearest ones of the skin and mouth."""
        loose = body.region_vertices(*FLOATING).cpu().numpy()
        other = np.setdiff1d(np.unique(solid_faces(body)[0].cpu().numpy()), loose)
        near = other[cKDTree(rest[other]).query(rest[loose], k=3)[1]]
        return np.stack([np.repeat(loose, 3), near.reshape(-1)], 1)

    def solve(self, rows, targets, stiffness: float) -> np.ndarray:
        """Field (V, 2) with `rows` = (vertices (m, 3), weights (m, 3), strength (m,)) near targets (m, 2)."""
        vertices, weights, strength = rows
        m = len(vertices)
        A = coo_matrix((weights.reshape(-1), (np.repeat(np.arange(m), 3), vertices.reshape(-1))), shape=(m, self.n)).tocsc()
        S = diags(strength)
        return splu((stiffness * self.bend + A.T @ S @ A).tocsc()).solve(A.T @ (S @ targets))


def align(body: Body, vertices, viewmat, K, person, rounds: int = 4) -> torch.Tensor:
    """Vertices (V, 3) moved so that landmarks and outline meet those of `person` (aa.detect); seen along the rays only sideways."""
    marks, surface = load_landmarks(body), _Surface(body)
    v, near_joints = vertices.clone(), skin_around_joints(body, marks)
    for k in range(rounds):
        landmarks, targets = _landmark_rows(marks, v, viewmat, K, person)
        outline = _outline_rows(body, v, viewmat, K, person, reach=1.0 if k == 0 else 0.5 + 0.5 / (k + 1))
        hands = _hand_rows(body, near_joints, v, viewmat, K, person)
        rows = [np.concatenate(x) for x in zip(landmarks, outline[0], hands[0])]
        field = surface.solve(rows, np.concatenate([targets, outline[1], hands[1]]), stiffness=(30.0, 8.0, 3.0, 1.0)[min(k, 3)])
        field = _eyes_rigid(body, field)
        v = _lift(v, torch.as_tensor(field, dtype=v.dtype), viewmat, K)
    return _helpers_follow(body, vertices, v)


def _pixels(v, viewmat, K):
    camera = v @ viewmat[:3, :3].T + viewmat[:3, 3]
    flat = camera @ K.T
    return (flat[:, :2] / flat[:, 2:]).numpy(), camera


def _lift(v, field, viewmat, K):
    """Move vertices (V, 3) by field (V, 2) px at their own depth."""
    z = (v @ viewmat[:3, :3].T + viewmat[:3, 3])[:, 2:]
    return v + (field * z / torch.stack([K[0, 0], K[1, 1]])) @ viewmat[:2, :3]


def _landmark_rows(marks, v, viewmat, K, person):
    """Rows and residuals (m, 2) px of the face landmarks."""
    keep = marks.reliable.clone()
    keep[468:] = False
    strength = torch.full((478,), 1.0)
    strength[list(BOUNDARY)] = 0.1
    index, weight = marks.face_points.index[keep].numpy(), marks.face_points.weight[keep].numpy().astype(float)
    pixels, _ = _pixels(marks.face(v), viewmat, K)
    residual = (person.face - pixels)[keep.numpy()]
    return (index, weight, strength[keep].numpy()), residual


def skin_around_joints(body, marks, count: int = 12) -> dict[str, np.ndarray]:
    """Vertices (21, count) around each hand landmark on the mean body, by side."""
    out = {}
    for side, letter in (("left", 1), ("right", -1)):
        mine = body.region_vertices("hand", "nail", "forearm")
        mine = mine[body.v_template[mine, 0] * letter > 0]
        centres = marks.hand(body.v_template, body.joint_template, side).numpy()
        out[side] = mine.numpy()[cKDTree(body.v_template[mine].numpy()).query(centres, k=count)[1]]
    return out


def _hand_rows(body, near_joints, v, viewmat, K, person):
    """Rows and residuals (m, 2) px that take the middle of the skin around each hand joint to its landmark; the wrist's is often
    a guess, on the outline of a hand that hides it."""
    pixels, _ = _pixels(v, viewmat, K)
    corners, residuals = [np.zeros((0, 3), int)], [np.zeros((0, 2))]
    for side, found in person.hands.items():
        if found is not None:
            ring = near_joints[side][1:]
            corners.append(ring.reshape(-1, 3))
            residuals.append(np.repeat(found[0][1:] - pixels[ring].mean(1), ring.shape[1] // 3, axis=0))
    corners = np.concatenate(corners)
    return (corners, np.full(corners.shape, 1 / 3), np.full(len(corners), 0.4)), np.concatenate(residuals)


def _contour(mask):
    """Points (n, 2) px on the outline of a mask (H, W) in [0, 1] and outward normals (n, 2)."""
    smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.5)
    edge = (mask > 0.5) & (cv2.erode((mask > 0.5).astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) == 0)
    y, x = np.nonzero(edge)
    gx, gy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    normal = -np.stack([gx[y, x], gy[y, x]], 1)
    return np.stack([x + 0.5, y + 0.5], 1), normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-6)


def _outline_rows(body, v, viewmat, K, person, reach: float):
    """Rows and residuals (m, 2) px that take the body's outline to the mask's along its normals."""
    height, width = person.mask.shape
    scale = OUTLINE_SIDE / max(height, width)
    w, h = round(width * scale), round(height * scale)
    small = K.clone()
    small[:2] *= scale
    faces, which = solid_faces(body)
    _, tri, bary = zbuffer(v, faces, viewmat, small, w, h)
    ours, normal = _contour((tri >= 0).astype(np.float32))
    theirs, their_normal = _contour(cv2.resize(person.mask, (w, h), interpolation=cv2.INTER_AREA))
    inside = (np.minimum(ours, [w, h] - ours) > 2).all(1)
    ours, normal = ours[inside], normal[inside]
    unit = person.eye_distance * scale
    if len(ours) == 0 or len(theirs) == 0:
        return (np.zeros((0, 3), int), np.zeros((0, 3)), np.zeros(0)), np.zeros((0, 2))
    at = ours.astype(int)
    t = tri[at[:, 1], at[:, 0]]
    region = body.face_region[which].numpy()[t]
    turn, apart = 0.6 * unit, 100 * unit  # a quarter turn of the normal, or another limb, counts like this many pixels
    limb = _limb_of_pixels(theirs / scale, person)
    shoulders = person.pose2d[[11, 12]] * scale
    either = cKDTree(shoulders).query(theirs)[0] < 0.35 * np.linalg.norm(shoulders[0] - shoulders[1])
    for value in (-1, 0, 1):  # sleeve and trunk meet at the shoulder
        theirs, their_normal = (
            np.r_[theirs, theirs[: len(either)][either]],
            np.r_[their_normal, their_normal[: len(either)][either]],
        )
        limb = np.r_[limb, np.full(int(either.sum()), value)]
    own = np.isin(region, [REGIONS.index(n) for n in ARM]) * np.sign(body.v_template[faces[t, 0], 0].numpy()).astype(int)
    _, near = cKDTree(np.c_[theirs, turn * their_normal, apart * limb]).query(np.c_[ours, turn * normal, apart * own])
    gap = theirs[near] - INSET * their_normal[near] - ours
    limit = np.array([REACH.get(name, 0.0) for name in REGIONS])[region] * unit * reach
    agree = (normal * their_normal[near]).sum(1)
    keep = (agree > 0.6) & (np.linalg.norm(gap, axis=1) < limit)
    along = (gap * normal).sum(1, keepdims=True) * normal
    rows = faces.numpy()[t[keep]], bary[at[keep, 1], at[keep, 0]], np.full(int(keep.sum()), 0.15)
    return rows, along[keep] / scale


def _limb_of_pixels(points, person) -> np.ndarray:
    """1 for points (n, 2) px of the photo nearer to the left arm than to the trunk and head, -1 right arm, 0 neither."""
    pose = person.pose2d
    width = np.linalg.norm(pose[11] - pose[12])
    trunk = np.float32([pose[i] for i in (11, 12, 24, 23)])
    inside = np.array([cv2.pointPolygonTest(trunk, (float(x), float(y)), True) for x, y in points])
    rest = np.minimum(np.maximum(-inside, 0) - 0.12 * width, np.linalg.norm(points - person.face.mean(0), axis=1) - 0.4 * width)
    for a, b in ((23, 25), (24, 26), (25, 27), (26, 28)):
        if person.pose_visibility[b] > 0.5:
            rest = np.minimum(rest, _to_segment(points, pose[a], pose[b]) - 0.15 * width)
    out = np.zeros(len(points), int)
    for sign, chain in ((1, (11, 13, 15, 19)), (-1, (12, 14, 16, 20))):
        if person.pose_visibility[list(chain[1:3])].min() < 0.5:
            continue
        arm = np.min([_to_segment(points, pose[a], pose[b]) for a, b in pairwise(chain)], 0) - 0.12 * width
        out[arm < rest] = sign
        rest = np.minimum(rest, arm)
    return out


def _to_segment(points, a, b):
    """Distance (n,) of points (n, 2) to the segment from a to b."""
    along = np.clip(((points - a) @ (b - a)) / max(((b - a) ** 2).sum(), 1e-6), 0, 1)
    return np.linalg.norm(points - a - along[:, None] * (b - a), axis=1)


def _eyes_rigid(body, field):
    """Each eyeball moves as a whole, with the lids around it."""
    field = field.copy()
    eyes, lids = body.region_vertices("eye").numpy(), body.region_vertices("eyelid").numpy()
    x = body.v_template[:, 0].numpy()
    for side in (-1, 1):
        field[eyes[x[eyes] * side > 0]] = field[lids[x[lids] * side > 0]].mean(0)
    return field


def _helpers_follow(body, before, after):
    """Vertices that carry no particle move like the nearest ones that do."""
    used = torch.unique(solid_faces(body)[0])
    other = torch.ones(len(before), dtype=torch.bool)
    other[used] = False
    rest = body.v_template.numpy()
    near = cKDTree(rest[used.numpy()]).query(rest[other.numpy()])[1]
    after = after.clone()
    after[other] = before[other] + (after - before)[used[torch.as_tensor(near)]]
    return after
