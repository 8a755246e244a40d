"""What a photo shows: one person's mask, face, body and hand landmarks, by MediaPipe's models (Apache-2.0, inside its wheel)."""

import contextlib
import os
import sys
from dataclasses import dataclass

import cv2
import numpy as np

from aa.errors import InputError
from aa.mask import person_mask
from aa.photo import load_image, load_photo

__all__ = ["Person", "detect", "load_image"]

EYE_DISTANCE = 20  # px between the pupils in the original photo, below which a face has too little detail
MOST_YAW = 50  # degrees
LEFT_IRIS, RIGHT_IRIS = 473, 468  # face landmarks; left and right are the person's own
# Pose landmarks: the wrist and elbow of each side, and the points of the hand as the pose model sees them
WRIST, ELBOW = {"left": 15, "right": 16}, {"left": 13, "right": 14}
KNUCKLES = {"left": (17, 19), "right": (18, 20)}  # little finger, index


@dataclass(frozen=True)
class Person:
    """One person in a photo. Pixels count from the top left corner of `image`, x right and y down; sides are the person's own.

    3D points use the world axes: x towards the person's left (for one who faces the camera: image right), y away from the camera,
    z up. Points that the photo does not show are guesses of the models, with low visibility.
    """

    image: np.ndarray  # (H, W, 3) uint8 RGB
    mask: np.ndarray  # (H, W) float32 in [0, 1]
    face: np.ndarray  # (478, 2) px; the last ten are the irises (468 right centre, 473 left centre)
    face_z: np.ndarray  # (478,) px, away from the camera, relative to the head's middle
    pose2d: np.ndarray  # (33, 2) px
    pose_visibility: np.ndarray  # (33,) in [0, 1]; 0 outside the photo
    pose3d: np.ndarray  # (33, 3) m from the middle of the hips
    hands: dict[str, tuple[np.ndarray, np.ndarray] | None]  # "left", "right": ((21, 2) px, (21, 3) m from the hand's middle)
    confidence: dict[str, float]  # "face", "pose", "left", "right" in [0, 1]; 0 where nothing was found
    yaw: float  # degrees, positive when the person turns to their own left
    scale: float  # px of `image` per px of the original photo
    notices: tuple[str, ...] = ()  # sentences for the user

    @property
    def eye_distance(self) -> float:
        """Distance of the pupils in px of `image`."""
        return float(np.linalg.norm(self.face[LEFT_IRIS] - self.face[RIGHT_IRIS]))


def detect(source) -> Person:
    """Find the main person of a photo: a path, a PIL image, or an array as `aa.photo.load_photo` takes it.

    Raises: InputError when the photo holds no usable face: nobody, too small, or turned away.
    """
    photo = load_photo(source)
    image = photo.image
    with _quiet():
        import mediapipe as mp

        with contextlib.ExitStack() as stack:
            models = _Models(mp.solutions, stack)
            faces, unconfirmed = find_faces(models, image)
            if not faces:
                raise _no_face(models, image, unconfirmed, photo.scale)
            face, presence = faces[0]
            _check_face(face, photo.scale)
            others = [f for f, _ in faces[1:]]
            pose, rivals = find_pose(models, image, face[:, :2], others)
            notices = [f"{len(faces)} faces in the photo: the largest is used."] if others else []
            if pose is None:
                pose = _head_only(face[:, :2])
                notices.append("Only a head was found in the photo: the body is a guess.")
            pose2d, visibility, pose3d, seen = pose
            hands, scores = find_hands(models, image, pose2d, visibility)
            coarse = coarse_mask(models, image, face[:, :2], pose2d, visibility, seen)
    inside = ((pose2d >= 0) & (pose2d < image.shape[1::-1])).all(1)
    visibility = np.where(inside, visibility, 0).astype(np.float32)
    found = [h[0] for h in hands.values() if h is not None]
    mask = person_mask(image, coarse, pose2d, visibility, found, rivals, photo.alpha)
    confidence = {"face": presence, "pose": float(visibility[[0, 11, 12]].mean()) if seen is not None else 0.0, **scores}
    flat, depth = face[:, :2], face[:, 2]
    turn, notices = face_yaw(face), tuple(notices)
    return Person(image, mask, flat, depth, pose2d, visibility, pose3d, hands, confidence, turn, photo.scale, notices)


class _Models:
    """MediaPipe graphs, opened when first asked for and closed by the caller's exit stack."""

    def __init__(self, solutions, stack):
        self.stack, self.opened = stack, {}
        self.makers = {
            "near": lambda: solutions.face_detection.FaceDetection(model_selection=0, min_detection_confidence=0.4),
            "far": lambda: solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.4),
            "mesh": lambda: solutions.face_mesh.FaceMesh(
                static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.3
            ),
            "pose": lambda: solutions.pose.Pose(static_image_mode=True, model_complexity=1, enable_segmentation=True),
            "hands": lambda: solutions.hands.Hands(static_image_mode=True, max_num_hands=2, min_detection_confidence=0.35),
            "selfie": lambda: solutions.selfie_segmentation.SelfieSegmentation(model_selection=0),
        }

    def run(self, name: str, image: np.ndarray):
        """The answer of model `name` on image (H, W, 3) uint8 RGB."""
        if name not in self.opened:
            self.opened[name] = self.stack.enter_context(self.makers[name]())
        return self.opened[name].process(np.ascontiguousarray(image))


@contextlib.contextmanager
def _quiet():
    """Silence the C++ log of MediaPipe and TensorFlow Lite, which write to file descriptor 2 whatever their settings."""
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def crop_square(image, centre, side: float, size: int):
    """A square of `side` px about `centre`, resampled to size x size, grey outside the photo.

    Returns: crop (size, size, 3) uint8 and a function that takes points (..., 2) from fractions of the crop to px of the image.
    """
    corner = np.asarray(centre, float) - side / 2
    scale = size / side
    matrix = np.array([[scale, 0, -scale * corner[0]], [0, scale, -scale * corner[1]]])
    if scale < 0.6:  # the warp has no antialiasing
        image = cv2.GaussianBlur(image, (0, 0), 0.4 / scale)
    crop = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(127, 127, 127))
    return crop, lambda points: np.asarray(points) * side + corner


def find_faces(models, image) -> tuple[list, list]:
    """Every face: [((478, 3) px landmarks, score)], largest first, and detector boxes that the landmark model did not confirm."""
    h, w = image.shape[:2]
    boxes = []  # (x, y, side, score)
    tiles = [((w / 2, h / 2), max(h, w))]
    if max(h, w) > 700:  # the detectors see 128 or 192 px: look closer, at overlapping tiles
        step = max(h, w) / 2
        tiles += [((x, y), step) for x in _centres(w, step) for y in _centres(h, step)]
    for name in ("near", "far"):
        for centre, side in tiles:
            crop, to_image = crop_square(image, centre, side, 512)
            for d in models.run(name, crop).detections or []:
                b = d.location_data.relative_bounding_box
                x, y = to_image((b.xmin + b.width / 2, b.ymin + b.height / 2))
                boxes.append((x, y, b.width * side, d.score[0]))
    faces, unconfirmed = [], []
    for box in sorted(boxes, key=lambda b: -b[3] - (b[2] / max(h, w))):
        centre = np.array(box[:2])
        if any(np.linalg.norm(f[:, :2].mean(0) - centre) < 0.7 * max(np.ptp(f[:, 0]), box[2]) for f, _ in faces):
            continue
        face = refine_face(models, image, centre, box[2])
        if face is None or not _is_face(models, image, face):
            unconfirmed.append(box)
        elif not any(np.linalg.norm((f - face)[:, :2].mean(0)) < 0.5 * np.ptp(face[:, 0]) for f, _ in faces):
            faces.append((face, float(box[3])))
    faces.sort(key=lambda f: -_face_size(f[0]))
    keep = [f for f in faces if _face_size(f[0]) > 0.2 * _face_size(faces[0][0])]  # crowds and posters far behind
    return keep, unconfirmed


def _is_face(models, image, face) -> bool:
    """Whether the detector sees a face in a close crop: the landmark model alone also fits hands and folds."""
    size = max(np.ptp(face[:, 0]), np.ptp(face[:, 1]))
    crop, _ = crop_square(image, face[:, :2].mean(0), 2.2 * size, 512)
    return any(d.score[0] > 0.75 for name in ("near", "far") for d in models.run(name, crop).detections or [])


def _centres(extent: float, side: float) -> list[float]:
    """Middles of overlapping tiles of `side` that cover `extent`."""
    if extent <= side:
        return [extent / 2]
    count = int(np.ceil((extent - side) / (side * 0.6))) + 1
    return list(np.linspace(side / 2, extent - side / 2, count))


def _face_size(face) -> float:
    return float(np.ptp(face[:, 1]))


def refine_face(models, image, centre, width: float) -> np.ndarray | None:
    """Landmarks (478, 3) px of the face at a detector's box, from crops placed by a first pass; None when there is no face."""
    first = None
    for factor in (2.0, 3.0, 1.5):
        first = _mesh(models, image, centre, factor * width)
        if first is not None:
            break
    if first is None:
        return None
    centre, size = first[:, :2].mean(0), max(np.ptp(first[:, 0]), np.ptp(first[:, 1]))
    passes = [_mesh(models, image, centre, factor * size) for factor in (1.6, 1.8, 2.1)]
    passes = [p for p in passes if p is not None] or [first]
    return np.median(passes, 0).astype(np.float32)  # the region of interest jitters with the crop


def _mesh(models, image, centre, side: float) -> np.ndarray | None:
    crop, to_image = crop_square(image, centre, side, 512)
    found = models.run("mesh", crop).multi_face_landmarks
    if not found:
        return None
    points = np.array([(p.x, p.y, p.z) for p in found[0].landmark])
    return np.concatenate([to_image(points[:, :2]), points[:, 2:] * side], 1)


def face_yaw(face) -> float:
    """Turn of the head in degrees from landmarks (478, 3): the ear-to-ear line against the image plane, + to the person's left."""
    pairs = np.array([(234, 454), (127, 356), (93, 323), (33, 263)])  # right and left: cheeks, temples, outer eye corners
    across = (face[pairs[:, 1]] - face[pairs[:, 0]]).mean(0)
    flat = np.degrees(np.arctan2(across[2], np.hypot(across[0], across[1])))
    return float(flat * (1 + 0.0046 * abs(flat)))  # the model flattens turned heads: 25, 40, 55 degrees of the body give 24, 35, 45


def _check_face(face, scale: float):
    """Refuse a face that is turned away or too small."""
    yaw = abs(face_yaw(face))
    if yaw > MOST_YAW:
        raise InputError(f"The face is turned away by about {yaw:.0f} degrees: give a photo that looks towards the camera.")
    eyes = np.linalg.norm(face[LEFT_IRIS, :2] - face[RIGHT_IRIS, :2]) / np.cos(np.radians(yaw)) / max(scale, 1)
    if eyes < EYE_DISTANCE:
        raise InputError(
            f"The face is too small, {eyes:.0f} pixels between the eyes where {EYE_DISTANCE} are needed: "
            "crop the photo around the person or use a larger one."
        )


def _no_face(models, image, unconfirmed, scale: float) -> InputError:
    """The reason why no face was found, in words for the user."""
    nobody = InputError("No person was found in the photo: give one of a single person whose face is well visible.")
    pose = _run_pose(models, image, np.array(image.shape[1::-1]) / 2, max(image.shape[:2]) * 1.1)
    if pose is None or pose[1][[11, 12]].mean() < 0.8:
        return nobody
    shoulders = np.linalg.norm(pose[0][11] - pose[0][12]) / max(scale, 1)
    if shoulders < 5 * EYE_DISTANCE and not unconfirmed and pose[1][0] > 0.9:
        return InputError("The face is too small: crop the photo around the person or use a larger one.")
    return InputError(
        "A body was found but no face: it is turned away, covered or cut off; give a photo that looks towards the camera."
    )


def find_pose(models, image, face, others):
    """Body landmarks of the person with the landmarks `face` (478, 2), and pose2d of the `others` [(478, 3)].

    Returns: (pose2d, visibility, pose3d, segmentation (H, W)) or None, and [(33, 2)].
    """
    rivals = [_pose_of_face(models, image, f[:, :2], [face]) for f in others[:4]]
    rivals = [(r or _head_only(f[:, :2]))[0] for r, f in zip(rivals, others)]
    return _pose_of_face(models, image, face, [f[:, :2] for f in others]), rivals


def _pose_of_face(models, image, face, others):
    """Pose whose nose is on `face`, trying ever closer crops; other faces are painted over so that they attract nothing."""
    if others:
        image = image.copy()
    for other in others:
        x0, y0, x1, y1 = *other.min(0), *other.max(0)
        grow = 0.25 * (y1 - y0)
        corner = (int(x0 - grow), int(y0 - 2 * grow)), (int(x1 + grow), int(y1 + grow))
        cv2.rectangle(image, *corner, (127, 127, 127), -1)
    h, w = image.shape[:2]
    height = np.ptp(face[:, 1])
    tries = [] if others else [(np.array([w, h]) / 2, 1.05 * max(h, w))]
    tries += [(face.mean(0) + (0, drop * height), side * height) for drop, side in ((4.2, 13), (2.5, 8), (1.5, 5), (0.5, 3.5))]
    for centre, side in tries:
        pose = _run_pose(models, image, centre, side)
        if pose is not None and np.linalg.norm(pose[0][0] - face[1]) < 0.5 * height:
            return _closer_pose(models, image, pose, face)
    return None


def _closer_pose(models, image, pose, face):
    """A second pass on a crop around the visible landmarks, when it agrees with the first."""
    h, w = image.shape[:2]
    points = np.concatenate([pose[0][pose[1] > 0.5].clip(0, (w, h)), face])
    low, high = points.min(0), points.max(0)
    side = 1.3 * (high - low).max()
    if side > 0.8 * max(h, w):
        return pose
    again = _run_pose(models, image, (low + high) / 2, side)
    if again is None or np.linalg.norm(again[0][0] - face[1]) > 0.5 * np.ptp(face[:, 1]):
        return pose
    return again


def _run_pose(models, image, centre, side: float):
    crop, to_image = crop_square(image, centre, side, 640)
    result = models.run("pose", crop)
    if result.pose_landmarks is None:
        return None
    flat = np.array([(p.x, p.y) for p in result.pose_landmarks.landmark])
    visibility = np.array([p.visibility for p in result.pose_landmarks.landmark], np.float32)
    return (
        to_image(flat).astype(np.float32),
        visibility,
        _world(result.pose_world_landmarks),
        _paste(result.segmentation_mask, to_image, image),
    )


def _world(landmarks) -> np.ndarray:
    """MediaPipe's world landmarks (x image right, y down, z away) in the axes of `Person`, (n, 3) m."""
    points = np.array([(p.x, p.y, p.z) for p in landmarks.landmark], np.float32)
    return points[:, [0, 2, 1]] * np.array([1, 1, -1], np.float32)


def _paste(values, to_image, image) -> np.ndarray:
    """Values (n, n) of a square crop placed in the photo, (H, W) float32, zero outside the crop."""
    n = len(values)
    corner, end = to_image((0, 0)), to_image((1, 1))
    scale = (end - corner)[0] / n
    matrix = np.array([[scale, 0, corner[0]], [0, scale, corner[1]]])
    return cv2.warpAffine(np.asarray(values, np.float32), matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR)


def _head_only(face):
    """A stand-in for the pose of a person of whom only the face (478, 2) was seen: an average upright body below the head."""
    height = np.ptp(face[:, 1])
    nose = face[1]
    pose = np.tile(nose + (0, 1.6 * height), (33, 1))
    pose[0], pose[1:4], pose[4:7] = nose, face[LEFT_IRIS], face[RIGHT_IRIS]
    pose[7], pose[8], pose[9], pose[10] = face[454], face[234], face[291], face[61]
    across = np.array([height, 0])
    for index, (sideways, down) in {
        11: (0.95, 1.3),
        13: (1.15, 2.8),
        15: (1.2, 4.1),
        23: (0.55, 4.0),
        25: (0.55, 6.2),
        27: (0.55, 8.2),
    }.items():
        pose[index] = nose + sideways * across + (0, down * height)
        pose[index + 1] = nose - sideways * across + (0, down * height)
    for index in range(17, 23):
        pose[index] = pose[15 + (index - 15) % 2]
    for index in range(29, 33):
        pose[index] = pose[27 + (index - 27) % 2]
    middle = pose[[23, 24]].mean(0)
    metres = 0.19 / height  # a face from the hairline to the chin measures about 19 cm
    pose3d = np.stack([(pose[:, 0] - middle[0]) * metres, np.zeros(33), (middle[1] - pose[:, 1]) * metres], 1)
    visibility = np.where(np.arange(33) < 11, 1.0, 0.0)
    return pose.astype(np.float32), visibility.astype(np.float32), pose3d.astype(np.float32), None


def find_hands(models, image, pose2d, visibility):
    """Hands on upscaled crops about the wrists. Returns {"left", "right": ((21, 2) px, (21, 3) m) or None} and their scores."""
    hands, scores = {"left": None, "right": None}, {"left": 0.0, "right": 0.0}
    forearms = [np.linalg.norm(pose2d[WRIST[s]] - pose2d[ELBOW[s]]) for s in WRIST]
    length = max(*forearms, 0.5 * np.linalg.norm(pose2d[11] - pose2d[12]))
    found = []  # (distance to the wrist, side, points, world, score)
    for side in WRIST:
        if visibility[WRIST[side]] < 0.3 or not _inside(pose2d[WRIST[side]], image, 0.3 * length):
            continue
        for points, world, score in _hands_near(models, image, pose2d, side, length):
            for s in WRIST:
                found.append((np.linalg.norm(points[0] - pose2d[WRIST[s]]), s, points, world, score))
    for distance, side, points, world, score in sorted(found, key=lambda f: f[0]):
        taken = [h[0] for h in hands.values() if h is not None]
        if hands[side] is None and distance < 0.6 * length and not any(_same_hand(points, t) for t in taken):
            hands[side], scores[side] = (points, world), score
    return hands, scores


def _inside(point, image, margin: float) -> bool:
    return bool((point > -margin).all() and (point < np.array(image.shape[1::-1]) + margin).all())


def _same_hand(a, b) -> bool:
    return bool(np.linalg.norm(a - b, axis=1).mean() < 0.4 * np.linalg.norm(a[9] - a[0]))


def _hands_near(models, image, pose2d, side: str, length: float) -> list:
    """Hands [(points (21, 2), world (21, 3), score)] seen near the wrist of one side; each found twice, the second time centred."""
    middle = (pose2d[list(KNUCKLES[side])].mean(0) + pose2d[WRIST[side]]) / 2
    for factor in (1.6, 1.1, 2.4):
        first = _run_hands(models, image, middle, factor * length)
        if first:
            break
    refined = []
    for points, world, score in first:
        low, high = points.min(0), points.max(0)
        again = _run_hands(models, image, (low + high) / 2, 2.2 * (high - low).max())
        same = [a for a in again if _same_hand(a[0], points)]
        refined.append(same[0] if same else (points, world, score))
    return refined


def _run_hands(models, image, centre, side: float) -> list:
    crop, to_image = crop_square(image, centre, side, 512)
    result = models.run("hands", crop)
    if not result.multi_hand_landmarks:
        return []
    flat = [to_image([(p.x, p.y) for p in hand.landmark]).astype(np.float32) for hand in result.multi_hand_landmarks]
    world = [_world(hand) for hand in result.multi_hand_world_landmarks]
    scores = [float(hand.classification[0].score) for hand in result.multi_handedness]
    return list(zip(flat, world, scores))


def coarse_mask(models, image, face, pose2d, visibility, seen) -> np.ndarray:
    """Person probability (H, W) in [0, 1]: the pose model's segmentation `seen`, which knows the person, and the selfie model's,
    which is sharper, on the whole person and on the head."""
    h, w = image.shape[:2]
    points = np.concatenate([pose2d[visibility > 0.5].clip(0, (w, h)), face])
    if seen is not None and (seen > 0.5).any():
        rows, columns = np.nonzero(seen > 0.5)
        points = np.concatenate([points, [(columns.min(), rows.min()), (columns.max(), rows.max())]])
    low, high = points.min(0), points.max(0)
    whole = _selfie(models, image, (low + high) / 2, 1.15 * (high - low).max())
    if seen is None:
        return whole
    head, side = face.mean(0) + (0, -0.1 * np.ptp(face[:, 1])), 3.2 * np.ptp(face[:, 1])
    near = _selfie(models, image, head, side)
    distance = np.linalg.norm(np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1) - head, axis=-1)
    weight = np.clip((0.5 * side - distance) / (0.2 * side), 0, 1)  # fades out before the edge of the close crop
    selfie = whole + weight * (near - whole)
    gate = cv2.dilate(seen, np.ones((2 * (max(h, w) // 60) + 1,) * 2, np.uint8))  # the selfie model marks everyone
    return np.sqrt(np.maximum(selfie * gate, 0) * (0.5 * seen + 0.5 * selfie)).astype(np.float32)


def _selfie(models, image, centre, side: float) -> np.ndarray:
    """Selfie segmentation (H, W) of the part of a square that lies in the photo (a border would fade a body cut off by it)."""
    limit = np.array(image.shape[1::-1])
    x0, y0 = np.clip(np.asarray(centre) - side / 2, 0, limit - 2).astype(int)
    x1, y1 = np.clip(np.asarray(centre) + side / 2, (x0 + 2, y0 + 2), limit).astype(int)
    small = cv2.resize(image[y0:y1, x0:x1], (256, 256), interpolation=cv2.INTER_AREA)  # the model's input, stretched as it expects
    mask = np.zeros(image.shape[:2], np.float32)
    found = models.run("selfie", small).segmentation_mask
    mask[y0:y1, x0:x1] = cv2.resize(found, (int(x1 - x0), int(y1 - y0)), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    return mask
