"""Colours for what a photo hides: its mirror image and a smooth continuation over the surface, round the body rather than along it.

Cloth is sewn in rings: a sleeve's end, a waistband, a stripe or a sock's rim runs round the limb. So colours spread easily round a
limb and unwillingly along it, and what is seen from the front is continued to the back at the same height.
"""

import numpy as np
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

from aa.body import Body

NEAR = 16  # neighbours of each point
CONE = 0.2  # sine of the angle to the ring within which colours spread easily
ALONG = 0.002  # how much less easily they spread along a limb
TWIN, TWIN_M = 0.2, 0.012  # weight of the mirror image, and how near it must lie
TRUST = 0.3  # weight of a seen colour for what is continued from it: below 1, patterns are averaged
COLLAR = 0.8  # slope of the rings round the shoulders, which lie lower in front
BONES = (("upperarm", "upperarm01", "lowerarm01"), ("forearm", "lowerarm01", "wrist"), ("leg", "upperleg01", "foot"))
HANDS = ("hand", "nail")
HEM = 0.003  # share of what passes where clothes often end: from forearm to hand, from trunk to neck


def continue_colours(colors, sure, rest, normals, names, axes, bare=None, trust=1.0) -> np.ndarray:
    """Colours (n, 3) of points, given how far each is known, `sure` (n,) in [0, 1].

    The screened Poisson equation on the graph of near points: min sum_i sure_i TRUST |c_i - given_i|^2 + sum_ij w_ij |c_i - c_j|^2.

    Args: rest (n, 3) places on the mean body in a posture with the limbs apart; normals (n, 3); names (n,) of regions; axes (n, 3)
        direction of the limb; bare (n,) bool, which of the seen ones show skin;
        trust (n,), share in [0, 1] of what is seen that others may take over.
    """
    i, j, weight = _ties(rest, normals, names, axes)
    twin, other = _mirror(rest, names, sure)
    i, j, weight = np.r_[i, twin], np.r_[j, other], np.r_[weight, np.full(len(twin), TWIN)]
    start = _nearest_known(rest, sure)
    if bare is not None:  # first what is skin and what is cloth, then its colour
        skin = _spread(bare[:, None].astype(float), sure * trust, i, j, weight, start)[:, 0] > 0.5
        weight = weight * np.where(skin[i] != skin[j], HEM, 1.0)
    weight = weight * _hems(names, i, j)
    out = _spread(colors, sure * trust, i, j, weight, start)
    return out + sure[:, None] * (colors - out)


def _spread(values, sure, i, j, weight, start) -> np.ndarray:
    """Values (n, k) that meet those known and are smooth over the pairs i, j (m,)."""
    n = len(values)
    W = coo_matrix((weight, (i, j)), shape=(n, n)).tocsr()
    W = W.maximum(W.T)
    A = diags(np.asarray(W.sum(1))[:, 0] + TRUST * sure + 1e-7) - W
    b = TRUST * sure[:, None] * values + 1e-7 * (values * sure[:, None]).sum(0) / max(sure.sum(), 1e-6)
    precondition = diags(1 / A.diagonal())
    columns = zip(b.T, values[start].T, strict=True)
    return np.stack([cg(A, right, x0=first, rtol=1e-4, maxiter=300, M=precondition)[0] for right, first in columns], 1)


def limb_axes(body: Body, rest, names) -> np.ndarray:
    """Unit direction (n, 3) of the limb at points (n, 3) of the mean body; across it rings run."""
    place = lambda name: body.joint_template[body.joint(name)].double().numpy()  # noqa: E731
    out = np.tile([0.0, 0, 1], (len(rest), 1))
    for region, start, end in BONES:
        for side, sign in (("L", 1), ("R", -1)):
            out[(names == region) & (rest[:, 0] * sign > 0)] = place(f"{end}.{side}") - place(f"{start}.{side}")
    armpit = place("upperarm01.L")[2] - 0.08
    high = ((names == "torso") & (rest[:, 2] > armpit)) | (names == "neck")
    out[high] = [0, -COLLAR, 1]
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def _ties(rest, normals, names, axes):
    """Pairs (m,), (m,) of near points of one sheet of the surface and their weights (m,)."""
    distance, near = cKDTree(rest).query(rest, k=min(NEAR + 1, len(rest)))
    i, j = np.repeat(np.arange(len(rest)), near.shape[1] - 1), near[:, 1:].ravel()
    step = rest[j] - rest[i]
    length = np.linalg.norm(step, axis=1)
    keep = (normals[i] * normals[j]).sum(1) > 0.2
    keep &= length < 4 * np.median(distance[:, 1:], 1)[i]
    i, j, step, length = i[keep], j[keep], step[keep], length[keep]
    along = ((step * axes[i]).sum(1) / length.clip(1e-9) / CONE) ** 2
    return i, j, np.where(np.isin(names[i], [*HANDS, "foot"]), 0.3, np.exp(-along) + ALONG)


def _hems(names, i, j) -> np.ndarray:
    """Share (m,) of the ties i, j (m,) that holds across wrists and collars, where clothes often end."""
    hand, neck = np.isin(names, HANDS), names == "neck"
    return np.where((hand[i] != hand[j]) | (neck[i] != neck[j]), HEM, 1.0)


def _mirror(rest, names, sure):
    """Hidden points (m,) and the seen points (m,) that are their mirror images."""
    hidden, seen = np.flatnonzero(sure < 0.5), np.flatnonzero(sure >= 0.5)
    if not len(hidden) or not len(seen):
        return np.zeros(0, int), np.zeros(0, int)
    distance, at = cKDTree(rest[seen]).query(rest[hidden] * [-1, 1, 1])
    keep = (distance < TWIN_M) & (names[hidden] == names[seen[at]])
    return hidden[keep], seen[at[keep]]


def _nearest_known(rest, sure) -> np.ndarray:
    """Index (n,) of the nearest point whose colour is known; of the point itself where it is."""
    known = np.flatnonzero(sure > 0.5)
    if not len(known):
        return np.arange(len(rest))
    return known[cKDTree(rest[known]).query(rest)[1]]
