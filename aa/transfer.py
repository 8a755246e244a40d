"""Motion dG of the shared layout, and its transfer from one identity to another without any pose parameter.

Motion is kept on the vertices of the body mesh, the densest layout of all: every particle reads it by its barycentric weights.
A raised forearm moves a long arm further than a short one, so raw offsets do not fit another body. The transfer keeps what is
independent of identity (local rotations and local non-rigid offsets) and solves for positions: the global step of as-rigid-as-
possible deformation (Sorkine and Alexa 2007, Sumner and Popovic 2004) on a coarse graph of nodes.
"""

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch

from aa.body import Body, matrix_to_quat, matrix_to_rotvec, quat_multiply, rotvec_to_matrix
from aa.gaussians import Gaussians, Layout

RIGID_MM = 4.0  # nodes avoid vertices that facial actions move further than this: what they do is local, not rigid
LEFT_OUT = ("eye", "teeth", "tongue", "mouth", "eye_cavity", "lash", "hair", "tights", "lips")
NEIGHBOURS = 8


@dataclass(frozen=True)
class Deformation:
    """dG_t over T frames of N points (vertices or particles): means (T, N, 3) m and rotvecs (T, N, 3) rad on top of a rest."""

    means: torch.Tensor
    rotvecs: torch.Tensor

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, frames) -> "Deformation":
        return Deformation(self.means[frames], self.rotvecs[frames])

    def read(self, layout: Layout) -> "Deformation":
        """The same motion (T, V, 3) read by the particles of a layout, (T, N, 3)."""
        return Deformation(layout.place(self.means), layout.place(self.rotvecs))

    def apply(self, gaussians: Gaussians) -> tuple[torch.Tensor, torch.Tensor]:
        """Deformed means (T, N, 3) and quats (T, N, 4): G_t = G + dG_t."""
        turn = matrix_to_quat(rotvec_to_matrix(self.rotvecs))
        return gaussians.means + self.means, quat_multiply(turn, gaussians.quats.expand(len(self), -1, -1))


def motion_from_rest(vertices, rotations, rest_vertices, rest_rotations) -> Deformation:
    """dG of posed vertices (T, V, 3) with blended rotations (T, V, 3, 3) relative to a rest posture (V, 3), (V, 3, 3)."""
    turn = rotations @ torch.linalg.inv(rest_rotations)
    return Deformation(vertices - rest_vertices, matrix_to_rotvec(turn))


class Transfer:
    """Carries motion between two bodies of the same topology, each in its own rest posture.

    Args: body; source (V, 3) m, the rest the motion was made on; target (V, 3) m, the new person's rest; turn (V, 3, 3), rotation
        of the target's rest relative to the source's at each vertex (identity where the postures agree); gain (V,), share of
        each motion that is kept (a forearm that is already raised in the rest has less room for a gesture); open (V,), factor of
        how far facial actions move each vertex up and down.
    At the source itself (same vertices, identity turns) the transfer is exact.
    """

    def __init__(self, body: Body, source, target, turn=None, gain=None, nodes: int = 900, open=None):
        self.source, self.target = source, target
        turn = torch.eye(3, device=source.device).expand(len(source), 3, 3) if turn is None else turn
        self.turn = rotvec_to_matrix(matrix_to_rotvec(turn))  # skinning blends rotations; these are exact
        self.gain = torch.ones(len(source), 1, device=source.device) if gain is None else gain[:, None]
        self.open = torch.ones(len(source), device=source.device) if open is None else open
        rest = body.v_template
        self.nodes = _farthest_points(rest, _rigid_vertices(body), nodes)
        self.edges = _knn(rest[self.nodes], rest[self.nodes], NEIGHBOURS + 1)[0][:, 1:]
        index, distance = _knn(rest, rest[self.nodes], 5)
        weight = (1 - distance[:, :4] / distance[:, 4:].clamp_min(1e-9)).clamp_min(0) ** 2 + 1e-8
        self.index, self.weight = index[:, :4], weight / weight.sum(1, keepdim=True)
        legs = torch.isin(self.nodes, body.region_vertices("leg", "foot"))
        self.anchor = legs.float()[:, None] * 0.05
        self.solver = self._factor()

    def select(self, vertices: torch.Tensor) -> "Transfer":
        """The transfer of some vertices (n,) only, `nodes` among them: the same motion there, for less work."""
        place = torch.full((len(self.source),), -1, device=vertices.device)
        place[vertices] = torch.arange(len(vertices), device=vertices.device)
        out = copy(self)
        for name in ("source", "target", "turn", "gain", "open", "index", "weight"):
            setattr(out, name, getattr(self, name)[vertices])
        out.nodes = place[self.nodes]
        if (out.nodes < 0).any():
            raise ValueError("the vertices to select must include the transfer's nodes")
        return out

    def _factor(self) -> torch.Tensor:
        """Inverse (K, K) of the graph Laplacian with soft anchors on the legs, which do not move when one talks."""
        K = len(self.nodes)
        i = torch.arange(K, device=self.edges.device).repeat_interleave(self.edges.shape[1])
        j = self.edges.flatten()
        L = torch.zeros(K, K, dtype=torch.float64, device=i.device)
        one = torch.ones(len(i), dtype=torch.float64, device=i.device)
        for a, b, s in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            L.index_put_((a, b), s * one, accumulate=True)
        return torch.linalg.inv(L + torch.diag(self.anchor[:, 0].double() + 1e-6)).float()

    def __call__(self, motion: Deformation) -> Deformation:
        """The motion (T, V, 3) of the source as motion of the target."""
        # The same gesture in the target's own local frame: Q exp(r) Q^T = exp(Q r).
        rotvecs = _rotate(self.turn, motion.rotvecs * self.gain)
        turns, there = (rotvec_to_matrix(r[:, self.nodes]) for r in (motion.rotvecs, rotvecs))
        moved = self.source + motion.means
        nodes = self._solve_nodes(turns, there, moved[:, self.nodes])
        local = self.gain * (moved - self._blend(moved[:, self.nodes], turns, self.source))
        local[..., 2] *= self.open
        placed = self._blend(nodes, there, self.target) + _rotate(self.turn, local)
        return Deformation(placed - self.target, rotvecs)

    def _solve_nodes(self, turns, there, moved) -> torch.Tensor:
        """Node positions (T, K, 3) whose edges are the target's, rotated as the source's were, plus the non-rigid rest."""
        K, n = self.edges.shape
        i = torch.arange(K, device=self.edges.device).repeat_interleave(n)
        j = self.edges.flatten()

        def rotate(R, x):
            return _rotate(0.5 * (R[..., i, :, :] + R[..., j, :, :]), x)

        source, target, Q = self.source[self.nodes], self.target[self.nodes], self.turn[self.nodes]
        stretch = moved[:, i] - moved[:, j] - rotate(turns, source[i] - source[j])
        stretch = stretch * 0.5 * (self.gain[self.nodes[i]] + self.gain[self.nodes[j]])
        edge = rotate(there, target[i] - target[j]) + rotate(Q, stretch)
        right = torch.zeros(len(moved), K, 3, device=moved.device)
        right.index_add_(1, i, edge).index_add_(1, j, -edge)
        anchored = target + _rotate(Q, moved - source)
        right = (right + self.anchor * anchored).transpose(0, 1)  # (K, T, 3): one product for all frames
        return (self.solver @ right.flatten(1)).unflatten(1, right.shape[1:]).transpose(0, 1)

    def _blend(self, nodes, turns, rest) -> torch.Tensor:
        """Embedded deformation (T, V, 3): each vertex follows its four nearest nodes (T, K, 3), (T, K, 3, 3).

        sum_k w_k (p_k + R_k (v - n_k)) = (sum_k w_k R_k) v + sum_k w_k (p_k - R_k n_k): a weighted mean of rows of a table.
        """
        offset = nodes - _rotate(turns, rest[self.nodes])
        table = torch.cat([turns, offset[..., None]], -1).permute(1, 0, 2, 3)  # (K, T, 3, 4)
        mean = torch.nn.functional.embedding_bag(self.index, table.flatten(1), per_sample_weights=self.weight, mode="sum")
        mean = mean.unflatten(1, table.shape[1:]).transpose(0, 1)  # (T, V, 3, 4)
        return _rotate(mean[..., :3], rest) + mean[..., 3]


def _rotate(R: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """R x for matrices (..., 3, 3) and vectors (..., 3), written out: many times faster on CPU than batched 3x3 products."""
    return R[..., 0] * x[..., 0:1] + R[..., 1] * x[..., 1:2] + R[..., 2] * x[..., 2:3]


def _rigid_vertices(body: Body) -> torch.Tensor:
    """Vertices that may serve as nodes: on the body's outside and hardly moved by facial actions."""
    quiet = body.action_dirs.norm(dim=-1).amax(0) < RIGID_MM / 1000
    quiet[body.region_vertices(*LEFT_OUT)] = False
    used = torch.zeros_like(quiet)
    used[body.faces.unique()] = True
    return (quiet & used).nonzero()[:, 0]


def _farthest_points(points, candidates, n: int) -> torch.Tensor:
    """Indices (n,) of `candidates` spread evenly by farthest-point sampling, hands counted at three times their size."""
    x = points[candidates]
    chosen = torch.empty(n, dtype=torch.long, device=x.device)
    far = torch.full((len(x),), np.inf, device=x.device)
    scale = torch.where(x[:, 0].abs() > 0.42, 3.0, 1.0)
    at = torch.argmin(x[:, 2])
    for k in range(n):
        chosen[k] = at
        far = torch.minimum(far, (x - x[at]).norm(dim=1) * scale)
        at = far.argmax()
    return candidates[chosen]


def _knn(points, among, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (n, k) into `among` and distances (n, k), nearest first."""
    from scipy.spatial import cKDTree

    distance, index = cKDTree(among.cpu().numpy()).query(points.cpu().numpy(), k=k)
    return torch.as_tensor(index, device=points.device), torch.as_tensor(distance, dtype=points.dtype, device=points.device)
