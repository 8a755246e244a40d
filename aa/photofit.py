"""Camera, shape, posture and expression of the body in a photo, by gradient descent on MediaPipe's landmarks.

Unknown: the camera's pose (the root stays upright at its place), shape coefficients, rotation vectors of the main joints, a few
facial actions. Pseudo-Huber terms on 2D landmarks, directions of limbs from the 3D landmarks, Gaussian priors.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from aa.body import Body, rotvec_to_matrix
from aa.gaussians import intrinsics
from aa.landmarks import BOUNDARY, Landmarks, load_landmarks, posed_joints
from aa.performer import at_ease

FOCAL = 1.5  # focal length over the longer side of the image: the middle of what phones and portrait lenses have
SHOULDER = 0.03  # m by which the pose model marks shoulders above the joint
PUPILS = 0.062  # m between the pupils of an adult, the first guess of the distance
AXES = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # world (x left, y back, z up) to an upright camera (x right, y down)

# Standard deviation in radians of each rotation vector around the relaxed posture; joints that are not named stay fixed.
FREEDOM = {
    "spine05": 0.04, "spine04": 0.04, "spine03": 0.05, "spine02": 0.05, "spine01": 0.05, "neck01": 0.07, "neck02": 0.07,
    "neck03": 0.07, "head": 0.15, "clavicle": 0.1, "shoulder01": 0.1, "upperarm01": 0.9, "upperarm02": 0.15,
    "lowerarm01": 0.9, "lowerarm02": 0.35,
    "wrist": 0.4, "finger1-1": 0.35, "finger1-2": 0.35, "finger1-3": 0.35,
    **{f"finger{f}-{k}": 0.4 for f in (2, 3, 4, 5) for k in (1, 2, 3)}, "upperleg01": 0.5, "lowerleg01": 0.5, "foot": 0.2,
}  # fmt: skip
# Actions that open or bend the mouth are undone in the canonical face; brows and lids as they are belong to the person.
MOUTH_ACTIONS = (
    "jawOpen", "mouthSmileLeft", "mouthSmileRight", "mouthUpperUpLeft", "mouthUpperUpRight", "mouthLowerDownLeft",
    "mouthLowerDownRight", "mouthPucker", "mouthFunnel",
)  # fmt: skip
# Deviation in metres of joints from where the shape puts them: people vary more than 48 shape directions.
STRETCH = {
    "neck01": 0.012, "neck02": 0.008, "neck03": 0.008, "head": 0.008, "clavicle": 0.025, "shoulder01": 0.025, "upperarm01": 0.025,
    "lowerarm01": 0.015, "wrist": 0.015, "spine01": 0.025, "spine03": 0.025, "upperleg01": 0.015, "lowerleg01": 0.02, "foot": 0.02,
}  # fmt: skip
CLOSED_EYE = 0.12  # lid opening over eye width below which an eye counts as closed
LIDS = {"Left": (386, 374, 362, 263), "Right": (159, 145, 133, 33)}  # upper, lower, inner, outer face landmarks
LIMBS = ((11, 13), (13, 15), (12, 14), (14, 16), (23, 25), (25, 27), (24, 26), (26, 28), (11, 12), (23, 24))
SIDES = {"left": ".L", "right": ".R"}


@dataclass(frozen=True)
class Fit:
    """A body fitted to an image. Vertices in the body's own upright frame, m."""

    betas: torch.Tensor  # (S,)
    rotvecs: torch.Tensor  # (J, 3)
    actions: torch.Tensor  # (A,) as in the photo
    stretch: torch.Tensor  # (J, 3) m, joints moved in the frame of their parent
    viewmat: torch.Tensor  # (4, 4)
    K: torch.Tensor  # (3, 3) px of the image
    face_error: float  # px per 100 px of eye distance, mean over the face landmarks


@dataclass(frozen=True)
class Targets:
    """What the fit aims at; pixel terms are divided by their own standard deviation."""

    face: torch.Tensor  # (478, 2) px
    face_weight: torch.Tensor  # (478,)
    pose: torch.Tensor  # (33, 2) px
    pose_weight: torch.Tensor  # (33,)
    limbs: torch.Tensor  # (n, 2) pairs of pose landmarks
    directions: torch.Tensor  # (n, 3) unit vectors in camera axes
    limb_weight: torch.Tensor  # (n,)
    hands: dict  # side -> ((21, 2) px, (21, 3) m in camera axes)
    eyes: float  # px between the pupils
    shoulders: float  # px


def huber(squared: torch.Tensor) -> torch.Tensor:
    """Pseudo-Huber of squared residuals in units of their deviation: quadratic to 1, linear beyond."""
    return (1 + squared).sqrt() - 1


def make_targets(person, marks: Landmarks) -> Targets:
    """Weights and units for the landmarks of a `Person`."""
    t = lambda x: torch.as_tensor(x, dtype=torch.float32)  # noqa: E731
    face_weight = marks.reliable.float().cpu()
    face_weight[list(BOUNDARY)] *= 0.3
    face_weight[468:] = 0  # where the person looks is left to the painted eyes
    visible = t(person.pose_visibility)
    pose_weight = visible * (visible > 0.5)
    pose_weight[:11] = 0  # the face model knows better
    pose_weight[23:25] *= 0.3  # the model's hips are a guess under clothes
    pose_weight[29:33] *= 0.3
    hands = {}
    for side, found in person.hands.items():
        if found is not None:
            hands[side] = t(found[0]), t(found[1])[:, [0, 2, 1]] * t([1, -1, 1])
            own = [17, 19, 21] if side == "left" else [18, 20, 22]
            pose_weight[own] = 0
    pose3d = t(person.pose3d)[:, [0, 2, 1]] * t([1, -1, 1])  # world axes to camera axes
    limbs = torch.tensor(LIMBS)
    directions = torch.nn.functional.normalize(pose3d[limbs[:, 1]] - pose3d[limbs[:, 0]], dim=1)
    seen = visible[limbs].amin(1)
    eyes = float(person.eye_distance)
    shoulders = max(float((t(person.pose2d)[11] - t(person.pose2d)[12]).norm()), 2.5 * eyes)
    return Targets(
        t(person.face), face_weight, t(person.pose2d), pose_weight, limbs, directions, seen * (seen > 0.5), hands, eyes, shoulders
    )  # fmt: skip


def first_camera(body: Body, marks: Landmarks, targets: Targets, K) -> torch.Tensor:
    """Translation (3,) of an upright frontal camera that puts the eyes where the photo has them."""
    eyes = posed_joints(body)[[body.joint("eye.L"), body.joint("eye.R")]].mean(0)
    z = K[0, 0] * PUPILS / targets.eyes
    u = targets.face[[468, 473]].mean(0)
    place = torch.stack([(u[0] - K[0, 2]) / K[0, 0] * z, (u[1] - K[1, 2]) / K[1, 1] * z, z])
    return place - AXES @ eyes


class _Model:
    """The unknowns, how they move the landmarks, and what their priors cost."""

    def __init__(self, body: Body, marks: Landmarks, targets: Targets, K):
        self.body, self.marks, self.targets, self.K = body, marks, targets, K
        sigma = torch.zeros(len(body.parents), 3)
        for j, name in enumerate(body.joint_names):
            sigma[j] = FREEDOM.get(name.split(".")[0], 0.0)
        self.free = sigma > 0
        self.sigma = torch.where(self.free, sigma, torch.ones(()))
        self.ease = at_ease(body)
        self.hinge = _hinges(body)
        self.turn = torch.zeros(3)
        self.above = torch.zeros(33, 3)
        self.above[11:13, 2] = SHOULDER
        self.shift = first_camera(body, marks, targets, K)
        self.betas = torch.zeros(len(body.shape_dirs))
        self.rotvecs = self.ease.clone()
        self.actions = torch.zeros(len(body.action_names))
        self.stretch = torch.zeros(len(body.parents), 3)
        spread = torch.tensor([STRETCH.get(n.split(".")[0], 0.0) for n in body.joint_names])[:, None] * torch.tensor([1, 0.3, 1])
        self.loose, self.spread = spread > 0, spread.clamp_min(1e-6)
        self.used = torch.zeros(len(body.action_names))
        closed = [s for s, i in LIDS.items() if _lid_opening(targets.face, i) < CLOSED_EYE]
        names = MOUTH_ACTIONS + tuple(f"eyeBlink{s}" for s in closed)
        self.used[[body.action(n) for n in names]] = 1
        for x in self.unknowns():
            x.requires_grad_(True)

    def unknowns(self):
        return self.turn, self.shift, self.betas, self.rotvecs, self.actions, self.stretch

    def pose(self):
        """Arguments of `skin`."""
        rotvecs = torch.where(self.free, self.rotvecs, self.ease)
        return self.betas, rotvecs, self.actions * self.used, self.stretch * self.loose

    def viewmat(self) -> torch.Tensor:
        view = torch.eye(4)
        return torch.cat([torch.cat([rotvec_to_matrix(self.turn) @ AXES, self.shift[:, None]], 1), view[3:]])

    def project(self, points):
        """Camera coordinates (n, 3) and pixels (n, 2)."""
        camera = points @ (rotvec_to_matrix(self.turn) @ AXES).T + self.shift
        return camera, (camera @ self.K.T)[:, :2] / camera[:, 2:].clamp_min(0.05)

    def data_terms(self, extra=None) -> torch.Tensor:
        t, body = self.targets, self.body
        joints, vertices, _ = skin(body, *self.pose())
        _, face = self.project(self.marks.face(vertices))
        loss = 0.1 * (t.face_weight * huber(((face - t.face) / (0.02 * t.eyes)).square().sum(1))).sum()
        camera, pose = self.project(self.marks.pose(vertices, joints) + self.above)
        loss = loss + 20 * (t.pose_weight * huber(((pose - t.pose) / (0.06 * t.shoulders)).square().sum(1))).sum()
        limb = torch.nn.functional.normalize(camera[t.limbs[:, 1]] - camera[t.limbs[:, 0]], dim=1)
        loss = loss + (t.limb_weight * huber(((limb - t.directions) / 0.4).square().sum(1))).sum() * 3
        for side, (flat, world) in t.hands.items():
            camera, hand = self.project(self.marks.hand(vertices, joints, side))
            unit = 0.06 * (flat[9] - flat[0]).norm().clamp_min(0.35 * t.eyes)
            loss = loss + huber(((hand - flat) / unit).square().sum(1)).sum()
            bones = torch.nn.functional.normalize(camera[1:] - camera[:1], dim=1)
            seen = torch.nn.functional.normalize(world[1:] - world[:1], dim=1)
            loss = loss + 0.5 * huber(((bones - seen) / 0.25).square().sum(1)).sum()
        if extra is not None:
            loss = loss + extra(self)
        return loss

    def prior(self) -> torch.Tensor:
        off = (self.rotvecs - self.ease) * self.free
        cost = (off / self.sigma).square().sum() / 2
        for j, axis in self.hinge.items():  # fingers and elbows bend about one axis
            aside = off[j] - (off[j] @ axis) * axis
            cost = cost + (aside / 0.1).square().sum() / 2
        cost = cost + self.betas.square().sum() / 2
        tilt = torch.stack([self.turn[0] / 0.12, self.turn[1] / 0.4, self.turn[2] / 0.1])
        a = self.actions * self.used
        names = self.body.action_names
        pairs = [(i, names.index(n.replace("Left", "Right"))) for i, n in enumerate(names) if n.endswith("Left")]
        left, right = (torch.tensor(x) for x in zip(*pairs))
        uneven = (a[left] - a[right])[self.used[left] * self.used[right] > 0]
        mouth = [self.body.action(n) for n in MOUTH_ACTIONS]
        cost = cost + (self.stretch * self.loose / self.spread).square().sum() / 2
        return cost + tilt.square().sum() / 2 + 3 * a[mouth].sum() + 10 * uneven.square().sum()

    def step(self, iterations: int, lr: float, groups, extra=None, tick=None) -> None:
        """Adam on some of the unknowns, the rate falling to a tenth."""
        rates = {"turn": 0.5, "shift": 0.5, "betas": 2.0, "rotvecs": 1.0, "actions": 1.0, "stretch": 0.1}
        optimiser = torch.optim.Adam([{"params": [getattr(self, g)], "lr": lr * rates[g]} for g in groups], betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, lr / 10)
        for _ in range(iterations):
            optimiser.zero_grad()
            (self.data_terms(extra) + self.prior()).backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                self.actions.clamp_(0, 1)
                self.betas.clamp_(-3, 3)
            if tick:
                tick()


def fit_body(body: Body, person, iterations: int = 300, tick=None) -> Fit:
    """Fit the body to a `Person` (aa.detect). `tick()` is called once per iteration. Deterministic."""
    marks = load_landmarks(body)
    kept = marks.vertices()
    small, few = body.select(kept), marks.select(kept)
    height, width = person.image.shape[:2]
    K = intrinsics(FOCAL * max(height, width), width, height)
    model = _Model(small, few, make_targets(person, marks), K)
    every = ("turn", "shift", "betas", "rotvecs", "actions", "stretch")
    model.step(max(1, iterations // 5), 0.05, ("turn", "shift", "rotvecs"), tick=tick)
    model.step(max(1, iterations * 2 // 5), 0.03, every, tick=tick)
    model.step(max(1, iterations * 2 // 5), 0.02, every, tick=tick)
    with torch.no_grad():
        pose = model.pose()
        _, vertices, _ = skin(small, *pose)
        face = model.project(few.face(vertices))[1]
        error = ((face - model.targets.face).norm(dim=1)[few.reliable]).mean() * 100 / model.targets.eyes
        return Fit(*(x.detach().clone() for x in pose), model.viewmat(), K, float(error))


def skin(body: Body, betas, rotvecs, actions, stretch):
    """Posed joints (J, 3), vertices (V, 3) and blended rotations (V, 3, 3): `Body.pose` with joints moved by stretch (J, 3) m."""
    rotations, joints = _walk(body, body.joints(betas), rotvec_to_matrix(rotvecs), stretch)
    offsets = joints - (rotations @ body.joints(betas)[..., None])[..., 0]
    mixed = body.weights @ torch.cat([rotations.flatten(-2), offsets], -1)
    blended = mixed[:, :9].unflatten(-1, (3, 3))
    return joints, (blended @ body.rest(betas, actions)[..., None])[..., 0] + mixed[:, 9:], blended


def _walk(body: Body, rest, local, stretch):
    """World rotations (J, 3, 3) and joint positions (J, 3), one level of the tree at a time: a fifth of the joint-wise cost."""
    order, level = _levels(body.parents)
    parents = torch.tensor(body.parents)
    world, place, row = local[order[0]], rest[order[0]], {order[0][0]: 0}
    for joints in order[1:]:
        above = [row[int(parents[j])] for j in joints]
        row |= {j: len(row) + k for k, j in enumerate(joints)}
        turned = world[above]
        step = rest[joints] - rest[parents[joints]] + stretch[joints]
        place = torch.cat([place, place[above] + (turned @ step[..., None])[..., 0]])
        world = torch.cat([world, turned @ local[joints]])
    return world[level], place[level]


@lru_cache
def _levels(parents: tuple[int, ...]) -> tuple[list[list[int]], torch.Tensor]:
    """Joints by their depth in the tree, and where each joint stands in that order."""
    depth = []
    for p in parents:
        depth.append(0 if p < 0 else depth[p] + 1)
    order = [[j for j, d in enumerate(depth) if d == k] for k in range(max(depth) + 1)]
    return order, torch.argsort(torch.tensor([j for level in order for j in level]))


def _hinges(body: Body) -> dict[int, torch.Tensor]:
    """Joint index -> unit axis (3,) about which it bends: phalanges across the palm, elbows across the bent arm."""
    rest = body.joint_template
    axes = {}
    for side in SIDES.values():
        at = lambda name: rest[body.joint(name + side)]  # noqa: E731, B023
        across = at("finger2-1") - at("finger5-1")
        for finger in (2, 3, 4, 5):
            for k in (2, 3):
                bone = at(f"finger{finger}-{k}") - at(f"finger{finger}-{k - 1}")
                axis = across - (across @ bone) / (bone @ bone) * bone
                axes[body.joint(f"finger{finger}-{k}{side}")] = torch.nn.functional.normalize(axis, dim=0)
        bend = torch.linalg.cross(at("lowerarm01") - at("upperarm01"), at("wrist") - at("lowerarm01"))
        axes[body.joint("lowerarm01" + side)] = torch.nn.functional.normalize(bend, dim=0)
    return axes


def _lid_opening(face: torch.Tensor, lids) -> float:
    upper, lower, inner, outer = (face[i] for i in lids)
    return float((upper - lower).norm() / (inner - outer).norm().clamp_min(1e-6))
