"""Tracks lifted to 3D: the coarse motion that the 4DGS fit starts from.

One camera gives two numbers a point and frame; the third comes from the surface keeping its shape. A graph of nodes on the
canonical Gaussians moves so that tracked particles project onto their tracks (Eq. 3) and its edges stay as rigid as possible.
Which edges bend is learned from the clip: an edge that is strained in some frames lies on a joint and is set free there, all others
stiffen, until limbs are bones. Bones of a known size, seen in perspective, have a depth.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from aa.body import matrix_to_quat
from aa.rigidity import Nodes, State, rays_of
from aa.threads import run_parallel

KEYS = 10  # frames that the stiffness is learned from
ROUNDS = 7  # of learning
STRAIN = 0.003  # floor of what an edge is trusted to: a share of its length
ERROR = 2e-4  # m, floor of what a track is trusted to: nodes carry their particles no better
UNSEEN = 0.15  # m from everything that is ever seen: such nodes (the legs) stay in their canonical places
NEAR = 4  # nodes that carry a particle
FEW = 12  # tracks: a frame that shows fewer says nothing about a body


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


@dataclass(frozen=True)
class Lift:
    """Lifted tracks: motion of N particles over T frames, and what was learned about the graph on the way."""

    means: torch.Tensor  # (T, N, 3) m
    turns: torch.Tensor  # (T, N, 4) wxyz, relative to the canonical Gaussians
    strain: torch.Tensor  # (E,) share of its length by which each edge is trusted to change: large at joints
    error: torch.Tensor  # (P,) m by which each track is trusted to miss
    shape: torch.Tensor  # (T, M) coefficients of the modes


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


def lift_tracks(canonical, graph: Graph, footage, modes=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Means (T, N, 3) m and rotations (T, N, 4) wxyz of N particles that follow the tracks of a `Footage`: see `lift`."""
    lifted = lift(canonical, graph, footage, modes)
    return lifted.means, lifted.turns


def lift(canonical, graph: Graph, footage, modes=None, rounds: int = ROUNDS) -> Lift:
    """Follow the tracks of a `Footage` in 3D.

    Args: canonical (N, 3) m; modes (N, M, 3) m, or None: known ways in which the canonical shape changes, with coefficients in
        [0, 1], such as facial actions. A front camera does not see lips come forward; with modes, what it sees of them tells.
        rounds of learning: 0 keeps all edges alike.
    """
    nodes, rays = _nodes(canonical, graph, footage, modes), rays_of(footage)
    seen = np.array([r.seen.sum() for r in rays])
    usable = np.flatnonzero(seen >= min(FEW, max(1, seen.max())))
    keys = [int(t) for t in np.unique(usable[np.linspace(0, len(usable) - 1, min(KEYS, len(usable))).round().astype(int)])]
    states = _from_the_nearest(nodes, rays, keys)
    for _ in range(rounds):
        _learn(nodes, rays, states)
        _each(keys, lambda t: states.update({t: nodes.settle(rays[t], states[t], 2)}))
    _between(nodes, rays, states, set(usable.tolist()))
    return _carried(canonical, graph, nodes, [states[t] for t in range(len(rays))], modes)


def _nodes(canonical, graph: Graph, footage, modes) -> Nodes:
    from scipy.spatial import cKDTree

    x = canonical.detach().cpu().double().numpy()
    at, chosen = footage.particle.cpu().numpy(), graph.nodes.cpu().numpy()
    known = np.zeros((len(x), 0, 3)) if modes is None else modes.detach().cpu().double().numpy()
    ever = x[at[footage.visible.any(0).cpu().numpy()]]
    moving = np.flatnonzero(cKDTree(ever).query(x[chosen])[0] <= UNSEEN)
    index, weight = (w[footage.particle].cpu().numpy() for w in (graph.index, graph.weight.double()))
    return Nodes(x[chosen], graph.edges.cpu().numpy(), index, weight, x[at], moving, known[chosen], known[at])


def _from_the_nearest(nodes: Nodes, rays, keys) -> dict[int, State]:
    """States of the key frames: from the one that is most like the canonical posture, forwards and backwards."""
    start = nodes.start()
    first = int(np.argmin([np.nanmean(np.abs(nodes.off(rays[t], start))) for t in keys]))
    states = {keys[first]: nodes.settle(rays[keys[first]], start, 20)}
    for way in (keys[first:], keys[first::-1]):
        for before, t in pairwise(way):
            states[t] = nodes.settle(rays[t], states[before], 8)
    return states


def _learn(nodes: Nodes, rays, states: dict[int, State]) -> None:
    """Trust edges and tracks as far as they have kept their word: root mean squares over the key frames, and a floor."""
    nodes.strain = np.sqrt(STRAIN**2 + np.mean([nodes.strains(s) for s in states.values()], 0))
    off = np.stack([nodes.off(rays[t], s) for t, s in states.items()])  # (keys, P, 2)
    seen = np.isfinite(off).all(-1)
    square = np.where(seen, (np.nan_to_num(off) ** 2).mean(-1), 0).sum(0) / seen.sum(0).clip(1)
    nodes.error = np.sqrt(ERROR**2 + square)


def _each(frames, work) -> None:
    """Frames that do not depend on each other, on as many threads as torch uses (the sparse solver releases the GIL)."""
    run_parallel(lambda k: work(frames[k]), len(frames), torch.get_num_threads())


def _between(nodes: Nodes, rays, states: dict[int, State], usable: set[int]) -> None:
    """All other frames, each from its neighbour on the side of the nearest key; one without tracks keeps that neighbour's state."""
    keys = sorted(states)
    nearest = [min(keys, key=lambda k: abs(k - t)) for t in range(len(rays))]

    def chain(key: int) -> None:
        mine = [t for t in range(len(rays)) if nearest[t] == key]
        for t in sorted((t for t in mine if t != key), key=lambda t: abs(t - key)):
            start = states[t - 1 if t > key else t + 1]
            states[t] = nodes.settle(rays[t], start, 4) if t in usable else start

    _each(keys, chain)


def _carried(canonical, graph: Graph, nodes: Nodes, states: list[State], modes) -> Lift:
    """The particles that the nodes carry."""
    t = lambda x: torch.as_tensor(np.asarray(x), dtype=canonical.dtype, device=canonical.device)  # noqa: E731
    means, rotations, shape = [], [], t([s.shape for s in states])
    for s, a in zip(states, shape):
        rest = canonical if modes is None else canonical + torch.einsum("nmc,m->nc", modes.to(canonical), a)
        means.append(graph.carry(rest, t(s.places), t(s.turns)))
        rotations.append(graph.blend(t(s.turns)))
    return Lift(torch.stack(means), torch.stack(rotations), t(nodes.strain), t(nodes.error), shape)


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
