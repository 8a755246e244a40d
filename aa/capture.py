"""What a person does in a video, frame by frame: an avatar's puppet fitted to MediaPipe's landmarks of all frames at once.

The photo fit's terms (aa.photofit) with time added: pseudo-Huber of the face, body and hand landmarks in the picture and of the
limbs' directions in 3D, priors on joints and actions, and small accelerations.
"""

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from aa.anatomy import FREEDOM
from aa.body import Body
from aa.gaussians import project
from aa.landmarks import BOUNDARY, load_landmarks
from aa.models import quiet, to_world
from aa.photofit import LIMBS, SHOULDER, huber
from aa.puppet import Pose, Puppet

NECK = ("neck01", "neck02", "neck03", "head")
TRUNK = ("spine03", "spine02", "spine01")
ARM = ("clavicle", "shoulder01", "upperarm01", "lowerarm01", "lowerarm02", "wrist")
FINGERS = tuple(f"finger{f}-{k}" for f in range(1, 6) for k in (1, 2, 3))
STILL = ("tongueOut", "cheekPuff", "jawForward")  # what landmarks do not tell
LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415,
)  # fmt: skip
LIDS = (
    33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246,
    263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466,
)  # fmt: skip
APERTURE = (13, 14)  # inner lips, middle of the upper and lower one
UNIT = 0.012  # of the distance between the pupils: what a face landmark is worth
LEAST, MOST = -0.3, 1.0  # of an action, whose zero is the avatar's rest
# Standard deviations: of accelerations per frame^2 (rad, m, share of an action) and of actions
JERK_TURN, JERK_SHIFT, JERK_ACTION, ACTION = 0.012, 0.0015, 0.08, 0.5


@dataclass(frozen=True)
class Sightings:
    """Landmarks of T frames in px; nan where nothing was seen."""

    face: np.ndarray  # (T, 478, 2)
    pose: np.ndarray  # (T, 33, 2)
    visible: np.ndarray  # (T, 33) in [0, 1]
    pose3d: np.ndarray  # (T, 33, 3) m, axes of the camera
    hands: dict[str, np.ndarray]  # "left", "right": (T, 21, 2)

    def __getitem__(self, frames) -> "Sightings":
        parts = {k: getattr(self, k)[frames] for k in ("face", "pose", "visible", "pose3d")}
        return Sightings(**parts, hands={k: v[frames] for k, v in self.hands.items()})


def watch(frames: np.ndarray, face: np.ndarray, tick=None) -> Sightings:
    """Body and hands in frames (T, H, W, 3) uint8, whose face landmarks (T, 478, 2) are known."""
    import mediapipe as mp

    T, H, W, _ = frames.shape
    nan = lambda *shape: np.full((T, *shape), np.nan, np.float32)  # noqa: E731
    pose, visible, pose3d, hands = nan(33, 2), np.zeros((T, 33), np.float32), nan(33, 3), {"left": nan(21, 2), "right": nan(21, 2)}
    with contextlib.ExitStack() as stack, quiet():
        body = stack.enter_context(mp.solutions.pose.Pose(model_complexity=1))
        fingers = stack.enter_context(mp.solutions.hands.Hands(max_num_hands=2))
        for t, frame in enumerate(frames):
            found = body.process(frame)
            if found.pose_landmarks:
                pose[t] = [(p.x * W, p.y * H) for p in found.pose_landmarks.landmark]
                inside = ((pose[t] >= 0) & (pose[t] < (W, H))).all(1)
                visible[t] = [p.visibility for p in found.pose_landmarks.landmark] * inside
                pose3d[t] = to_world(found.pose_world_landmarks)[:, [0, 2, 1]] * (1, -1, 1)
            for hand in fingers.process(frame).multi_hand_landmarks or ():
                _to_side(np.float32([(p.x * W, p.y * H) for p in hand.landmark]), pose[t], hands, t)
            if tick:
                tick()
    return Sightings(face, pose, visible, pose3d, hands)


def _to_side(points, pose, hands, t) -> None:
    """File a hand (21, 2) under the side whose wrist (pose landmarks 15, 16) is near. In place."""
    far = np.linalg.norm(pose[[15, 16]] - points[0], axis=1)
    size = np.linalg.norm(points[9] - points[0])
    if np.isfinite(far).all() and far.min() < 1.2 * size:
        hands[("left", "right")[int(far.argmin())]][t] = points


def free_joints(seen: Sightings) -> tuple[str, ...]:
    """The joints that the sightings say something about."""
    joints = [*TRUNK, *NECK]
    for k, side in enumerate("LR"):
        if np.mean(seen.visible[:, 13 + k] > 0.5) > 0.1:
            joints += [f"{n}.{side}" for n in ARM]
            if np.isfinite(seen.hands[("left", "right")[k]]).any():
                joints += [f"{n}.{side}" for n in FINGERS]
    return tuple(joints)


class Capture:
    """The fit of T postures of a puppet to sightings.

    key: frame of the avatar's photo, and as it stands there, with its expression, (V, 3) m. Face landmarks are taken relative to
    that frame: the model that finds them in a video is not the one of the photo fit, and off by another pixel.
    """

    def __init__(self, body: Body, puppet: Puppet, seen: Sightings, viewmat, K, key: int, as_seen: torch.Tensor):
        self.body, self.viewmat, self.K = body, viewmat, K
        marks = load_landmarks(body)
        kept = marks.vertices()
        self.small, self.marks = puppet.select(kept), marks.select(kept)
        t = lambda x: torch.as_tensor(np.nan_to_num(x), dtype=torch.float32)  # noqa: E731
        off = project(marks.face(as_seen), viewmat, K)[0] - t(seen.face[key])
        self.face, self.pose = t(seen.face) + off, t(seen.pose)
        self.face_weight = marks.reliable.float() * t(np.isfinite(seen.face[..., 0]))
        self.face_weight[:, list(BOUNDARY)] *= 0.2
        self.face_weight[:, [*LIPS, *LIDS]] *= 2.0
        eyes = np.linalg.norm(seen.face[:, 473] - seen.face[:, 468], axis=1)
        self.eyes = float(np.nanmedian(eyes))
        visible = t(seen.visible)
        self.pose_weight = visible * (visible > 0.5)
        self.pose_weight[:, :11] = 0
        self.pose_weight[:, 17:] = 0
        self.limbs = torch.tensor(LIMBS)
        pose3d = t(seen.pose3d)
        self.directions = torch.nn.functional.normalize(pose3d[:, self.limbs[:, 1]] - pose3d[:, self.limbs[:, 0]], dim=-1)
        self.limb_weight = visible[:, self.limbs].amin(-1)
        self.limb_weight = self.limb_weight * (self.limb_weight > 0.5)
        self.hands = {k: (t(v), t(np.isfinite(v[:, :, 0]))) for k, v in seen.hands.items() if np.isfinite(v).any()}
        self.sigma = torch.tensor([float(np.max(FREEDOM.get(n.split(".")[0], 0.1))) for n in puppet.free])[:, None]
        self.used = torch.tensor([float(n not in STILL) for n in body.action_names])
        self.above = torch.zeros(33, 3)
        self.above[11:13, 2] = SHOULDER
        self.unknowns = puppet.zero(len(seen.face))

    def data(self, p: Pose) -> torch.Tensor:
        """How far the landmarks are off."""
        vertices, _, joints = self.small.pose(p)
        face, _ = project(self.marks.face(vertices), self.viewmat, self.K)
        loss = 0.1 * (self.face_weight * huber(((face - self.face) / (UNIT * self.eyes)).square().sum(-1))).sum()
        gap = lambda x: (x[:, APERTURE[1]] - x[:, APERTURE[0]]) / (0.5 * UNIT * self.eyes)  # noqa: E731
        loss = loss + (self.face_weight[:, APERTURE[0]] * huber((gap(face) - gap(self.face)).square().sum(-1))).sum()
        points = self.marks.pose(vertices, joints) + self.above
        pose, _ = project(points, self.viewmat, self.K)
        loss = loss + 3 * (self.pose_weight * huber(((pose - self.pose) / (0.15 * self.eyes)).square().sum(-1))).sum()
        camera = points @ self.viewmat[:3, :3].T
        limb = torch.nn.functional.normalize(camera[:, self.limbs[:, 1]] - camera[:, self.limbs[:, 0]], dim=-1)
        loss = loss + (self.limb_weight * huber(((limb - self.directions) / 0.4).square().sum(-1))).sum()
        for side, (flat, found) in self.hands.items():
            hand, _ = project(self.marks.hand(vertices, joints, side), self.viewmat, self.K)
            loss = loss + 0.3 * (found * huber(((hand - flat) / (0.1 * self.eyes)).square().sum(-1))).sum()
        return loss

    def prior(self, p: Pose) -> torch.Tensor:
        """Cost of postures away from the rest, of many actions, of accelerations."""
        cost = 0.3 * (p.rotvecs / self.sigma).square().sum() + (p.turn / 0.1).square().sum() / 2
        cost = cost + (p.actions / ACTION).square().sum() / 2 + p.actions.abs().sum()
        if len(p) > 2:
            bend = lambda x: x.diff(n=2, dim=0)  # noqa: E731
            cost = (
                cost
                + huber((bend(p.rotvecs) / JERK_TURN).square().sum(-1)).sum()
                + huber((bend(p.turn) / JERK_TURN).square().sum(-1)).sum()
            )
            cost = cost + huber((bend(p.shift) / JERK_SHIFT).square().sum(-1)).sum()
            cost = cost + 0.5 * huber((bend(p.actions) / JERK_ACTION).square()).sum()
        return cost

    def fit(self, iterations: int, tick=None) -> Pose:
        """Adam on all frames at once; rates fall to a tenth."""
        p = Pose(*(x.clone().requires_grad_() for x in vars(self.unknowns).values()))
        rates = {"turn": 0.01, "shift": 0.01, "rotvecs": 0.02, "actions": 0.05}
        optimiser = torch.optim.Adam([{"params": [getattr(p, k)], "lr": lr} for k, lr in rates.items()], betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, 0.001)
        for _ in range(iterations):
            now = replace(p, actions=p.actions * self.used)
            loss = self.data(now) + self.prior(now)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                p.actions.clamp_(LEAST, MOST)
            if tick:
                tick(float(loss.detach()))
        return Pose(p.turn.detach(), p.shift.detach(), p.rotvecs.detach(), (p.actions * self.used).detach())
