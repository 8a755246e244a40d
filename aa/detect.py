"""What a photo shows: one person's mask, face, body and hand landmarks, by MediaPipe's models (Apache-2.0, inside its wheel)."""

import contextlib
from dataclasses import dataclass

import cv2
import numpy as np

from aa.errors import InputError
from aa.faces import EYE_DISTANCE, LEFT_IRIS, RIGHT_IRIS, check_face, face_yaw, find_faces
from aa.mask import person_mask
from aa.models import Models, quiet
from aa.photo import Photo, load_image, load_photo
from aa.poses import find_hands, find_pose, head_only, run_pose
from aa.quality import Quality, complaints, face_quality, refuse

__all__ = ["EYE_DISTANCE", "LEFT_IRIS", "RIGHT_IRIS", "Models", "Person", "detect", "find_faces", "load_image", "quiet"]


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
    quality: Quality | None = None  # measures of the face
    people: int = 1  # faces in the photo

    @property
    def eye_distance(self) -> float:
        """Distance of the pupils in px of `image`."""
        return float(np.linalg.norm(self.face[LEFT_IRIS] - self.face[RIGHT_IRIS]))


def detect(source) -> Person:
    """Find the main person of a photo: a path, a PIL image, or an array as `aa.photo.load_photo` takes it.

    Raises: InputError when the photo holds no usable face: nobody, too small, or turned away.
    """
    photo = load_photo(source)
    with quiet():
        import mediapipe as mp

        with contextlib.ExitStack() as stack:
            models = Models(mp.solutions, stack)
            image, alpha, faces, notices = _faces_upright(models, photo)
            face, presence = faces[0]
            check_face(face, photo.scale)
            quality = face_quality(image, face)
            refuse(quality)
            others = [f for f, _ in faces[1:]]
            pose, rivals = find_pose(models, image, face[:, :2], others)
            if others:
                notices.append(f"{len(faces)} faces in the photo: the largest is used.")
            if pose is None:
                pose = head_only(face[:, :2])
                notices.append("Only a head was found in the photo: the body is a guess.")
            pose2d, visibility, pose3d, seen = pose
            hands, scores = find_hands(models, image, pose2d, visibility)
            coarse = coarse_mask(models, image, face[:, :2], pose2d, visibility, seen)
    inside = ((pose2d >= 0) & (pose2d < image.shape[1::-1])).all(1)
    visibility = np.where(inside, visibility, 0).astype(np.float32)
    found = [h[0] for h in hands.values() if h is not None]
    mask = person_mask(image, coarse, pose2d, visibility, found, rivals, alpha)
    confidence = {"face": presence, "pose": float(visibility[[0, 11, 12]].mean()) if seen is not None else 0.0, **scores}
    notices += [*complaints(quality).values(), *_missing(visibility, seen is not None)]
    return Person(
        image, mask, face[:, :2], face[:, 2], pose2d, visibility, pose3d, hands, confidence, face_yaw(face), photo.scale,
        tuple(notices), quality, len(faces),
    )  # fmt: skip


def _faces_upright(models, photo: Photo):
    """The faces of a photo: image (H, W, 3), alpha, [(landmarks (478, 3), score)] and notices; turned if it lies on its side.

    Raises: InputError when there is no face.
    """
    first, unconfirmed = find_faces(models, photo.image)
    roll = face_quality(photo.image, first[0][0]).roll if first else 0.0
    for k in (0, 2, 1, 3) if abs(roll) < 45 else (round(roll / 90) % 4,):  # quarters of a turn, against the clock
        image = np.ascontiguousarray(np.rot90(photo.image, k))
        faces = find_faces(models, image)[0] if k else first
        if faces and _fair(face_quality(image, faces[0][0])):
            alpha = None if photo.alpha is None else np.ascontiguousarray(np.rot90(photo.alpha, k))
            said = f"The photo was {'upside down' if k == 2 else 'on its side'}: it was turned."
            return image, alpha, faces, [*photo.notices, *([said] if k else [])]
    if not first:
        raise _no_face(models, photo.image, unconfirmed, photo.scale)
    return photo.image, photo.alpha, first, list(photo.notices)


def _fair(quality: Quality) -> bool:
    """Whether a face is upright and nothing is badly wrong with it (mouths are misread in photos that stand on their heads)."""
    try:
        refuse(quality)
    except InputError:
        return False
    return abs(quality.roll) < 45


def _missing(visibility, body: bool) -> list[str]:
    """Sentences about what of the body the photo does not show."""
    hidden = body and visibility[[11, 12]].max() < 0.5
    return ["The shoulders are not in the photo: the body is a guess."] if hidden else []


def _no_face(models, image, unconfirmed, scale: float) -> InputError:
    """The reason why no face was found, in words for the user."""
    nobody = InputError("No person was found in the photo: give one of a single person whose face is well visible.")
    pose = run_pose(models, image, np.array(image.shape[1::-1]) / 2, max(image.shape[:2]) * 1.1)
    if pose is None or pose[1][[11, 12]].max() < 0.8:
        if max(image.shape[:2]) > 3 * min(image.shape[:2]):
            return InputError("No person was found in so long a photo: cut it down to the person.")
        return nobody
    shoulders = np.linalg.norm(pose[0][11] - pose[0][12]) / max(scale, 1)
    if shoulders < 5 * EYE_DISTANCE and not unconfirmed and pose[1][0] > 0.9:
        return InputError("The face is too small: crop the photo around the person or use a larger one.")
    return InputError(
        "A body was found but no face: it is turned away, covered or cut off; give a photo that looks towards the camera."
    )


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
    seen = np.where(seen < 0, weight * near, seen)  # hair above the crop in which the pose was found
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
