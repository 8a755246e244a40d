"""Tracks lifted to 3D: the coarse motion that the 4DGS fit starts from.

One camera gives two numbers a point and frame; the third comes from the surface keeping its shape. A graph of nodes on the
canonical Gaussians moves so that tracked particles project onto their tracks (Eq. 3) and the graph stays as rigid as possible:
the local and global steps of Sorkine and Alexa 2007, embedded deformation (Sumner et al. 2007) from nodes to particles.
"""

from dataclasses import dataclass

import numpy as np
import torch

from aa.body import matrix_to_quat

ITERATIONS = 12  # local and global steps per frame; the first frame, furthest from the canonical posture, gets 5 times as many
W_TRACK = 2.0  # weight of a track (m^2 off the ray) against an edge of the graph (m^2 of stretch)
UNSEEN = 0.15  # m from everything that is ever seen: such nodes (the legs) are held in their canonical places
NEAR = 4  # nodes that carry a particle


@dataclass(frozen=True)
class Graph:
    """K nodes among N particles, the edges between them, and how they carry the particles."""

    nodes: torch.Tensor  # (K,) indices of particles
    edges: torch.Tensor  # (E, 2) pairs of nodes
    index: torch.Tensor  # (N, NEAR) nodes of each particle
    weight: torch.Tensor  # (N, NEAR) rows sum to 1

    def carry(self, canonical, places, turns) -> torch.Tensor:
        """Particles (N, 3) carried by node positions (K, 3) and rotations (K, 3, 3) from canonical means (N, 3)."""
        arm = canonical[:, None] - canonical[self.nodes][self.index]  # (N, NEAR, 3)
        moved = places[self.index] + (turns[self.index] @ arm[..., None])[..., 0]
        return (self.weight[..., None] * moved).sum(1)

    def blend(self, turns) -> torch.Tensor:
        """Quaternions (N, 4) wxyz of the particles: the normalised weighted mean of their nodes' rotations (K, 3, 3)."""
        q = matrix_to_quat(turns)[self.index]  # (N, NEAR, 4)
        q = torch.where((q * q[:, :1]).sum(-1, keepdim=True) < 0, -q, q)
        return torch.nn.functional.normalize((self.weight[..., None] * q).sum(1), dim=-1)


def make_graph(points: torch.Tensor, part: torch.Tensor, count: int = 500, degree: int = 8) -> Graph:
    """A graph on particles (N, 3) m with part labels (N,) by farthest-point sampling, 3 times as dense on hands, 1.5 on the face.

    `points` should be a posture in which limbs are apart (the template body): neighbours are looked up there.
    """
    from scipy.spatial import cKDTree

    x = points.detach().cpu().numpy().astype(np.float64)
    size = np.array([1.0, 1.5, 3.0])[part.cpu().numpy()]
    nodes = np.empty(min(count, len(x)), int)
    far, at = np.full(len(x), np.inf), int(x[:, 2].argmin())
    for k in range(len(nodes)):
        nodes[k] = at
        far = np.minimum(far, np.linalg.norm(x - x[at], axis=1) * size)
        at = int(far.argmax())
    tree = cKDTree(x[nodes])
    near = tree.query(x[nodes], k=degree + 1)[1][:, 1:]
    edges = np.stack([np.repeat(np.arange(len(nodes)), degree), near.ravel()], 1)
    edges = np.unique(np.sort(edges, 1), axis=0)
    distance, index = tree.query(x, k=NEAR + 1)
    weight = (1 - distance[:, :NEAR] / np.maximum(distance[:, NEAR:], 1e-9)).clip(0) ** 2 + 1e-8
    t = lambda a: torch.as_tensor(a, device=points.device)  # noqa: E731
    weight = t(weight / weight.sum(1, keepdims=True)).float()
    return Graph(t(nodes), t(edges), t(index[:, :NEAR]), weight)


def nearest_rotation(M: torch.Tensor) -> torch.Tensor:
    """The rotation (..., 3, 3) closest to M (..., 3, 3)."""
    U, _, Vt = torch.linalg.svd(M)
    flip = torch.ones_like(M[..., 0])
    flip[..., 2] = torch.linalg.det(U @ Vt).sign()
    return (U * flip[..., None, :]) @ Vt


def lift_tracks(canonical, graph: Graph, footage, w_track: float = W_TRACK) -> tuple[torch.Tensor, torch.Tensor]:
    """Means (T, N, 3) m and rotations (T, N, 4) wxyz of N particles that follow the tracks of a `Footage`.

    canonical (N, 3) m. Frame by frame, each starting from the one before.
    """
    solver = _Solver(canonical, graph, footage, w_track)
    places, turns = canonical[graph.nodes], torch.eye(3, device=canonical.device).expand(len(graph.nodes), 3, 3)
    means, rotations = [], []
    for t in range(len(footage.tracks)):
        places, turns = solver.frame(t, places, turns, ITERATIONS * (5 if t == 0 else 1))
        means.append(graph.carry(canonical, places, turns))
        rotations.append(graph.blend(turns))
    return torch.stack(means), torch.stack(rotations)


class _Solver:
    """Alternates node rotations (local, a polar decomposition each) and node positions (global, one sparse system a frame)."""

    def __init__(self, canonical, graph: Graph, footage, w_track):
        from scipy import sparse

        self.graph, self.footage, self.w_track = graph, footage, w_track
        self.rest = canonical[graph.nodes]
        i, j = graph.edges.unbind(1)
        self.i, self.j = torch.cat([i, j]), torch.cat([j, i])
        self.arm = self.rest[self.j] - self.rest[self.i]  # (2E, 3), every edge in both directions
        at = footage.particle
        self.index, self.weight = graph.index[at], graph.weight[at]  # (P, NEAR)
        self.reach = canonical[at][:, None] - self.rest[self.index]  # (P, NEAR, 3)
        K, E = len(self.rest), len(i)
        seen = canonical[at[footage.visible.any(0)]]
        self.anchor = torch.where(torch.cdist(self.rest, seen).amin(1, keepdim=True) > UNSEEN, 1.0, 1e-6)
        ones, rows = np.ones(E), np.arange(E)
        a, b = i.cpu().numpy(), j.cpu().numpy()
        difference = sparse.csr_matrix((np.r_[ones, -ones], (np.r_[rows, rows], np.r_[a, b])), (E, K))
        laplacian = difference.T @ difference + sparse.diags(self.anchor[:, 0].cpu().numpy())
        self.stiffness = sparse.kron(laplacian, sparse.identity(3), "csc")

    def rays(self, t: int):
        """Rows (2P, 3) and offsets (2P,): `rows @ y = offsets` says that y lies on the ray of its track; hidden tracks weigh 0."""
        K, view = self.footage.K, self.footage.viewmat
        slope = (self.footage.tracks[t] - K[:2, 2]) / K[[0, 1], [0, 1]]  # (P, 2)
        rows = view[None, :2, :3] - slope[..., None] * view[2:3, :3]  # (P, 2, 3)
        offsets = slope * view[2, 3] - view[:2, 3]
        seen = self.footage.visible[t].to(rows)[:, None]
        return (rows * seen[..., None]).flatten(0, 1), (offsets * seen).flatten()

    def frame(self, t: int, places, turns, iterations: int):
        """Node positions (K, 3) and rotations (K, 3, 3) of frame t, from a start."""
        from scipy import sparse
        from scipy.sparse.linalg import splu

        rows, offsets = self.rays(t)
        P, K = len(self.index), len(self.rest)
        value = (rows.unflatten(0, (P, 2))[:, :, None] * self.weight[:, None, :, None]).flatten().cpu().numpy().astype(np.float64)
        column = (
            (3 * self.index[:, None, :, None] + torch.arange(3, device=rows.device)).expand(P, 2, NEAR, 3).flatten().cpu().numpy()
        )
        line = np.repeat(np.arange(2 * P), 3 * NEAR)
        J = sparse.csr_matrix((value, (line, column)), (2 * P, 3 * K))
        solve = splu((self.stiffness + self.w_track * (J.T @ J)).tocsc()).solve
        for _ in range(iterations):
            carried = (self.weight[..., None] * (turns[self.index] @ self.reach[..., None])[..., 0]).sum(1)  # (P, 3)
            off = offsets - (rows.unflatten(0, (P, 2)) @ carried[..., None]).flatten()
            half = 0.5 * ((turns[self.i] + turns[self.j]) @ self.arm[..., None])[..., 0]
            right = (self.anchor * self.rest).index_add_(0, self.i, -half)
            b = right.flatten().cpu().numpy().astype(np.float64) + self.w_track * (J.T @ off.cpu().numpy().astype(np.float64))
            places = torch.as_tensor(solve(b), dtype=self.rest.dtype, device=self.rest.device).unflatten(0, (K, 3))
            now = places[self.j] - places[self.i]
            spread = torch.zeros_like(turns).contiguous().index_add_(0, self.i, now[..., None] * self.arm[:, None])
            turns = nearest_rotation(spread)
        return places, turns


def colors_from_tracks(footage, points: torch.Tensor) -> torch.Tensor:
    """Colours (N, 3) of particles at points (N, 3): of the nearest track, the median over the frames that show it."""
    from scipy.spatial import cKDTree

    height, width = footage.frames.shape[1:3]
    x, y = footage.tracks.floor().long().unbind(-1)  # (T, P)
    t = torch.arange(len(x), device=x.device)[:, None]
    pixel = footage.frames[t, y.clamp(0, height - 1), x.clamp(0, width - 1)]  # (T, P, 3)
    behind = footage.background.expand(height, width, 3)[y.clamp(0, height - 1), x.clamp(0, width - 1)]
    shows = footage.visible & ((pixel - behind).abs().amax(-1) > 0.04)  # on the outline a track may fall beside the person
    pixel = torch.where(shows[..., None], pixel, torch.nan).nanmedian(0).values
    known = shows.any(0)
    near = cKDTree(points[footage.particle[known]].cpu().numpy()).query(points.cpu().numpy())[1]
    return pixel[known][torch.as_tensor(near, device=points.device)]
