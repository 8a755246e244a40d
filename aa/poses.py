"""Body and hand landmarks of the person whose face is known, each on crops around what was found before."""

import cv2
import numpy as np

from aa.faces import LEFT_IRIS, RIGHT_IRIS
from aa.models import crop_square, to_world

# Pose landmarks: the wrist and elbow of each side, and the points of the hand as the pose model sees them
WRIST, ELBOW = {"left": 15, "right": 16}, {"left": 13, "right": 14}
KNUCKLES = {"left": (17, 19), "right": (18, 20)}  # little finger, index


def find_pose(models, image, face, others):
    """Body landmarks of the person with the landmarks `face` (478, 2), and pose2d of the `others` [(478, 3)].

    Returns: (pose2d, visibility, pose3d, segmentation (H, W)) or None, and [(33, 2)].
    """
    rivals = [_pose_of_face(models, image, f[:, :2], [face]) for f in others[:4]]
    rivals = [(r or head_only(f[:, :2]))[0] for r, f in zip(rivals, others)]
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
        pose = run_pose(models, image, centre, side)
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
    again = run_pose(models, image, (low + high) / 2, side)
    if again is None or np.linalg.norm(again[0][0] - face[1]) > 0.5 * np.ptp(face[:, 1]):
        return pose
    return again


def run_pose(models, image, centre, side: float):
    crop, to_image = crop_square(image, centre, side, 640)
    result = models.run("pose", crop)
    if result.pose_landmarks is None:
        return None
    flat = np.array([(p.x, p.y) for p in result.pose_landmarks.landmark])
    visibility = np.array([p.visibility for p in result.pose_landmarks.landmark], np.float32)
    return (
        to_image(flat).astype(np.float32),
        visibility,
        to_world(result.pose_world_landmarks),
        _paste(result.segmentation_mask, to_image, image),
    )


def _paste(values, to_image, image) -> np.ndarray:
    """Values (n, n) of a square crop placed in the photo, (H, W) float32, -1 outside the crop."""
    n = len(values)
    corner, end = to_image((0, 0)), to_image((1, 1))
    scale = (end - corner)[0] / n
    matrix = np.array([[scale, 0, corner[0]], [0, scale, corner[1]]])
    return cv2.warpAffine(np.asarray(values, np.float32), matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR, borderValue=-1)


def head_only(face):
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
    world = [to_world(hand) for hand in result.multi_hand_world_landmarks]
    scores = [float(hand.classification[0].score) for hand in result.multi_handedness]
    return list(zip(flat, world, scores))
