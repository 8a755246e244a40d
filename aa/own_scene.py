"""What the fit of a user's own video (aa.own_fit) is made of: a frame for the avatar, what is behind, postures, and the particles'
places in every frame."""

import cv2
import numpy as np
import torch
from tqdm.auto import tqdm

from aa.body import REGIONS, Body, quat_multiply
from aa.canonical import Avatar, animate, fit_photo
from aa.capture import Capture, free_joints, watch
from aa.clips import Clip
from aa.deformation import Base, Footage
from aa.errors import InputError
from aa.flow import pick
from aa.follow import NODES, QUIET, Flow, face_field, smooth_in_time, to_metres
from aa.gaussians import FACE_REGIONS, HAND_REGIONS, Gaussians, project
from aa.landmarks import load_landmarks
from aa.lifting import make_graph
from aa.own_video import clean_background
from aa.plate import clean_plate
from aa.puppet import Pose, Puppet
from aa.transfer import Deformation

STILL = 0.03  # mean change of colour behind the person above which the camera, or what is behind, moves
GREY = 0.5  # behind the person in the fit, where each frame has another background
CLOSE = 0.4  # of the picture's shorter side: a smaller face gets a crop of its own in the fit
OUTSIDE, FADED = 0.3, -4.6  # share of frames beside the person from which a particle is faded, and its opacity logit then
TRACKS = 3000  # particles whose places the fit is given
OFTEN = 0.2  # share of the frames in which such a particle must be seen
TRIES, APART = 3, 12  # frames that the avatar may be made from, this many frames apart


# ---------------------------------------------------------------- the frame for the avatar


def rank_frames(clip: Clip) -> np.ndarray:
    """Frames from the best to the worst for an avatar: frontal, near the usual place, eyes open, mouth closed, sharp."""
    face = clip.landmarks
    usable = np.isfinite(face[:, 0, 0]) & clip.mask.any((1, 2))
    if not usable.any():
        raise InputError("no frame shows a face that looks towards the camera: give a video of a person who does.")
    far = lambda i, j: np.linalg.norm(face[:, i] - face[:, j], axis=1) + 1e-3  # noqa: E731
    eyes = far(473, 468)
    turned = np.abs(np.log(far(1, 234) / far(1, 454)))  # tip of the nose between the cheeks
    nod = np.log(far(1, 168) / far(1, 152))  # and between brows and chin
    nod = np.abs(nod - np.nanmedian(nod))
    away = np.linalg.norm(face.mean(1) - np.nanmedian(face.mean(1), 0), axis=1) / eyes
    mouth = np.maximum(0, far(13, 14) / eyes - 0.03)
    lids = 0.5 * (far(386, 374) / far(362, 263) + far(159, 145) / far(133, 33))
    shut = np.maximum(0, np.nanpercentile(lids, 80) - lids)
    sharp = np.array([_sharpness(f, m) if ok else 0 for f, m, ok in zip(clip.frames, face, usable)])
    cost = 2 * turned + nod + 0.5 * away + 3 * mouth + 4 * shut + 1 - sharp / sharp.max().clip(1e-6)
    return np.argsort(np.where(usable, cost, np.inf))[: usable.sum()]


def _sharpness(frame, face) -> float:
    (x0, y0), (x1, y1) = face.min(0).astype(int).clip(0), face.max(0).astype(int).clip(1)
    crop = frame[y0:y1, x0:x1]
    return float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var()) if crop.size else 0.0


def first_avatar(clip: Clip, settings, seed: int, progress: bool) -> Avatar:
    """The canonical avatar of the best frame that the photo fit accepts; `report["key"]` is that frame."""
    order, tried, error = list(rank_frames(clip)), [], None
    while order and len(tried) < TRIES:
        t = int(order[0])
        tried.append(t)
        order = [k for k in order if abs(k - t) >= APART]
        soft = cv2.GaussianBlur(clip.mask[t].astype(np.float32), (0, 0), 1.0)
        photo = np.concatenate([clip.frames[t], np.uint8(255 * soft)[..., None]], 2)
        try:
            avatar = fit_photo(
                photo,
                particles=settings.particles,
                size=max(photo.shape[:2]),
                seed=seed,
                progress=progress,
                settings=settings.photo,
            )
        except InputError as e:
            error = e
            continue
        avatar.report["key"] = t
        return avatar
    raise InputError(f"no frame of the video makes an avatar, the best one says: {error}")


# ---------------------------------------------------------------- what is behind


def still_plate(clip: Clip) -> np.ndarray | None:
    """What is behind the person (H, W, 3) in [0, 1], or None when it moves."""
    plate, grow = clean_background(clip), np.ones((15, 15), np.uint8)
    change = []
    for t in range(0, len(clip.frames), max(1, len(clip.frames) // 25)):
        beside = cv2.dilate(clip.mask[t].astype(np.uint8), grow) == 0
        if beside.any():
            change.append(np.abs(clip.frames[t] / 255.0 - plate)[beside].mean())
    return plate if not change or np.mean(change) < STILL else None


def own_plate(clip: Clip, t: int) -> np.ndarray:
    """Frame t with the person painted out, (H, W, 3) in [0, 1]."""
    return clean_plate(clip.frames[t], clip.mask[t].astype(np.float32)).astype(np.float32) / 255


# ---------------------------------------------------------------- motion


def capture(body: Body, avatar: Avatar, clip: Clip, key: int, iterations: int, progress: bool) -> dict:
    """Landmarks of all frames and the puppet's postures fitted to them, as tensors to keep."""
    with tqdm(total=len(clip.frames) + iterations, desc="posture", disable=not progress) as bar:
        seen = watch(clip.frames, clip.landmarks, bar.update)
        free = free_joints(seen)
        fit = Capture(
            body, Puppet(body, avatar.vertices, avatar.turn, free), seen, avatar.viewmat, avatar.K, key, avatar.photo_vertices
        )
        pose = fit.fit(iterations, lambda loss: bar.update())
    index = torch.tensor([body.joint(n) for n in free])
    return {**vars(pose), "free": index, "wanted": fit.face}


class Scene:
    """An avatar in a clip: its particles' parts, postures, and what its flow needs."""

    def __init__(self, body: Body, avatar: Avatar, clip: Clip, plate, pose: dict, key: int):
        self.body, self.avatar, self.clip, self.plate, self.key = body, avatar, clip, plate, key
        self.shown = clip.mask.any((1, 2)) & np.isfinite(clip.landmarks[:, 0, 0])
        region = torch.zeros(len(avatar.vertices), dtype=torch.long)
        region[body.faces.flatten()] = body.face_region.repeat_interleave(3)
        region = region[avatar.corners[:, 0]]
        among = lambda names: torch.isin(region, torch.tensor([REGIONS.index(n) for n in names]))  # noqa: E731
        self.part = among(FACE_REGIONS).long() + 2 * among(HAND_REGIONS).long()
        self.loud = ~among(QUIET)
        self.apart = (body.v_template[avatar.corners] * avatar.bary[..., None]).sum(1)
        self.graph = make_graph(self.apart, self.part, NODES)
        free = tuple(body.joint_names[j] for j in pose["free"])
        puppet = Puppet(body, avatar.vertices, avatar.turn, free)
        motion = puppet.motion(Pose(pose["turn"], pose["shift"], pose["rotvecs"], pose["actions"]))
        vertices = avatar.vertices + motion.means
        face = face_field(
            body, vertices, pose["wanted"], torch.from_numpy(np.isfinite(clip.landmarks[:, 0, 0])), avatar.viewmat, avatar.K
        )
        self.motion = Deformation(motion.means + face, motion.rotvecs)

    def poses(self):
        """Frame number, means (N, 3) and quats (N, 4) of the puppet, frame by frame."""
        for k in range(0, len(self.motion), 10):
            for j, pose in enumerate(zip(*animate(self.avatar, self.motion[k : k + 10]))):
                yield k + j, *pose

    def flow(self) -> Flow:
        """The flow from the avatar's picture to frames."""
        from scipy.spatial import cKDTree

        g = self.avatar.gaussians
        marks = load_landmarks(self.body)
        at = marks.face(self.avatar.vertices)[marks.reliable][:468]
        front = torch.nonzero((g.opacities > 0.5) & ~self.avatar.loose)[:, 0]
        held = front[np.unique(cKDTree(g.means[front].numpy()).query(at.numpy())[1])].numpy()
        return Flow((g.scales, g.opacities, g.colors), self.avatar.viewmat, self.avatar.K, self.graph, self.loud, held)

    def behind(self, t: int) -> torch.Tensor:
        """What is behind the person in frame t, (H, W, 3)."""
        return torch.as_tensor(self.plate if self.plate is not None else own_plate(self.clip, t), dtype=torch.float32)

    def follow(self, rounds: int, progress: bool) -> dict:
        """Displacements (T, K, 2) px of the graph's nodes, and tracks: places (T, P, 2) px of particles (P,), when seen."""
        a, flow = self.avatar, self.flow()
        T, N = len(self.motion), len(a.gaussians)
        nodes = np.zeros((T, len(self.graph.nodes), 2), np.float32)
        places, seen = np.zeros((T, N, 2), np.float32), np.zeros((T, N), bool)
        for t, means, quats in tqdm(self.poses(), total=T, desc="flow", disable=not progress):
            if not self.shown[t]:
                continue
            frame, mask, behind = self.clip.frames[t], self.clip.mask[t], self.behind(t)
            for _ in range(rounds):
                there, good = flow.find(means, quats, frame, mask, behind)
                step = flow.spread(there, good)
                nodes[t] += step.numpy()
                means = means + to_metres(self.carry(step), means, a.viewmat, a.K)
            there, good = flow.find(means, quats, frame, mask, behind)
            places[t], seen[t] = project(means, a.viewmat, a.K)[0].numpy() + there, good
        often = np.flatnonzero((seen.mean(0) > OFTEN) & self.loud.numpy())
        some = np.sort(np.random.default_rng(0).choice(often, min(TRACKS, len(often)), replace=False))
        nodes = smooth_in_time(nodes, self.shown)
        return {"nodes": nodes, "places": places[:, some], "seen": seen[:, some], "particle": some}

    def carry(self, nodes: torch.Tensor) -> torch.Tensor:
        """Displacements (N, 2) of the particles from those of the nodes (K, 2)."""
        return (nodes[self.graph.index] * self.graph.weight[..., None]).sum(1)

    def base(self, nodes: torch.Tensor) -> Base:
        """The coarse motion: puppet, landmarks and flow."""
        a, means, turns = self.avatar, [], []
        back = a.gaussians.quats * torch.tensor([1.0, -1, -1, -1])
        for t, m, q in self.poses():
            means.append(m + to_metres(self.carry(nodes[t]), m, a.viewmat, a.K))
            turns.append(quat_multiply(q, back))
        return Base(torch.stack(means), torch.stack(turns))

    def gaussians(self, base: Base) -> Gaussians:
        """The avatar's Gaussians; those that are beside the person in many frames (the visual hull over time) are faded."""
        a, (T, H, W) = self.avatar, self.clip.mask.shape
        inside, outside = np.zeros(len(a.gaussians)), np.zeros(len(a.gaussians))
        for t in np.flatnonzero(self.shown)[:: max(1, T // 50)]:
            x = project(base.means[t], a.viewmat, a.K)[0].numpy()
            near = cv2.dilate(self.clip.mask[t].astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
            seen = pick(np.ones((H, W), bool), x)
            inside, outside = inside + seen, outside + (seen & ~pick(near, x))
        stray = torch.from_numpy(outside > OUTSIDE * inside.clip(1))
        g = a.gaussians
        return Gaussians(
            g.means, g.quats, g.log_scales, torch.where(stray, g.opacity_logits.clamp(max=FADED), g.opacity_logits), g.colors
        )

    def footage(self, found: dict, used: np.ndarray) -> Footage:
        """What the 4DGS fit sees of the frames `used` (n,)."""
        frames = torch.from_numpy(self.clip.frames[used]).float() / 255
        behind = torch.full((3,), GREY) if self.plate is None else torch.from_numpy(self.plate)
        if self.plate is None:
            soft = np.stack([cv2.GaussianBlur(m.astype(np.float32), (0, 0), 1.0) for m in self.clip.mask[used]])
            frames = GREY + torch.from_numpy(soft)[..., None] * (frames - GREY)
        places, seen = found["places"][used], found["seen"][used].bool()
        return Footage(
            frames, self.avatar.K, self.avatar.viewmat, behind, places, seen, found["particle"], face_box(self.clip, used)
        )


def face_box(clip: Clip, used) -> tuple[int, int, int, int] | None:
    """A square (left, top, right, bottom) about the face in all frames; None when it is most of the picture already."""
    H, W = clip.mask.shape[1:]
    points = clip.landmarks[used].reshape(-1, 2)
    low, high = np.nanpercentile(points, [1, 99], axis=0)
    half = int(0.6 * (high - low).max())
    if 2 * half > CLOSE * min(H, W):
        return None
    x, y = (int(np.clip(v, half, n - half)) for v, n in zip((low + high) / 2, (W, H)))
    return x - half, y - half, x + half, y + half


# ---------------------------------------------------------------- how good it is


def aperture(face: np.ndarray) -> float:
    """Opening of the lips over the distance between the pupils, from face landmarks (478, 2)."""
    return float(np.linalg.norm(face[13] - face[14]) / np.linalg.norm(face[473] - face[468]).clip(1e-6))


def lip_correlation(clip: Clip, pictures: dict[int, np.ndarray]) -> float:
    """Correlation of the lips' opening in pictures {frame: (H, W, 3) uint8} and in the clip, by the same face model; nan if it
    sees a face in too few of them."""
    import contextlib

    import mediapipe as mp

    from aa.models import Models, quiet
    from aa.own_video import next_face

    ours, theirs = [], []
    with contextlib.ExitStack() as stack, quiet():
        models = Models(mp.solutions, stack)
        for t, picture in pictures.items():
            known = clip.landmarks[t]
            face = next_face(models, picture, known, t)
            if face is not None:
                ours.append(aperture(face[:, :2]))
                theirs.append(aperture(known))
    return float(np.corrcoef(ours, theirs)[0, 1]) if len(ours) > 5 else float("nan")
