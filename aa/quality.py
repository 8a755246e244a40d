"""What is wrong with a photo of a face: measured, with a sentence for the user, and refused where no avatar can come of it."""

from dataclasses import dataclass

import cv2
import numpy as np

from aa.errors import InputError
from aa.faces import LEFT_IRIS, RIGHT_IRIS, face_yaw

NORM = 80  # px between the pupils, to which a face is brought before it is measured
OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58,
    132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
EYES = (
    (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
)
FOREHEAD, CHIN, CHEEKS = 10, 152, (234, 454)
NOSE, JAW = (6, 197, 195), (199, 175, 200, 208, 428)
LEFT_CHEEK, RIGHT_CHEEK = (280, 330, 347, 425), (50, 101, 118, 205)

# Limits, between the values of good photos (portraits, real ones) and of the same photos made worse.
DARK, TOO_DARK = 35, 15  # lightness L* of the eyes' whites or the brighter parts of the skin
BURNT, TOO_BURNT = 0.3, 0.7  # share of the face that is pure white
BLURRED = 0.05  # fine contrast over contrast; good photos have 0.1 to 0.2
FLAT = 0.45  # share of the face without any change from pixel to pixel: a drawing
GREY = 3.0  # chroma of the most colourful parts of a photo without colour
COVERED_LIPS, UNLIKE = 4.0, 10.0  # difference of colour between lips and what is around them; between nose and chin
COVERED_EYES = 0.4  # lightness around the eyes over that of the face
MOST_PITCH = 28  # degrees
BROADEST, NARROWEST = 1.2, 0.6  # width of the face over its height


@dataclass(frozen=True)
class Quality:
    """Measures of one face in a photo."""

    light: float  # L* in [0, 100] of the whites of the eyes or the brighter parts of the skin (90th percentile): of any skin
    uneven: float  # difference of L* between the person's two cheeks
    burnt: float  # share of the face that is pure white
    sharpness: float  # fine contrast over contrast
    flat: float  # share of the face without any texture
    colour: float  # chroma of the most colourful parts of the photo
    lips: float  # difference of colour between lips and skin, dE
    unlike: float  # difference of chroma between nose and chin
    eyes: float  # lightness around the eyes over that of the face
    shape: float  # width over height, straightened
    pitch: float  # degrees, + looking up
    roll: float  # degrees, + clockwise in the picture
    yaw: float  # degrees, + to the person's left
    cut: dict  # "forehead", "chin", "side": how far that lies outside the photo, in heights of the face; and "hair"


def face_quality(image: np.ndarray, face: np.ndarray) -> Quality:
    """Measures of the face with landmarks (478, 3) in image (H, W, 3) uint8."""
    height = np.linalg.norm(face[FOREHEAD, :2] - face[CHIN, :2])
    across = face[LEFT_IRIS, :2] - face[RIGHT_IRIS, :2]
    scale = NORM / np.linalg.norm(across)
    low, high = face[:, :2].min(0) - 0.15 * height, face[:, :2].max(0) + 0.15 * height
    x0, y0 = np.maximum(low, 0).astype(int)
    x1, y1 = np.minimum(high, image.shape[1::-1]).astype(int)
    crop, marks = image[y0:y1, x0:x1], face[:, :2] - (x0, y0)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = cv2.resize(crop, (max(2, round(scale * (x1 - x0))), max(2, round(scale * (y1 - y0)))), interpolation=how)
    yaw = face_yaw(face)
    width = np.linalg.norm(face[CHEEKS[1], :2] - face[CHEEKS[0], :2]) / max(np.cos(np.radians(yaw)), 0.5)
    flatness = cv2.dilate(crop, np.ones((3, 3), np.uint8)) - cv2.erode(crop, np.ones((3, 3), np.uint8))
    inside = _hull(crop.shape, marks[list(OVAL)])
    colours = cv2.cvtColor(cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return Quality(
        **_light(small, marks * scale),
        flat=float((flatness.max(-1)[inside] < 1).mean()) if inside.any() else 0.0,
        colour=float(np.percentile(np.hypot(colours[..., 1], colours[..., 2]), 98)),
        shape=float(width / height),
        pitch=float(np.degrees(np.arctan2(face[FOREHEAD, 2] - face[CHIN, 2], height))),
        roll=float(np.degrees(np.arctan2(across[1], across[0]))),
        yaw=yaw,
        cut=_cut(face[:, :2], image.shape),
    )


def _light(image, marks) -> dict:
    """Measures of lightness and colour on a face of normal size with landmarks (478, 2)."""
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light, face = lab[..., 0], _hull(image.shape, marks[list(OVAL)])
    eyes = _hull(image.shape, marks[list(EYES[0])]) | _hull(image.shape, marks[list(EYES[1])])
    orbits, lips = _grown(eyes, 21), _hull(image.shape, marks[list(LIPS)])
    around = _grown(lips, 15) & ~_grown(lips, 5)
    core = cv2.erode(face.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    if min(core.sum(), lips.sum(), around.sum(), orbits.sum()) < 9:  # hardly any of it is in the photo
        return {"light": 0.0, "uneven": 0.0, "burnt": 0.0, "sharpness": 0.0, "lips": 0.0, "unlike": 0.0, "eyes": 1.0}
    nose, jaw, left, right = (_colour_at(lab, marks[list(ids)]) for ids in (NOSE, JAW, LEFT_CHEEK, RIGHT_CHEEK))
    return {
        "light": float(max(np.percentile(light[face], 90), np.percentile(light[eyes], 90) if eyes.any() else 0)),
        "uneven": float(abs(left[0] - right[0])),
        "burnt": float((image[face].min(1) >= 250).mean()),
        "sharpness": sharpness(light, core),
        "lips": float(np.linalg.norm(np.median(lab[lips], 0) - np.median(lab[around], 0))),
        "unlike": float(np.linalg.norm((nose - jaw)[1:])),
        "eyes": float(np.median(light[orbits]) / max(1.0, np.median(light[face & ~orbits]))),
    }


def sharpness(light, where) -> float:
    """Fine contrast over contrast of lightness (H, W) in a mask: the spread of the Laplacian over that of the picture."""
    fine = cv2.Laplacian(cv2.GaussianBlur(light, (0, 0), 0.8), cv2.CV_32F)
    return float(fine[where].std() / (light[where].std() + 1))


def _hull(shape, points) -> np.ndarray:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(points.round().astype(np.int32)), 1)
    return mask > 0


def _grown(mask, side: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) > 0


def _colour_at(lab, points) -> np.ndarray:
    """Median colour (3,) about points (n, 2)."""
    patches = [cv2.getRectSubPix(lab, (5, 5), (float(x), float(y))).reshape(-1, 3).mean(0) for x, y in points]
    return np.median(patches, 0)


def _cut(face, shape) -> dict:
    """How far parts of the head lie outside the photo, in heights of the face."""
    up = face[FOREHEAD] - face[CHIN]
    outside = lambda p: float(max((-p).max(), (p - shape[1::-1]).max(), 0.0) / np.linalg.norm(up))  # noqa: E731
    return {
        "forehead": outside(face[FOREHEAD]), "chin": outside(face[CHIN]),
        "side": max(outside(face[c]) for c in CHEEKS), "hair": outside(face[FOREHEAD] + 0.25 * up),
    }  # fmt: skip


def refuse(q: Quality) -> None:
    """Raise InputError for a face of which no avatar can come."""
    for part, most in (("forehead", 0.12), ("chin", 0.03), ("side", 0.12)):
        if q.cut[part] > most:
            name = {"side": "side of the face"}.get(part, part)
            raise InputError(f"The head is cut off by the edge of the photo (the {name}): give one that shows the whole head.")
    if q.light < TOO_DARK:
        raise InputError(f"The face is too dark (lightness {q.light:.0f} of 100): give a photo with light on the face.")
    if q.burnt > TOO_BURNT:
        raise InputError(f"{q.burnt:.0%} of the face is pure white: give a photo that is not overexposed, or no line drawing.")
    if not NARROWEST < q.shape < BROADEST:
        how = "broad" if q.shape > 1 else "narrow"
        raise InputError(f"The face is {how} as in a stretched photo: give it in its own proportions, of a real face.")
    if q.lips < COVERED_LIPS or (q.lips < 2 * COVERED_LIPS and q.unlike > UNLIKE):
        raise InputError("The mouth seems to be covered, by a mask or a hand: give a photo that shows the whole face.")


def complaints(q: Quality) -> dict[str, str]:
    """Sentences about what will look worse than it could, by subject; empty for a good photo."""
    found = {
        "top": (q.cut["hair"] > 0.05, "The top of the head is cut off: hair there is a guess."),
        "dark": (q.light < DARK, f"The face is dark (lightness {q.light:.0f} of 100): the avatar will be dark and noisy as well."),
        "burnt": (q.burnt > BURNT, f"{q.burnt:.0%} of the face is overexposed and has lost its detail."),
        "blurred": (q.sharpness < BLURRED and q.light >= TOO_DARK, "The face is blurred: the avatar will be as well."),
        "grey": (q.colour < GREY, "The photo has no colour: neither will the avatar."),
        "drawing": (
            q.flat > FLAT and q.burnt < BURNT and q.light > DARK,
            "The face is drawn or heavily retouched: the fit is made for photographs and may miss its proportions.",
        ),
        "eyes": (q.eyes < COVERED_EYES, "The eyes seem to be covered, by sunglasses or shadow: these stay as paint on the lids."),
        "pitch": (
            abs(q.pitch) > MOST_PITCH,
            f"The head is {'raised' if q.pitch > 0 else 'bowed'} by about {abs(q.pitch):.0f} degrees: what that hides is a guess.",
        ),
    }  # fmt: skip
    return {name: sentence for name, (bad, sentence) in found.items() if bad}
