"""Every face of a photo and its 478 landmarks, found on crops so that small faces count as well as large ones."""

import numpy as np

from aa.errors import InputError
from aa.models import crop_square

EYE_DISTANCE = 20  # px between the pupils in the original photo, below which a face has too little detail
MOST_YAW = 50  # degrees
LEFT_IRIS, RIGHT_IRIS = 473, 468  # face landmarks; left and right are the person's own


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
    faces.sort(key=lambda f: -face_size(f[0]))
    keep = [f for f in faces if face_size(f[0]) > 0.2 * face_size(faces[0][0])]  # crowds and posters far behind
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


def face_size(face) -> float:
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


def check_face(face, scale: float):
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
