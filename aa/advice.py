"""What would make a photo better: one check after the other, each with the number it measured."""

from dataclasses import dataclass

import cv2
import numpy as np

from aa.detect import Person, detect
from aa.errors import InputError
from aa.quality import BLURRED, COVERED_EYES, DARK, FLAT, GREY

EYES_PX = 60  # px between the pupils of the original, from which a face is sharp in a 768 px video
STRAIGHT = 20  # degrees of turn, nod and tilt that cost nothing
UNEVEN = 15  # difference of lightness L* between the halves of a face
APART = 12  # difference of colour dE between the person and what is behind
OPEN = 0.06  # gap of the lips over the distance of the pupils


@dataclass(frozen=True)
class Advice:
    """One check of a photo."""

    name: str
    ok: bool
    measured: str  # the number, with its unit
    say: str  # what is asked for, and what to do


def check_photo(source) -> list[Advice]:
    """Checks of a photo as `aa.detect.detect` takes it; of one that is refused, the single reason."""
    try:
        return advise(detect(source))
    except InputError as error:
        return [Advice("usable", False, "no", str(error))]


def advise(person: Person) -> list[Advice]:
    """Checks of a photo in which a person was found, the weighty ones first."""
    q, eyes = person.quality, person.eye_distance / max(person.scale, 1)
    lost = [side for side, hand in person.hands.items() if hand is None]
    gap = float(np.linalg.norm(person.face[13] - person.face[14]) / person.eye_distance)
    outside, behind = max(q.cut.values()), background_contrast(person)
    return [
        Advice("size of the face", eyes >= EYES_PX, f"{eyes:.0f} px between the pupils", f"{EYES_PX} or more: come closer."),
        Advice("whole head", outside < 0.05, f"{outside:.0%} of a head outside", "Leave room above the hair."),
        Advice("one person", person.people == 1, f"{person.people} faces", "Cut the others away."),
        Advice("light", q.light >= DARK + 5, f"L* {q.light:.0f} of 100", "Face a window or a lamp."),
        Advice("not burnt", q.burnt < 0.05, f"{q.burnt:.0%} of the face is white", "No flash, no direct sun."),
        Advice("even light", q.uneven < UNEVEN, f"the halves differ by L* {q.uneven:.0f}", "Light from the front, please."),
        Advice("sharpness", q.sharpness > 1.4 * BLURRED, f"{q.sharpness:.2f} of the contrast is fine", "Hold the camera still."),
        Advice("towards the camera", max(abs(q.yaw), abs(q.pitch), abs(q.roll)) < STRAIGHT,
               f"turn {q.yaw:+.0f}, nod {q.pitch:+.0f}, tilt {q.roll:+.0f} degrees", "Look straight into the lens, at eye level."),
        Advice("eyes seen", q.eyes > COVERED_EYES + 0.1, f"{q.eyes:.0%} as light as the face", "No sunglasses, no hair over them."),
        Advice("mouth closed", gap < OPEN, f"lips {gap:.0%} of the eyes' distance apart", "A closed mouth fits best."),
        Advice("hands", not lost, ", ".join(lost) + " not read" if lost else "both read", "Show both hands, open and apart."),
        Advice("background", behind > APART, f"differs by dE {behind:.0f}", "Stand before something of another colour."),
        Advice("a colour photograph", q.colour > GREY and q.flat < FLAT, f"chroma {q.colour:.0f}, {q.flat:.0%} without texture",
               "No black and white, no drawing, no beauty filter."),
    ]  # fmt: skip


def background_contrast(person: Person) -> float:
    """Median difference of colour, dE, between the person just inside the outline and the background just outside it."""
    side = max(person.image.shape[:2])
    shrink = min(1.0, 512 / side)
    image = cv2.resize(person.image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    mask = (cv2.resize(person.mask, image.shape[1::-1], interpolation=cv2.INTER_AREA) > 0.5).astype(np.uint8)
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    near = lambda where: cv2.blur(lab * where[..., None], (13, 13)) / np.maximum(cv2.blur(where, (13, 13)), 1e-3)[..., None]  # noqa: E731
    inner, outer = (cv2.erode(m, np.ones((5, 5), np.uint8)).astype(np.float32) for m in (mask, 1 - mask))
    edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    edge[[0, -1]], edge[:, [0, -1]] = False, False
    edge &= (cv2.blur(inner, (13, 13)) > 0.05) & (cv2.blur(outer, (13, 13)) > 0.05)
    if not edge.any():  # the person fills the picture, or is cut out
        return 100.0
    return float(np.median(np.linalg.norm(near(inner) - near(outer), axis=-1)[edge]))
