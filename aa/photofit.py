"""Camera, shape, posture and expression of the body in a photo, by gradient descent on MediaPipe's landmarks.

Unknown: the camera's pose (the root stays upright at its place), shape coefficients, rotation vectors of the main joints, a few
facial actions. Pseudo-Huber terms on 2D landmarks, directions of limbs from the 3D landmarks, Gaussian priors.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from aa.anatomy import first_posture, freedom
from aa.body import Body, rotvec_to_matrix
from aa.gaussians import intrinsics
from aa.gestures import at_ease
from aa.landmarks import BOUNDARY, Landmarks, load_landmarks, posed_joints
from aa.posing import skin

FOCAL = 1.5  # focal length over the longer side of the image: the middle of what phones and portrait lenses have
SHOULDER = 0.03  # m by which the pose model marks shoulders above the joint
PUPILS = 0.062  # m between the pupils of an adult, the first guess of the distance
AXES = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # world (x left, y back, z up) to an upright camera (x right, y down)

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
TILT = torch.tensor([0.12, 0.4, 0.1])  # rad about the camera's axes: people look up and down less than to the sides
SHIFT = 0.05  # of the distance, unit of the camera's translation
BONES = [0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11, 0, 13, 14, 15, 0, 17, 18, 19], list(range(1, 21))  # hand landmarks: from, to
HAND_WEIGHT = torch.tensor([0.3] + [1.0] * 20)  # hand landmarks: the wrist is often hidden behind the hand
OUTSIDE_SIDE = 256  # px, longer side of the grid on which distances from the person are kept
CLOSED_EYE = 0.12  # lid opening over eye width below which an eye counts as closed
LIDS = {"Left": (386, 374, 362, 263), "Right": (159, 145, 133, 33)}  # upper, lower, inner, outer face landmarks
LIMBS = ((11, 13), (13, 15), (12, 14), (14, 16), (23, 25), (25, 27), (24, 26), (26, 28), (11, 12), (23, 24))
HAND_SIZE = 0.08  # standard deviation of the logarithm of a hand's size


@dataclass(frozen=True)
class Fit:
    """A body fitted to an image. Vertices in the body's own upright frame, m."""

    betas: torch.Tensor  # (S,)
    rotvecs: torch.Tensor  # (J, 3)
    actions: torch.Tensor  # (A,) as in the photo
    stretch: torch.Tensor  # (J, 3) m, joints moved in the frame of their parent
    hands: torch.Tensor  # () logarithm of the hands' size relative to the shape's
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
    outside: torch.Tensor  # (h, w) px of the image by which a place lies outside the person, on a coarse grid
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
            own = [15, 17, 19, 21] if side == "left" else [16, 18, 20, 22]
            pose_weight[own] = 0
    pose3d = t(person.pose3d)[:, [0, 2, 1]] * t([1, -1, 1])  # world axes to camera axes
    limbs = torch.tensor(LIMBS)
    directions = torch.nn.functional.normalize(pose3d[limbs[:, 1]] - pose3d[limbs[:, 0]], dim=1)
    seen = visible[limbs].amin(1)
    eyes = float(person.eye_distance)
    shoulders = max(float((t(person.pose2d)[11] - t(person.pose2d)[12]).norm()), 2.5 * eyes)
    return Targets(
        t(person.face), face_weight, t(person.pose2d), pose_weight, limbs, directions, seen * (seen > 0.5), hands,
        outside(person.mask), eyes, shoulders,
    )  # fmt: skip


def outside(mask) -> torch.Tensor:
    """Distance (h, w) in px of the mask (H, W) from each place of a coarser grid to the person, zero inside."""
    scale = OUTSIDE_SIDE / max(mask.shape)
    small = cv2.resize(mask, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(cv2.distanceTransform((small < 0.5).astype(np.uint8), cv2.DIST_L2, 5)) / scale


def sample_map(values, points, size) -> torch.Tensor:
    """A map (h, w) read at points (n, 2) px of an image of `size` (2,) px; beyond the border as on it. Differentiable."""
    grid = (2 * points / size - 1)[None, None]
    return torch.nn.functional.grid_sample(values[None, None], grid, padding_mode="border", align_corners=False)[0, 0, 0]


def first_camera(body: Body, marks: Landmarks, targets: Targets, K) -> torch.Tensor:
    """Translation (3,) of an upright frontal camera that puts the eyes where the photo has them."""
    eyes = posed_joints(body)[[body.joint("eye.L"), body.joint("eye.R")]].mean(0)
    z = K[0, 0] * PUPILS / targets.eyes
    u = targets.face[[468, 473]].mean(0)
    place = torch.stack([(u[0] - K[0, 2]) / K[0, 0] * z, (u[1] - K[1, 2]) / K[1, 1] * z, z])
    return place - AXES @ eyes


class _Model:
    """The unknowns, in units of their prior standard deviations, what they mean, and what they cost.

    Whitened unknowns x have the prior |x|^2 / 2, and one step size suits a finger and the whole arm alike.
    """

    def __init__(self, body: Body, marks: Landmarks, targets: Targets, K, rotvecs, arms):
        self.body, self.marks, self.targets, self.K = body, marks, targets, K
        self.joint, self.ease = freedom(body), at_ease(body)
        self.above = torch.zeros(33, 3)
        self.above[11:13, 2] = SHOULDER
        self.place = first_camera(body, marks, targets, K)
        self.spread = torch.tensor([STRETCH.get(n.split(".")[0], 0.0) for n in body.joint_names])[:, None] * torch.tensor(
            [1, 0.3, 1]
        )
        self.arms = arms
        closed = [s for s, i in LIDS.items() if _lid_opening(targets.face, i) < CLOSED_EYE]
        self.used = [body.action(n) for n in MOUTH_ACTIONS + tuple(f"eyeBlink{s}" for s in closed)]
        names = [body.action_names[i] for i in self.used]
        pairs = [(k, names.index(n.replace("Left", "Right"))) for k, n in enumerate(names) if n.replace("Left", "Right") in names]
        self.pairs = torch.tensor([p for p in pairs if p[0] != p[1]]).T
        joints = len(body.parents)
        own = (self.joint.axes.mT @ (rotvecs - self.ease)[..., None])[..., 0]
        self.x = {
            "turn": torch.zeros(3), "shift": torch.zeros(3), "betas": torch.zeros(len(body.shape_dirs)),
            "rotvecs": torch.where(self.joint.sigma > 0, own / self.joint.sigma.clamp_min(1e-6), 0.0),
            "actions": torch.full((len(self.used),), 0.1), "stretch": torch.zeros(joints, 3), "hands": torch.zeros(()),
        }  # fmt: skip
        for x in self.x.values():
            x.requires_grad_(True)

    def pose(self):
        """Arguments of `skin`."""
        x = self.x
        rotvecs = self.ease + (self.joint.axes @ (self.joint.sigma * x["rotvecs"])[..., None])[..., 0]
        actions = torch.zeros(len(self.body.action_names)).index_copy(0, torch.tensor(self.used), x["actions"].clamp(0, 1))
        return x["betas"], rotvecs, actions, self.spread * x["stretch"], HAND_SIZE * x["hands"]

    def camera(self):
        """Rotation (3, 3) and translation (3,)."""
        return rotvec_to_matrix(TILT * self.x["turn"]) @ AXES, self.place + SHIFT * self.place[2] * self.x["shift"]

    def project(self, points):
        """Camera coordinates (n, 3) and pixels (n, 2)."""
        R, shift = self.camera()
        camera = points @ R.T + shift
        return camera, (camera @ self.K.T)[:, :2] / camera[:, 2:].clamp_min(0.05)

    def data_terms(self, inside: float) -> torch.Tensor:
        """Distances from what was detected, in units of its uncertainty; `inside` weighs how far arms lie beside the person."""
        t = self.targets
        joints, vertices, _ = skin(self.body, *self.pose())
        _, face = self.project(self.marks.face(vertices))
        loss = 0.1 * (t.face_weight * huber(((face - t.face) / (0.02 * t.eyes)).square().sum(1))).sum()
        camera, pose = self.project(self.marks.pose(vertices, joints) + self.above)
        loss = loss + 20 * (t.pose_weight * huber(((pose - t.pose) / (0.06 * t.shoulders)).square().sum(1))).sum()
        limb = torch.nn.functional.normalize(camera[t.limbs[:, 1]] - camera[t.limbs[:, 0]], dim=1)
        loss = loss + (t.limb_weight * huber(((limb - t.directions) / 0.4).square().sum(1))).sum() * 3
        for side, (flat, world) in t.hands.items():
            camera, hand = self.project(self.marks.hand(vertices, joints, side))
            unit = 0.06 * (flat[9] - flat[0]).norm().clamp_min(0.35 * t.eyes)
            loss = loss + (HAND_WEIGHT * huber(((hand - flat) / unit).square().sum(1))).sum()
            bone, seen = (torch.nn.functional.normalize(x[BONES[1]] - x[BONES[0]], dim=1) for x in (camera, world))
            loss = loss + 0.5 * huber(((bone - seen) / 0.3).square().sum(1)).sum()
        _, arms = self.project(vertices[self.arms])
        out = sample_map(t.outside, arms, 2 * self.K[:2, 2]) / (0.04 * t.eyes)
        return loss + inside * huber(out.square()).sum()

    def prior(self) -> torch.Tensor:
        """Gaussian priors, limits of joints, and few, even, possible facial actions."""
        x = self.x
        cost = sum(v.square().sum() for name, v in x.items() if name not in ("shift", "actions")) / 2
        bend = (self.joint.axes[..., 0] * self.pose()[1]).sum(1)
        beyond = (self.joint.low - bend).clamp_min(0) + (bend - self.joint.high).clamp_min(0)
        cost = cost + (beyond / 0.05).square().sum() / 2
        a = x["actions"]
        impossible = (a - a.clamp(0, 1)).square().sum() * 1e3
        mouth = a[: len(MOUTH_ACTIONS)].clamp_min(0).sum()
        return cost + impossible + 3 * mouth + 10 * (a[self.pairs[0]] - a[self.pairs[1]]).square().sum()

    def solve(self, names, steps: int, inside: float, tick=None) -> None:
        """L-BFGS (Liu and Nocedal 1989) on some of the unknowns, at most `steps` evaluations."""
        unknowns = [self.x[n] for n in names]
        optimiser = torch.optim.LBFGS(
            unknowns, max_iter=steps, max_eval=steps, history_size=40, line_search_fn="strong_wolfe", tolerance_change=1e-6
        )

        def loss():
            optimiser.zero_grad()
            value = self.data_terms(inside) + self.prior()
            value.backward()
            if tick:
                tick()
            return value

        optimiser.step(loss)


def seen_arms(body: Body, person) -> torch.Tensor:
    """Every few vertices (n,) of the hands and forearms that the photo shows."""
    ids = body.region_vertices("hand", "forearm")[::5]
    left = body.v_template[ids, 0] > 0
    seen = [bool(person.pose_visibility[w] > 0.5) for w in (15, 16)]
    return ids[(left & seen[0]) | (~left & seen[1])]


def fit_body(body: Body, person, iterations: int = 300, tick=None) -> Fit:
    """Fit the body to a `Person` (aa.detect). `tick()` is called once per evaluation, of which there are at most about
    `iterations`. Deterministic."""
    marks = load_landmarks(body)
    arms = seen_arms(body, person)
    kept = torch.cat([marks.vertices(), arms]).unique()
    small, few = body.select(kept), marks.select(kept)
    height, width = person.image.shape[:2]
    K = intrinsics(FOCAL * max(height, width), width, height)
    model = _Model(small, few, make_targets(person, marks), K, first_posture(body, marks, person), torch.searchsorted(kept, arms))
    model.solve(("turn", "shift", "rotvecs"), max(1, iterations // 5), 0.0, tick)
    model.solve(tuple(model.x), max(1, iterations * 4 // 5), 0.3, tick)
    with torch.no_grad():
        pose = model.pose()
        _, vertices, _ = skin(small, *pose)
        face = model.project(few.face(vertices))[1]
        error = ((face - model.targets.face).norm(dim=1)[few.reliable]).mean() * 100 / model.targets.eyes
        R, shift = model.camera()
        viewmat = torch.eye(4)
        viewmat[:3, :3], viewmat[:3, 3] = R, shift
        betas, rotvecs, actions, stretch, hands = (x.detach().clone() for x in pose)
        return Fit(betas, rotvecs, actions, stretch, hands, viewmat, K, float(error))


def _lid_opening(face: torch.Tensor, lids) -> float:
    upper, lower, inner, outer = (face[i] for i in lids)
    return float((upper - lower).norm() / (inner - outer).norm().clamp_min(1e-6))
