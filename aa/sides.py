"""The sides of the face: seen at a grazing angle they mix with hair, ears and background in the photo, and give way to smooth skin.

Face and neck are one skin: its colour is continued from where the photo shows it well, by nearness, and taken over the more
the less directly a point is seen. Turned heads so show no border between what the photo saw and what it did not.
"""

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree

from aa.body import Body
from aa.ownership import is_skin
from aa.photofit import PUPILS
from aa.view import View, project

SKIN = ("face", "neck")
LEAST, FULL = 0.1, 0.3  # cosine to the camera from where on the photo's colour counts, and counts alone
BLUR = 0.005  # m below which differences of colour are no longer kept
DARK = 0.6  # brightness over the face's below which it may be hair
BY_SCALP = 0.02  # m from the scalp, hair before the ears
SOFT = 0.01  # m of height over which hair before the ears ends
MIDDLE = 0.04  # m to either side
SMALL_FACE = 40  # px between the pupils below which a face keeps the photo everywhere
UPRIGHT = 0.1  # what is left of a normal along the vertical says nothing about sides
EDGE, EDGE_PX = 0.012, 2  # m of depth that make an edge; so near to one, photo and mesh may disagree on whose a pixel is


def near_edges(view: View, radius: int = EDGE_PX, beside: bool = False) -> np.ndarray:
    """Pixels (H, W) bool of the photo near, or `beside`, a jump of depth or the mesh's outline."""
    depth = np.where(np.isfinite(view.depth), view.depth, 1e3).astype(np.float32)
    size = 2 * radius + 1
    around = np.ones((1, size), np.uint8) if beside else cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return cv2.dilate(depth, around) - cv2.erode(depth, around) > EDGE


def turned_aside(view: View, points, normals) -> np.ndarray:
    """Cosine (n,) of the angle, about the vertical, between normals (n, 3) and the rays from points (n, 3) to the camera.

    The underside of chin and nose counts as facing the camera: nothing else mixes with it, and its shade belongs to it.
    """
    level = lambda x: torch.nn.functional.normalize(x * x.new_tensor([1, 1, 0]), dim=1)  # noqa: E731
    ray = level(-view.viewmat[:3, :3].T @ view.viewmat[:3, 3] - points)
    return (level(normals + UPRIGHT * ray) * ray).sum(1).numpy()


def well_seen(body: Body, view: View, points, rest, normals, seen) -> np.ndarray:
    """How far (n,), from 0 to 1, the photo's colour counts for points (n, 3) with normals (n, 3) that it shows where `seen`.

    rest (n, 3): their places on the mean body; around nose and mouth it always counts.
    """
    facing = turned_aside(view, points, normals)
    soft = cv2.GaussianBlur(near_edges(view, beside=True).astype(np.float32), (0, 0), 1.0)
    pixels, depth = project(points, view.viewmat, view.K)
    if PUPILS * float(view.K[0, 0]) / float(np.median(depth)) < SMALL_FACE:  # its sides are a few pixels, and often hair
        return seen.astype(float)
    x, y = (pixels[:, i].astype(int).clip(0, n - 1) for i, n in enumerate(view.size))
    share = np.clip((facing - LEAST) / (FULL - LEAST), 0, 1)
    share = share**2 * (3 - 2 * share) * (1 - soft[y, x])
    chin = float(body.v_template[body.region_vertices("lips"), 2].min()) - 0.015
    middle = np.clip((MIDDLE - np.abs(rest[:, 0])) / SOFT, 0, 1) * np.clip((rest[:, 2] - chin) / SOFT, 0, 1)
    return seen * np.maximum(share, middle)


def smooth_sides(rest, names, folds, colors, sure) -> np.ndarray:
    """Colours (n, 3) anew: skin of face and neck is continued as far as it is not `sure` (n,), see `well_seen`.

    Hair that grows before the ears is continued likewise, there alone: lower down what is not skin are strands, or cloth.

    Args: rest (n, 3) on the mean body; names (n,) of regions; folds (n,) bool, lids and the like, left alone.
    """
    face = (names == "face") & ~folds
    if (sure[face] > 0.9).sum() < 100:
        return colors
    usual = colors[face & (sure > 0.9)]
    alike = is_skin(colors, usual)
    sure = _patches(rest, face & (sure > 0.01), ~alike, sure)
    bare = alike | (face & (colors.mean(1) > DARK * np.median(usual.mean(1))))
    mine = face | (names == "neck") & bare
    clear, told = mine & (sure > 0.5), mine & (sure > 0.05)  # what a point is shows at worse angles than its colour
    hair = told & ~bare & (rest[:, 2] > np.median(rest[names == "ear", 2]))
    hair[hair] = cKDTree(rest[names == "scalp"]).query(rest[hair])[0] < BY_SCALP
    want = mine & (sure < 1)
    filled = nearby(rest[want], rest[clear], colors[clear], sure[clear])  # a beard goes on as a beard
    if hair.sum() > 30:
        both = told & bare | hair
        share = nearby(rest[want], rest[both], hair[both, None].astype(float), sure[both])
        above = np.clip((rest[want, 2] - rest[hair, 2].min()) / SOFT, 0, 1)[:, None]
        share = above * np.clip((share - 0.35) / 0.3, 0, 1)
        filled += share * (nearby(rest[want], rest[hair], colors[hair], sure[hair]) - filled)
    colors = colors.copy()
    colors[want] = filled + sure[want, None] * (colors[want] - filled)
    return colors


def _patches(rest, told, strange, sure) -> np.ndarray:
    """`sure` (n,), and 1 where nearly all that is `told` (n,) around is `strange` (n,): that is hair or a beard, no mixture."""
    share = nearby(rest[told], rest[told], strange[told, None].astype(float), np.ones(told.sum()))[:, 0]
    sure = sure.copy()
    sure[told] = np.maximum(sure[told], np.clip((share - 0.6) / 0.2, 0, 1))
    return sure


def nearby(at, places, values, weight) -> np.ndarray:
    """Values (m, k) at points (m, 3): means over those (n, k) at places (n, 3), weighted by nearness and weight (n,)."""
    distance, near = cKDTree(places).query(at, k=min(256, len(places)))
    w = weight[near] / (distance**2 + BLUR**2) ** 2
    return np.einsum("mj,mjk->mk", w, values[near]) / w.sum(1, keepdims=True)


def fill_at(rest, fill_rest, fill_names, fill) -> np.ndarray:
    """Colours (n, 3) at `rest` (n, 3): of the nearest of the filled particles on skin."""
    donor = np.isin(fill_names, SKIN)
    distance, near = cKDTree(fill_rest[donor]).query(rest, k=6)
    weight = 1 / (distance + 0.001) ** 2
    return (fill[donor][near] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
