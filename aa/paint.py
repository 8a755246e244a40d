"""Colours of an avatar's particles: from the photo where it shows them, else from their mirror image or their neighbourhood."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from aa import gaussians
from aa.body import REGIONS, Body
from aa.zbuffer import zbuffer

# Regions whose hidden particles may borrow each other's colours
MATERIALS = {
    "face": 0, "eyelid": 0, "lips": 1, "neck": 2, "ear": 3, "scalp": 4, "torso": 5, "upperarm": 5, "forearm": 6, "hand": 7,
    "nail": 7, "leg": 8, "foot": 9,
}  # fmt: skip
INSIDE = {"mouth": (0.30, 0.08, 0.08), "tongue": (0.55, 0.24, 0.23), "teeth": (0.80, 0.77, 0.71), "eye_cavity": (0.3, 0.1, 0.1)}
LID_MM = 1.0  # what a blink moves further than this is lid
GRAZING = 0.2  # cosine between normal and view ray below which the photo's colour is not trusted
FOREARM, HAND = 4, 6  # part labels from here on, see aa.fringe.parts_of_vertices
JUMP = 0.05  # m of depth from one surface to another behind it


@dataclass(frozen=True)
class View:
    """The photo at render size and what the fitted mesh looks like in it."""

    image: np.ndarray  # (H, W, 3) float32 in [0, 1]
    front: np.ndarray  # (H, W, 3) the person's colours continued beyond the outline
    mask: np.ndarray  # (H, W) float32
    viewmat: torch.Tensor
    K: torch.Tensor
    depth: np.ndarray  # (H, W) m, inf where there is no surface
    tri: np.ndarray  # (H, W) index into the faces given to make_view, -1
    bary: np.ndarray  # (H, W, 3)
    claimed: np.ndarray  # (H, W) bool: beside the outline of something nearer, and of its colour: it belongs to that
    stray: np.ndarray  # (H, W) bool: inside such an outline but of the farther thing's colour

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.mask.shape[1], self.mask.shape[0]


def make_view(image, mask, vertices, faces, viewmat, K, part) -> View:
    """View of image (H, W, 3) uint8 and mask (H, W) with a mesh; part (F,) labels what moves as one piece."""
    h, w = mask.shape
    depth, tri, bary = zbuffer(vertices, faces, viewmat, K, w, h)
    image = image.astype(np.float32) / 255
    front = extend(image, mask > 0.9, round(max(h, w) / 400))
    label = np.where((tri >= 0) & (mask > 0.5), part[tri], -1)
    claimed, stray = split_edges(front, depth, label, max(2, round(max(h, w) / 80)))
    return View(image, front, mask, viewmat, K, depth, tri, bary, claimed, stray)


def split_edges(image, depth, label, r: int):
    """Where one part lies before another, let colours decide whose the pixels near its edge are (r px inside, 2 r beside).

    Returns (H, W) bool twice: pixels of the far part that show the near one, and the other way round.
    """
    disc = lambda r: cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))  # noqa: E731
    known = label >= 0
    close = cv2.erode(np.where(known, depth, 1e3).astype(np.float32), disc(2 * r))  # a hand may reach far beyond its mesh
    away = cv2.dilate(np.where(known, depth, -1e3).astype(np.float32), disc(r))
    far, near = known & (depth - close > JUMP), known & (away - depth > JUMP)
    colors = cv2.GaussianBlur(image, (0, 0), 1.0)
    clean = {}  # part -> the image as its nearest undisputed pixel has it
    for k in np.unique(label[far | near]):
        sure = (label == k) & ~far & ~near
        if sure.sum() > 20:
            y, x = distance_transform_edt(~sure, return_distances=False, return_indices=True)
            clean[k] = colors[y, x]
    claimed, stray = np.zeros_like(known), np.zeros_like(known)
    for band, other, out, ratio in ((far, near, claimed, 0.7), (near, far, stray, 0.45)):
        if not (band.any() and other.any()):
            continue
        y, x = np.nonzero(band)
        yy, xx = distance_transform_edt(~other, return_distances=False, return_indices=True)[:, y, x]
        mine, rival, here = label[y, x], label[yy, xx], colors[y, x]
        own, theirs = np.full(len(y), 0.0), np.full(len(y), 9.0)
        for k, image_k in clean.items():
            there = np.linalg.norm(here - image_k[y, x], axis=1)
            own, theirs = np.where(mine == k, there, own), np.where(rival == k, there, theirs)
        arm = rival >= FOREARM if out is claimed else mine >= HAND  # heads and shoulders only cast shadows
        out[y, x] = arm & (mine != rival) & (theirs < ratio * own) & (own > 0.15)
    tidy = lambda m: cv2.medianBlur(m.astype(np.uint8), 9) > 0  # noqa: E731
    return tidy(claimed), tidy(stray)


def extend(image, inside, erode: int = 1) -> np.ndarray:
    """Replace what lies outside the eroded mask `inside` (H, W) by the nearest colours inside, softened with distance."""
    core = cv2.erode(inside.astype(np.uint8), np.ones((2 * erode + 1,) * 2, np.uint8)) > 0 if erode else inside
    if not core.any():
        return image
    distance, (y, x) = distance_transform_edt(~core, return_indices=True)
    filled = image[y, x]
    soft = cv2.GaussianBlur(filled, (0, 0), 2.0)
    return np.where((distance > 1)[..., None], soft, filled)


def sample(image, pixels, radius) -> np.ndarray:
    """Colours (n, 3) at pixels (n, 2), averaged over a footprint of `radius` (n,) px (standard deviation)."""
    sigmas = [0.0, 0.7, 1.4, 2.8, 5.6]
    stack = [image if s == 0 else cv2.GaussianBlur(image, (0, 0), s) for s in sigmas]
    n = len(pixels)
    at = np.zeros((max(1, -(-n // 1024)), 1024, 2), np.float32)  # OpenCV takes no rows longer than 32767, and no empty table
    at.reshape(-1, 2)[:n] = pixels - 0.5
    read = [cv2.remap(s, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(-1, 3)[:n] for s in stack]
    read = np.stack(read)
    level = np.interp(radius, sigmas, np.arange(len(sigmas)))
    low = np.minimum(level.astype(int), len(sigmas) - 2)
    f = (level - low)[:, None]
    i = np.arange(n)
    return (1 - f) * read[low, i] + f * read[low + 1, i]


def project(points, viewmat, K):
    """Pixels (n, 2) and depths (n,) as numpy."""
    pixels, depths = gaussians.project(points, viewmat, K)
    return pixels.numpy(), depths.numpy()


def visible(view: View, points, normals):
    """Which points (n, 3) with outward normals (n, 3) the photo shows; their pixels (n, 2)."""
    pixels, z = project(points, view.viewmat, view.K)
    w, h = view.size
    at = np.floor(pixels).astype(int)
    inside = ((at >= 0) & (at < [w, h])).all(1)
    x, y = at[:, 0].clip(0, w - 1), at[:, 1].clip(0, h - 1)
    eye = -view.viewmat[:3, :3].T @ view.viewmat[:3, 3]
    ray = torch.nn.functional.normalize(eye - points, dim=1)
    facing = (ray * normals).sum(1).numpy()
    near = z - view.depth[y, x] < 0.004
    return inside & near & (facing > GRAZING) & (view.mask[y, x] > 0.5) & ~view.claimed[y, x] & ~view.stray[y, x], pixels, facing


def paint(body: Body, view: View, person, vertices, points, normals, radius, rest, region, blink, scale_px):
    """Colours (n, 3) of particles and which of them the photo shows (n,).

    Args: vertices (V, 3) as in the photo; points, normals (n, 3); radius (n,) px; rest (n, 3) their places on the mean body;
        region (n,) index into REGIONS; blink (n,) mm that a blink moves them; scale_px: px of the view per px of the photo.
    """
    seen, pixels, _ = visible(view, points, normals)
    names = np.array(REGIONS)[region]
    inner = np.isin(names, list(INSIDE))
    seen &= ~inner
    colors = sample(view.front, pixels, radius)
    colors = spread(colors, seen, rest, materials(body, region, rest))
    colors, seen = _lids(names, blink, rest, colors, seen)
    face = np.isin(names, ["face"]) & seen
    bright = float(np.median(colors[face].mean(1))) / 0.6 if face.any() else 1.0
    for name, rgb in INSIDE.items():
        least = 0.85 if name == "teeth" else 0.35  # teeth are white whatever the skin
        colors[names == name] = np.array(rgb) * np.clip(bright, least, 1.2)
    colors = _shade_mouth(body, rest, names, colors)
    colors = _eyes(body, view, person, vertices, points, names, seen, colors, scale_px)
    return colors.clip(0, 1), seen


def materials(body: Body, region, rest) -> np.ndarray:
    """Material (n,) of particles by region; below the ears the back of the head and the skin under the jaw count as neck."""
    out = np.array([MATERIALS.get(n, -1) for n in REGIONS])[region]
    low = float(body.v_template[body.region_vertices("ear"), 2].min())
    out[(out == MATERIALS["scalp"]) & (rest[:, 2] < low)] = MATERIALS["neck"]
    return out


def _lids(names, blink, rest, colors, seen):
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


def _shade_mouth(body, rest, names, colors):
    """Darker towards the throat: what lies more than 3 cm behind the lips gets little light."""
    lips = body.v_template[body.region_vertices("lips")].numpy()
    deep = rest[:, 1] - lips[:, 1].min()
    inner = np.isin(names, ["mouth", "tongue", "teeth"])
    shade = np.clip(1.15 - deep / 0.07, 0.2, 1.0)
    colors = colors.copy()
    colors[inner] *= shade[inner, None]
    return colors


def _eyes(body, view, person, vertices, points, names, seen, colors, scale_px):
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
