"""Motion dG split into body, face and hand, each in its own moving frame, and a linear particle embedding of each part.

The head carries the face and the palm carries the fingers: without taking that out, a nod would drown the lips. The frames come
from the moving particles themselves (rigid fit of vertices that only the head, or only the palm, moves): no pose parameter.
x_t = {body, face, hand} of Sec. 3.1 is built on coordinates in the three bases.
"""

from dataclasses import dataclass, field

import torch

from aa.body import HELPERS, Body, matrix_to_rotvec, quat_multiply, quat_to_rotvec, rotvec_to_quat
from aa.transfer import Deformation

PARTS = ("body", "face", "hand")
COMPONENTS = {"body": 40, "face": 40, "hand": 28}
ARM = 0.1  # m per rad: a rotation weighs as much as the way of a point 10 cm off its axis
LIPS, LIDS, FINGERTIPS = 12.0, 6.0, 3.0  # weights where a millimetre is seen


@dataclass(frozen=True)
class Parts:
    """Which vertices belong to which part, and which give the frames. Indices into the V vertices of the body mesh."""

    rest: torch.Tensor  # (V, 3) m, the rest that motion is relative to
    body: torch.Tensor  # (nb,) all that carries particles and is neither face nor finger
    face: torch.Tensor  # (nf,) what facial actions move
    hand: torch.Tensor  # (nh,) fingers, left then right
    left: int  # how many of `hand` are left
    frames: dict[str, torch.Tensor]  # "head", "neck", "left", "right" -> indices of the vertices that define the frame
    hold: torch.Tensor  # (nf,) share in [0, 1] of the head's frame in what carries a face vertex; the neck has the other

    def __len__(self) -> int:
        return len(self.rest)

    def to(self, device) -> "Parts":
        """The same on another device."""
        frames = {k: v.to(device) for k, v in self.frames.items()}
        moved = {k: v.to(device) if torch.is_tensor(v) else v for k, v in vars(self).items()}
        return Parts(**{**moved, "frames": frames})

    def select(self, vertices: torch.Tensor) -> "Parts":
        """The parts of a body reduced to some vertices (n,), which must hold enough of each frame."""
        index = torch.full((len(self.rest),), -1, device=self.rest.device)
        index[vertices] = torch.arange(len(vertices), device=index.device)
        pick = lambda part: index[part][index[part] >= 0]  # noqa: E731
        left = int((index[self.hand[: self.left]] >= 0).sum())
        frames = {k: pick(v) for k, v in self.frames.items()}
        hold = self.hold[index[self.face] >= 0]
        return Parts(self.rest[vertices], pick(self.body), pick(self.face), pick(self.hand), left, frames, hold)


def make_parts(body: Body, rest: torch.Tensor) -> Parts:
    """Parts of the body mesh; `rest` (V, 3) m is the at-ease, neutral-face body that motion is relative to."""
    share = lambda test: body.weights[:, [i for i, n in enumerate(body.joint_names) if test(n)]].sum(1)  # noqa: E731
    used = _used(body)
    acted = body.action_dirs.norm(dim=-1).amax(0) > 1e-5
    head, neck = share(lambda n: n == "head" or n.startswith("eye")), share(lambda n: n.startswith("neck"))
    frames = {"head": used & ~acted & (head > 0.999), "neck": used & ~acted & (neck > 0.5)}
    hands, left = [], 0
    for side, mark in (("left", ".L"), ("right", ".R")):
        fingers = share(lambda n, mark=mark: n.startswith("finger") and n.endswith(mark))
        palm = share(lambda n, mark=mark: n.startswith(("wrist", "metacarpal")) and n.endswith(mark))
        frames[side] = used & (palm > 0.999)
        hands.append((used & (fingers > 1e-3)).nonzero()[:, 0])
        left = left or len(hands[0])
    hand = torch.cat(hands)
    face = (used & acted).nonzero()[:, 0]
    rest_of_it = used & ~acted
    rest_of_it[hand] = False
    indices = {k: v.nonzero()[:, 0] for k, v in frames.items()}
    return Parts(rest, rest_of_it.nonzero()[:, 0], face, hand, left, indices, head[face])


def _used(body: Body) -> torch.Tensor:
    """Mask (V,) of the vertices that carry particles: all but helper geometry."""
    keep = torch.ones(len(body.faces), dtype=torch.bool, device=body.device)
    keep[body.region_faces(*HELPERS)] = False
    used = torch.zeros(len(body.v_template), dtype=torch.bool, device=body.device)
    used[body.faces[keep].unique()] = True
    return used


def rigid_fit(source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Best rotation (..., 3, 3) and offset (..., 3) with target = R source + t (Kabsch 1976). source (n, 3), target (..., n, 3)."""
    a, b = source.mean(-2), target.mean(-2)
    H = (source - a).T @ (target - b[..., None, :])  # (..., 3, 3)
    U, _, Vt = torch.linalg.svd(H.double())
    flip = torch.ones(*H.shape[:-1], device=H.device, dtype=torch.float64)
    flip[..., 2] = torch.det(Vt.transpose(-1, -2) @ U.transpose(-1, -2))
    R = (Vt.transpose(-1, -2) * flip[..., None, :] @ U.transpose(-1, -2)).to(H.dtype)
    return R, b - (R @ a[..., None])[..., 0]


@dataclass(frozen=True)
class Split:
    """Motion of the parts: `body` (T, nb, 3) in the world, `face` (T, nf, 3) and `hand` (T, nh, 3) in their carrier's frame."""

    body: Deformation
    face: Deformation
    hand: Deformation

    def __getitem__(self, frames) -> "Split":
        return Split(self.body[frames], self.face[frames], self.hand[frames])


def _carriers(parts: Parts, at: dict[str, torch.Tensor]) -> list[tuple]:
    """What carries the undeformed face and the fingers of each hand.

    at: frame name -> positions (T, n, 3) of its vertices. Returns (part, its columns, R (T, 3, 3) of the frame a residual lives in,
    carried positions (T, n, 3), rotation vectors (T, 1 or n, 3) by which the vertices are turned).
    """
    fits = {name: rigid_fit(parts.rest[index], at[name]) for name, index in parts.frames.items()}
    turns = {name: matrix_to_rotvec(R)[:, None] for name, (R, _) in fits.items()}
    move = lambda name, x: x @ fits[name][0].transpose(-1, -2) + fits[name][1][..., None, :]  # noqa: E731
    x, hold = parts.rest[parts.face], parts.hold[:, None]
    # Head and neck differ by little, so that their rotation vectors may be mixed.
    face = hold * move("head", x) + (1 - hold) * move("neck", x)
    out = [("face", slice(None), fits["head"][0], face, hold * turns["head"] + (1 - hold) * turns["neck"])]
    for side, columns in (("left", slice(parts.left)), ("right", slice(parts.left, None))):
        out.append(("hand", columns, fits[side][0], move(side, parts.rest[parts.hand[columns]]), turns[side]))
    return out


def split_parts(parts: Parts, motion: Deformation) -> Split:
    """dG (T, V, 3) -> its three parts. What facial actions and fingers do is a residual in the frame of head or palm."""
    at = {name: parts.rest[index] + motion.means[:, index] for name, index in parts.frames.items()}
    pieces = {"face": [], "hand": []}
    for part, columns, R, there, turn in _carriers(parts, at):
        index = getattr(parts, part)[columns]
        own = quat_multiply(rotvec_to_quat(-turn), rotvec_to_quat(motion.rotvecs[:, index]))
        pieces[part].append((((parts.rest[index] + motion.means[:, index]) - there) @ R, quat_to_rotvec(own)))  # R^T x, as rows
    join = lambda part: Deformation(*(torch.cat(x, 1) for x in zip(*pieces[part])))  # noqa: E731
    return Split(Deformation(motion.means[:, parts.body], motion.rotvecs[:, parts.body]), join("face"), join("hand"))


def join_parts(parts: Parts, split: Split) -> Deformation:
    """Inverse of `split_parts`: dG (T, V, 3), zero on helper vertices that carry no particles."""
    place = torch.full((len(parts),), -1, device=parts.rest.device)
    place[parts.body] = torch.arange(len(parts.body), device=place.device)
    at = {name: parts.rest[index] + split.body.means[:, place[index]] for name, index in parts.frames.items()}
    means, rotvecs = [split.body.means], [split.body.rotvecs]
    for part, columns, R, there, turn in _carriers(parts, at):
        index, local = getattr(parts, part)[columns], getattr(split, part)
        means.append(there + local.means[:, columns] @ R.transpose(-1, -2) - parts.rest[index])
        own = local.rotvecs[:, columns]
        plain = not own.any()  # as the face comes from its basis
        rotvecs.append(turn if plain else quat_to_rotvec(quat_multiply(rotvec_to_quat(turn), rotvec_to_quat(own))))
    nothing = torch.zeros_like(means[0][:, :1])
    order = torch.full_like(place, len(parts.body) + len(parts.face) + len(parts.hand))
    filled = torch.cat([parts.body, parts.face, parts.hand])
    order[filled] = torch.arange(len(filled), device=order.device)
    rotvecs = [r.expand_as(m) for r, m in zip(rotvecs, means)]
    return Deformation(*(torch.cat([*x, nothing], 1).index_select(1, order) for x in (means, rotvecs)))


def vertex_weights(body: Body, parts: Parts) -> dict[str, torch.Tensor]:
    """How much a squared millimetre counts at each vertex, part -> (n,): more at lips, eyelids and fingers."""
    face = torch.ones(len(body.v_template), device=body.device)
    face[body.region_vertices("mouth", "tongue", "eye_cavity")] = 0.5
    face[body.region_vertices("eyelid")] = LIDS
    face[body.region_vertices("lips")] = LIPS
    hand = torch.ones_like(face)
    tips = [i for i, n in enumerate(body.joint_names) if n.startswith("finger") and n[8] in "23"]
    hand += (FINGERTIPS - 1) * body.weights[:, tips].sum(1)
    return {"body": torch.ones(len(parts.body), device=body.device), "face": face[parts.face], "hand": hand[parts.hand]}


@dataclass(frozen=True)
class Basis:
    """A linear particle embedding: each part's motion is coordinates (T, k) times rows; e_i = rows[:, i] embeds vertex i.

    Rest is zero (no mean is taken off), so that zero coordinates are the body at ease.
    """

    parts: Parts
    rows: dict[str, torch.Tensor]  # part -> (k, n, 6) means in m and rotvecs in ARM rad; face (k, nf, 3), its rotations are carried
    weights: dict[str, torch.Tensor]  # part -> (n,) how much a vertex counts
    reader: dict[str, torch.Tensor] = field(init=False, repr=False)  # (n * c, k) least squares: coordinates = channels @ reader

    def __post_init__(self):
        object.__setattr__(self, "reader", {p: _reader(self.rows[p], self.weights[p]) for p in PARTS})

    @property
    def sizes(self) -> dict[str, int]:
        return {p: len(self.rows[p]) for p in PARTS}

    def encode(self, motion: Deformation) -> torch.Tensor:
        """dG (T, V, 3) -> coordinates (T, K), parts in the order body, face, hand."""
        split = split_parts(self.parts, motion)
        return torch.cat([channels(p, getattr(split, p)) @ self.reader[p] for p in PARTS], -1)

    def decode(self, coordinates: torch.Tensor) -> Deformation:
        """Coordinates (T, K) -> dG (T, V, 3)."""
        out = {}
        for p, c in zip(PARTS, coordinates.split(list(self.sizes.values()), -1)):
            x = (c @ self.rows[p].flatten(1)).unflatten(-1, self.rows[p].shape[1:])  # (T, n, 3 or 6)
            out[p] = Deformation(x[..., :3], x[..., 3:] / ARM if x.shape[-1] == 6 else torch.zeros_like(x))
        return join_parts(self.parts, Split(**out))

    def select(self, vertices: torch.Tensor) -> "Basis":
        """The basis read from some vertices only: the same coordinates up to what they leave out, several times faster."""
        chosen = torch.zeros(len(self.parts), dtype=torch.bool, device=vertices.device)
        chosen[vertices] = True
        kept = {p: chosen[getattr(self.parts, p)] for p in PARTS}
        rows = {p: self.rows[p][:, kept[p]] for p in PARTS}
        return Basis(self.parts.select(vertices), rows, {p: self.weights[p][kept[p]] for p in PARTS})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything by name, for safetensors; rows are exact in half precision."""
        p = self.parts
        out = {f"rows.{k}": v.half() for k, v in self.rows.items()} | {f"weights.{k}": v for k, v in self.weights.items()}
        out |= {f"frames.{k}": v.int() for k, v in p.frames.items()} | {k: getattr(p, k).int() for k in PARTS}
        out |= {"rest": p.rest, "hold": p.hold, "left": torch.tensor(p.left)}
        return {k: v.cpu().contiguous() for k, v in out.items()}

    @staticmethod
    def from_tensors(t: dict[str, torch.Tensor]) -> "Basis":
        """Inverse of `tensors`."""
        group = lambda name: {k.removeprefix(name): v for k, v in t.items() if k.startswith(name)}  # noqa: E731
        frames = {k: v.long() for k, v in group("frames.").items()}
        parts = Parts(t["rest"], *(t[k].long() for k in PARTS), int(t["left"]), frames, t["hold"])
        return Basis(parts, {k: v.float() for k, v in group("rows.").items()}, group("weights."))

    def to(self, device) -> "Basis":
        """The same on another device."""
        rows, weights = ({k: v.to(device) for k, v in d.items()} for d in (self.rows, self.weights))
        return Basis(self.parts.to(device), rows, weights)


def channels(part: str, motion: Deformation) -> torch.Tensor:
    """Motion of a part as rows of numbers (T, n * c) in metres, rotations at ARM metres per radian; the face has no rotations."""
    x = motion.means if part == "face" else torch.cat([motion.means, ARM * motion.rotvecs], -1)
    return x.flatten(1)


def _reader(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted least-squares reader (n * c, k) of rows (k, n, c) with vertex weights (n,)."""
    weighted = (rows * weight[:, None]).flatten(1).double()
    gram = weighted @ rows.flatten(1).double().T
    return torch.linalg.solve(gram + 1e-9 * gram.trace() / len(gram) * torch.eye(len(gram), device=gram.device), weighted).T.float()


def fit_basis(parts: Parts, splits: list[Split], weights: dict[str, torch.Tensor], components=COMPONENTS) -> Basis:
    """Weighted, uncentred PCA of training motion, part by part; one scale per part makes coordinates of order one.

    Args: splits: pieces of split motion, some 500 to 2000 frames in all; weights: of `vertex_weights`.
    """
    rows = {}
    for p in PARTS:
        x = torch.cat([channels(p, getattr(s, p)) for s in splits])  # (T, n * c)
        c = 3 if p == "face" else 6
        root = weights[p].sqrt().repeat_interleave(c)
        gram = (x * root) @ (x * root).T  # (T, T): far fewer frames than channels
        value, vector = torch.linalg.eigh(gram.double())
        value, vector = value.flip(0)[: components[p]].clamp_min(1e-12), vector.flip(1)[:, : components[p]]
        directions = ((vector / value.sqrt()).T.float() @ (x * root)) / root
        # Rounded to half precision as they are stored: what is read and what is written stay each other's inverse.
        scale = (value[0] / len(x)).sqrt().float()
        rows[p] = (directions * scale).half().float().unflatten(1, (-1, c))
    return Basis(parts, rows, weights)
