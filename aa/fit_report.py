"""What a photo fit says of itself: figures against the photo, and the parts that the photo does not show."""

import cv2
import numpy as np
import torch

from aa.align import skin_around_joints
from aa.landmarks import load_landmarks
from aa.view import project


def measure(avatar, body, person) -> dict:
    """Landmark errors in px per 100 px between the pupils, silhouette and picture quality (dB) of the avatar against its photo.

    Against the photo and the mask as they were found, not what the fit made of them (aa.view takes shadows and walls out).
    """
    size = (avatar.width, avatar.height)
    photo = cv2.resize(person.image, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    person_px = cv2.resize(person.mask, size, interpolation=cv2.INTER_AREA) > 0.5
    g = avatar.on_photo()
    behind = avatar.background.float() / 255
    image, alpha, _ = g.render(avatar.viewmat[None], avatar.K[None], avatar.width, avatar.height)
    picture = (image[0] + (1 - alpha[0]) * behind).clamp(0, 1).numpy()
    ours = alpha[0, ..., 0].numpy() > 0.5
    error = ((picture - photo) ** 2).mean(-1)
    scale = np.array(size) / person.image.shape[1::-1]  # sizes are even numbers: not quite the same both ways
    marks = load_landmarks(body)
    keep = marks.reliable.numpy() & (np.arange(478) < 468)
    pixels = project(marks.face(avatar.photo_vertices), avatar.viewmat, avatar.K)[0] / scale
    low, high = (person.face.min(0) * scale).astype(int), (person.face.max(0) * scale).astype(int)
    box = np.zeros_like(person_px)
    box[max(low[1], 0) : high[1], max(low[0], 0) : high[0]] = True
    psnr = lambda where: float(-10 * np.log10(error[where].mean())) if where.any() else 0.0  # noqa: E731
    hands = {}
    for side, skin in skin_around_joints(body, marks).items():
        if person.hands[side] is not None:
            places = project(avatar.photo_vertices[torch.as_tensor(skin[1:]).flatten()], avatar.viewmat, avatar.K)[0]
            gap = places.reshape(20, -1, 2).mean(1) / scale - person.hands[side][0][1:]
            hands[f"{side}_hand_px_after"] = float(np.linalg.norm(gap, axis=1).mean() * 100 / person.eye_distance)
    return hands | {
        "face_px_after": float(np.linalg.norm(pixels - person.face, axis=1)[keep].mean() * 100 / person.eye_distance),
        "mask_iou": float((person_px & ours).sum() / (person_px | ours).sum()),
        "psnr_mask": psnr(person_px), "psnr_face": psnr(box & person_px),
    }  # fmt: skip


def missing(person) -> list[str]:
    """Parts of the body that the photo does not show, or whose pose was not recognised: their shape is a guess."""
    shown = person.pose_visibility > 0.5
    legs = {"legs": shown[[25, 26]].any(), "feet": shown[[27, 28]].any()}
    return [f"{side} hand" for side, found in person.hands.items() if found is None] + [n for n, seen in legs.items() if not seen]


def remarks(person) -> list[str]:
    """Sentences for the user on hands that are in the photo but were not recognised."""
    shown = {side: person.pose_visibility[wrist] > 0.5 for side, wrist in (("left", 15), ("right", 16))}
    lost = [side for side, found in person.hands.items() if found is None and shown[side]]
    return [f"The fingers of the {side} hand were not recognised in the photo: they are posed at rest." for side in lost]
