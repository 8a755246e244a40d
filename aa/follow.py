"""An avatar found again in every frame of a video, to the pixel: landmarks first, then optical flow from its picture to the frame.

A puppet (aa.puppet) has the posture right, and hair, clothes and the person's own smile roughly. What is left is a displacement in
the picture: of the face from its landmarks, on the mesh, where the lips are two surfaces; of everything else from the flow between
the rendered avatar and the frame. Unlike tracks chained from frame to frame this does not drift, and each track belongs to a
particle from the start. Displacements in px become metres at the depth of what they move.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from aa.align import _Surface
from aa.flow import pick, sample
from aa.gaussians import project
from aa.landmarks import BOUNDARY, load_landmarks
from aa.lifting import Graph
from aa.raster import rasterize

STIFF = 3.0  # bend of the face against a landmark
SOFT_FRAMES = 0.7  # standard deviation in frames of the smoothing of displacements over time
CELL = 4  # px of a cell in which the foremost particle hides what is behind
HIDDEN = 0.03  # m behind it
AGREE = 1.0  # px + 10% of the way: error there and back above which flow is not trusted
FAR = 0.06  # of the picture's larger side: the furthest that flow may move the avatar
NODES = 1200  # of the graph that carries the flow
STRETCH, HOLD = 1.5, 0.02  # weights of neighbours that move apart, and of moving at all, against one particle's flow
QUIET = ("lips", "mouth", "teeth", "tongue", "eye", "eyelid", "eye_cavity")  # regions that open and close: flow is lost there


def to_metres(field: torch.Tensor, points: torch.Tensor, viewmat, K) -> torch.Tensor:
    """Displacements (..., n, 2) px of world points (..., n, 3) as displacements (..., n, 3) m in the picture's plane."""
    z = points @ viewmat[2, :3] + viewmat[2, 3]
    return (field * z[..., None] / K[[0, 1], [0, 1]]) @ viewmat[:2, :3]


def smooth_in_time(field: np.ndarray, known: np.ndarray, frames: float = SOFT_FRAMES) -> np.ndarray:
    """A field (T, ...) with gaps (known (T,) False) filled along time, then smoothed."""
    from scipy.ndimage import gaussian_filter1d

    if not known.any():
        return np.zeros_like(field)
    at, t = np.flatnonzero(known), np.arange(len(field))
    right = np.searchsorted(at, t).clip(0, len(at) - 1)
    left = (right - 1).clip(0)
    a, b = at[left], at[right]
    mix = np.where(b > a, (t - a) / np.maximum(b - a, 1), 1.0).clip(0, 1)
    mix = mix.reshape(-1, *[1] * (field.ndim - 1)).astype(field.dtype)
    return gaussian_filter1d((1 - mix) * field[a] + mix * field[b], frames, axis=0, mode="nearest")


def face_field(body, vertices: torch.Tensor, wanted: torch.Tensor, known: torch.Tensor, viewmat, K) -> torch.Tensor:
    """Displacements (T, V, 3) m of vertices (T, V, 3) that take the face landmarks to where they are wanted, (T, 478, 2) px."""
    marks = load_landmarks(body)
    keep = marks.reliable.clone()
    keep[468:] = False
    strength = torch.ones(478)
    strength[list(BOUNDARY)] = 0.1
    left = (wanted - project(marks.face(vertices), viewmat, K)[0])[:, keep].numpy()
    left = smooth_in_time(left, known.numpy())
    index, weight = marks.face_points.index[keep].numpy(), marks.face_points.weight[keep].double().numpy()
    targets = left.transpose(1, 0, 2).reshape(int(keep.sum()), -1)  # (m, 2 T): all frames share one factorisation
    field = _Surface(body).solve((index, weight, strength[keep].numpy()), targets, STIFF)
    field = torch.from_numpy(field.reshape(len(field), -1, 2).transpose(1, 0, 2)).to(vertices)
    return to_metres(field, vertices, viewmat, K)


@dataclass
class Flow:
    """Finds the particles of a posed avatar in frames and moves the others along with those that were found."""

    look: tuple  # scales, opacities, colours
    viewmat: torch.Tensor
    K: torch.Tensor
    graph: Graph
    loud: torch.Tensor  # (N,) bool, particles that may be asked for their flow
    held: np.ndarray  # (m,) particles at face landmarks, which are in place

    def __post_init__(self):
        self.dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.dis.setFinestScale(1)
        self.dis.setUseSpatialPropagation(True)
        n = len(self.graph.nodes)
        i, j = self.graph.edges.unbind(1)
        L = torch.zeros(n, n, dtype=torch.float64)
        L.index_put_((i, i), torch.ones(len(i), dtype=torch.float64), accumulate=True)
        L.index_put_((j, j), torch.ones(len(i), dtype=torch.float64), accumulate=True)
        L.index_put_((i, j), -torch.ones(len(i), dtype=torch.float64), accumulate=True)
        L.index_put_((j, i), -torch.ones(len(i), dtype=torch.float64), accumulate=True)
        self.stiffness = STRETCH * L + HOLD * torch.eye(n, dtype=torch.float64)

    @torch.no_grad()
    def find(self, means, quats, frame: np.ndarray, mask: np.ndarray, behind) -> tuple[np.ndarray, np.ndarray]:
        """Where the particles (N, 3) are in a frame (H, W, 3) uint8 with its person (H, W) before `behind` (H, W, 3).

        Returns: flow (N, 2) px and whether it is good (N,).
        """
        h, w = mask.shape
        image, alpha, _ = rasterize(means, quats, *self.look, self.viewmat[None], self.K[None], w, h)
        ours = ((image[0] + (1 - alpha[0]) * behind).clamp(0, 1) * 255).to(torch.uint8).numpy()
        x, depth = (a.numpy() for a in project(means, self.viewmat, self.K))
        a, b = (cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (ours, frame))
        there = sample(self.dis.calc(a, b, None), x)
        back = sample(self.dis.calc(b, a, None), x + there)
        way = np.linalg.norm(there, axis=1)
        good = np.linalg.norm(there + back, axis=1) < AGREE + 0.1 * way
        good &= (way < FAR * max(h, w)) & foremost(x, depth, w, h) & pick(mask, x + there) & pick(alpha[0, ..., 0].numpy() > 0.9, x)
        return there, good

    def spread(self, there: np.ndarray, good: np.ndarray) -> torch.Tensor:
        """Smooth displacements (K, 2) px of the nodes from the good particles' flow; particles at face landmarks stay."""
        from scipy.sparse import csr_matrix

        at = np.flatnonzero(good & self.loud.numpy())
        at = np.concatenate([at, self.held])
        n, (index, weight) = len(self.graph.nodes), (self.graph.index, self.graph.weight)
        rows = np.repeat(np.arange(len(at)), index.shape[1])
        J = csr_matrix((weight[at].double().numpy().ravel(), (rows, index[at].numpy().ravel())), (len(at), n))
        value, trust = there[at].astype(np.float64), np.ones(len(at))
        value[len(at) - len(self.held) :] = 0
        for _ in range(2):  # the second time without outliers
            JW = J.T.multiply(trust)
            A = self.stiffness + torch.from_numpy((JW @ J).toarray())
            d = torch.linalg.solve(A, torch.from_numpy(JW @ value)).numpy()
            off = np.linalg.norm(J @ d - value, axis=1)
            trust = 1 / (1 + (off / max(1.0, 2 * np.median(off))) ** 2) ** 2
            trust[len(at) - len(self.held) :] = 1
        return torch.from_numpy(d).float()


def foremost(x: np.ndarray, depth: np.ndarray, width: int, height: int) -> np.ndarray:
    """Which particles at x (n, 2) px have nothing in front of them."""
    at = np.floor(x / CELL).astype(int)
    columns, rows = -(-width // CELL), -(-height // CELL)
    inside = (at >= 0).all(1) & (at[:, 0] < columns) & (at[:, 1] < rows) & (depth > 0)
    cell = np.where(inside, at[:, 1] * columns + at[:, 0], 0)
    near = np.full(columns * rows, np.inf)
    np.minimum.at(near, cell[inside], depth[inside])
    return inside & (depth < near[cell] + HIDDEN)
