"""As rigid as the clip allows: the Gauss-Newton solver behind `aa.lifting`.

K nodes with positions p_k and rotations R_k move so that tracked particles y_i lie on their rays and edges keep their shape:

    sum_(k,l) |p_l - p_k - R_k (rest_l - rest_k)|^2 / (s_kl d_kl)^2  +  sum_i dist(y_i(p, R), ray_i)^2 / e_i^2

(rigidity: Sorkine and Alexa 2007, each edge seen from both ends; from nodes to particles: Sumner et al. 2007). The strain s_kl that
an edge may have, a share of its length d_kl, and the error e_i of a track are learned from the whole clip: `aa.lifting.lift`.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

FREE_TURN = 0.5  # rad: largest turn of a node in one step
SLID = 4.0  # errors from which on a track pulls less than its square would (it slid, or another person passed)
SHY = 10.0  # 1 / variance of the coefficients of known shapes: most are zero most of the time


@dataclass(frozen=True)
class Rays:
    """What one frame shows: |rows @ y - offsets| is how many metres a point y is off the ray of its track."""

    rows: np.ndarray  # (P, 2, 3)
    offsets: np.ndarray  # (P, 2) m
    seen: np.ndarray  # (P,) bool


@dataclass(frozen=True)
class State:
    """One frame of the graph: positions (K, 3) m, rotations (K, 3, 3), coefficients (M,) of the known shapes."""

    places: np.ndarray
    turns: np.ndarray
    shape: np.ndarray


def rays_of(footage) -> list[Rays]:
    """The rays of every frame of a `Footage`."""
    view, K, tracks = (x.detach().cpu().double().numpy() for x in (footage.viewmat, footage.K, footage.tracks))
    slope = (tracks - K[:2, 2]) / K[[0, 1], [0, 1]]  # (T, P, 2)
    rows = view[:2, :3] - slope[..., None] * view[2, :3]  # (T, P, 2, 3)
    offsets = slope * view[2, 3] - view[:2, 3]
    return [Rays(*x) for x in zip(rows, offsets, footage.visible.cpu().numpy())]


def skew(v: np.ndarray) -> np.ndarray:
    """Matrices (..., 3, 3) of the cross product with v (..., 3)."""
    x, y, z = np.moveaxis(v, -1, 0)
    o = np.zeros_like(x)
    return np.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*v.shape, 3)


def rotation(w: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3)."""
    angle = np.linalg.norm(w, axis=-1)[..., None, None]
    k = skew(w) / np.maximum(angle, 1e-12)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k)


class Nodes:
    """K nodes that carry P tracked particles; metres, float64."""

    def __init__(self, rest, edges, index, weight, tracked, moving, modes, tracked_modes):
        """Args: rest (K, 3); edges (E, 2); index, weight (P, n), the nodes of each tracked particle; tracked (P, 3), its canonical
        place; moving (k,), nodes that move; modes (K, M, 3), tracked_modes (P, M, 3): known changes of the rest shape."""
        self.rest, self.index, self.weight, self.moving, self.modes = rest, index, weight, moving, modes
        self.i, self.j = np.r_[edges[:, 0], edges[:, 1]], np.r_[edges[:, 1], edges[:, 0]]
        self.arm = rest[self.j] - rest[self.i]  # (2E, 3), every edge from both ends
        self.length = np.linalg.norm(self.arm, axis=1).clip(1e-6)
        self.reach = tracked[:, None] - rest[index]  # (P, n, 3)
        arm_modes = modes[self.j] - modes[self.i]
        reach_modes = tracked_modes[:, None] - modes[index]  # (P, n, M, 3)
        self.bent = np.flatnonzero(np.abs(arm_modes).max((1, 2), initial=0) > 1e-5)  # edges and tracks that known shapes change
        self.lively = np.flatnonzero(np.abs(reach_modes).max((1, 2, 3), initial=0) > 1e-5)
        self.arm_modes, self.reach_modes = arm_modes[self.bent], reach_modes[self.lively]
        self.strain, self.error = np.full(len(edges), 0.05), np.full(len(tracked), 1e-3)
        self.column = np.full((len(rest), 6), -1)  # of the system's unknowns, shift and turn of a node; -1: does not move
        self.column[moving] = np.arange(6 * len(moving)).reshape(-1, 6)

    def start(self) -> State:
        """The canonical posture."""
        return State(self.rest, np.tile(np.eye(3), (len(self.rest), 1, 1)), np.zeros(self.modes.shape[1]))

    def _turned(self, s: State) -> np.ndarray:
        """Edges (2E, 3) as the node at their first end would have them."""
        arm = self.arm.copy()
        arm[self.bent] += np.tensordot(self.arm_modes, s.shape, (1, 0))
        return (s.turns[self.i] @ arm[..., None])[..., 0]

    def _carried(self, s: State) -> tuple[np.ndarray, np.ndarray]:
        """Tracked particles (P, 3), and their arms (P, n, 3) from each of their nodes."""
        reach = self.reach.copy()
        reach[self.lively] += np.tensordot(self.reach_modes, s.shape, (2, 0))
        arms = (s.turns[self.index] @ reach[..., None])[..., 0]
        return (self.weight[..., None] * (s.places[self.index] + arms)).sum(1), arms

    def strains(self, s: State) -> np.ndarray:
        """Squared strain (E,) of the edges, the mean of both ends."""
        r = s.places[self.j] - s.places[self.i] - self._turned(s)
        return ((r / self.length[:, None]) ** 2).sum(1).reshape(2, -1).mean(0)

    def off(self, rays: Rays, s: State) -> np.ndarray:
        """Metres (P, 2) of the tracks off their rays, nan where not seen."""
        y, _ = self._carried(s)
        return np.where(rays.seen[:, None], (rays.rows @ y[..., None])[..., 0] - rays.offsets, np.nan)

    def settle(self, rays: Rays, s: State, steps: int, enough: float = 1e-3) -> State:
        """Gauss-Newton steps, fewer once no node moves further than `enough` metres."""
        for _ in range(steps):
            s, moved = self._step(rays, s)
            if moved < enough:
                break
        return s

    def _step(self, rays: Rays, s: State) -> tuple[State, float]:
        (Je, re, Ae), (Jt, rt, At) = self._edge_rows(s), self._track_rows(rays, s)
        n, M = 6 * len(self.moving), len(s.shape)
        calm = np.tile([1.0, 1.0, 1.0, 1e-2, 1e-2, 1e-2], len(self.moving))  # only so that the system is never singular
        H = Je.T @ Je + Jt.T @ Jt + sparse.diags(calm)
        right = np.concatenate([Je.T @ re + Jt.T @ rt, SHY * s.shape])
        if M:
            (line_e, De), (line_t, Dt) = Ae, At
            cross = sparse.csr_matrix(Je[line_e].T @ De + Jt[line_t].T @ Dt)
            own = De.T @ De + Dt.T @ Dt + SHY * np.eye(M)
            H = sparse.bmat([[H, cross], [cross.T, own]])
            right[n:] += De.T @ re[line_e] + Dt.T @ rt[line_t]
        options = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
        x = -splu(H.tocsc(), **options).solve(right)
        shift, turn = x[:n].reshape(-1, 6)[:, :3], x[:n].reshape(-1, 6)[:, 3:]
        turn = turn * np.minimum(1, FREE_TURN / np.maximum(np.linalg.norm(turn, axis=1, keepdims=True), 1e-9))
        places, turns = s.places.copy(), s.turns.copy()
        places[self.moving] += shift
        turns[self.moving] = rotation(turn) @ turns[self.moving]
        return State(places, turns, np.clip(s.shape + x[n:], 0, 1)), float(np.abs(shift).max(initial=0.0))

    def _matrix(self, lines: int, parts) -> sparse.csr_matrix:
        """Sparse rows from (line, column, value) triples; columns of nodes that do not move are left out."""
        line, column, value = (np.concatenate([p[k].ravel() for p in parts]) for k in range(3))
        keep = column >= 0
        return sparse.csr_matrix((value[keep], (line[keep], column[keep])), (lines, 6 * len(self.moving)))

    def _edge_rows(self, s: State):
        """Jacobian and residuals of the edges; and (lines, rows (., M)) of the derivative by the known shapes."""
        scale = 1 / (np.r_[self.strain, self.strain] * self.length)
        turned = self._turned(s)
        line = np.arange(3 * len(self.i)).reshape(-1, 3)
        one = np.repeat(scale[:, None], 3, 1)
        spin = np.repeat(line[..., None], 3, 2), np.repeat(self.column[self.i, None, 3:], 3, 1), skew(turned) * one[..., None]
        J = self._matrix(line.size, [(line, self.column[self.j, :3], one), (line, self.column[self.i, :3], -one), spin])
        b = self.bent
        D = -np.swapaxes(self.arm_modes @ np.swapaxes(s.turns[self.i[b]], 1, 2), 1, 2) * scale[b, None, None]  # (n, 3, M)
        return (
            J,
            ((s.places[self.j] - s.places[self.i] - turned) * one).ravel(),
            (line[b].ravel(), D.reshape(line[b].size, len(s.shape))),
        )

    def _track_rows(self, rays: Rays, s: State):
        """The same of the tracks that are seen."""
        v = np.flatnonzero(rays.seen)
        y, arms = self._carried(s)
        off = (rays.rows[v] @ y[v, :, None])[..., 0] - rays.offsets[v]
        scale = 1 / self.error[v] / np.sqrt(1 + np.linalg.norm(off, axis=1) / (SLID * self.error[v]))
        rows, w = rays.rows[v] * scale[:, None, None], self.weight[v][:, None, :, None]
        shift = rows[:, :, None] * w  # (n, 2, nodes, 3)
        spin = -(rows[:, None] @ skew(arms[v])).swapaxes(1, 2) * w
        line = np.broadcast_to(np.arange(2 * len(v)).reshape(-1, 2, 1, 1), shift.shape)
        column = self.column[self.index[v]][:, None].repeat(2, 1)  # (n, 2, nodes, 6)
        J = self._matrix(2 * len(v), [(line, column[..., :3], shift), (line, column[..., 3:], spin)])
        known = np.flatnonzero(rays.seen[self.lively])  # of the lively ones, those that are seen
        u = self.lively[known]
        turned = s.turns[self.index[u]] * self.weight[u][..., None, None]
        moved = (self.reach_modes[known] @ turned.swapaxes(-1, -2)).sum(1)  # (n, M, 3)
        k = np.searchsorted(v, u)
        D = rows[k] @ moved.swapaxes(1, 2)  # (n, 2, M)
        lines = (2 * k[:, None] + np.arange(2)).ravel()
        return J, (off * scale[:, None]).ravel(), (lines, D.reshape(len(lines), len(s.shape)))
