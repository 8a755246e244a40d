"""A user's own talking video as a `Clip` (3.3): 25 fps, one take, one person's mask, face landmarks, and tracks by optical flow.

Whatever the video's rate, rotation and size, frames come upright at 25 fps (`aa.media.iter_video`), on request cropped to
the person. Of a video with camera cuts the longest take is used. Frames without a person, or with the face turned away,
have an empty mask or no landmarks (nan); `seeds["notices"]` says so in words. Tracks (`aa.flow`) belong to no particle; `bind` ties
them to an avatar that was fitted to one of the frames (`aa.own_fit` finds an avatar in all frames instead).
"""

import contextlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from aa.clips import Clip
from aa.errors import InputError
from aa.faces import EYE_DISTANCE, LEFT_IRIS, RIGHT_IRIS, face_yaw, find_faces, refine_face
from aa.flow import fill, flow_tracks
from aa.mask import guided_filter
from aa.media import FPS, SAMPLE_RATE, iter_video, load_audio
from aa.models import Models, quiet

__all__ = ["bind", "clean_background", "clip_from_video", "fill", "flow_tracks"]

SHORTEST = 0.5  # s
LOOKS = 5  # frames in which people are counted
GLANCE = 192  # px, longer side of the pictures in which cuts and the person's place are looked for
CUT, CUT_RATIO = 0.09, 5.0  # mean change of grey between frames that is a cut, and how many times the usual change nearby
ROOM = 0.75  # share of the picture's area: a person who stays within less is cropped to
TURNED = 60  # degrees: landmarks of faces turned further are guesses
SEARCH = 5  # frames between searches for a face that was lost
LEAST_PERSON = 0.004  # share of the picture: smaller masks are nobody


def clip_from_video(
    path, longest: int = 640, spacing: float | None = None, max_seconds: float | None = 20.0, progress: bool = True,
    tracks: bool = True, crop: bool = False,
) -> Clip:  # fmt: skip
    """Read a video of one talking person.

    Args: longest: side in px that larger pictures are reduced to; spacing of the tracks in px, by default 1/64 of the longer
        side; max_seconds: read no more than that (None: all; memory grows with it); tracks: follow points by optical flow (most
        of the time); crop: to where the person is, if that is less than 3/4 of the picture.
    Returns: `Clip` with frames, mask, landmarks, tracks, visibility and audio; source "own"; `particle`, K and viewmat are None.
        seeds: file, notices (sentences), start (s, of the take in the file), box (left, top, right, bottom; shares of the picture).
    Raises: InputError: not a video, damaged, without sound, shorter than half a second, nobody or several people in it.
    """
    from tqdm.auto import tqdm

    path, notices = Path(path), []
    with tqdm(total=4, desc="video: read", disable=not progress, bar_format="{desc}: {bar:20} {elapsed}") as bar, quiet():
        small = read_frames(path, GLANCE, max_seconds)
        take = longest_take(small, path, notices)
        box = person_box(small[take]) if crop else None
        frames = read_frames(path, longest, max_seconds, box)[take]
        sound = load_audio(path)[round(take.start / FPS * SAMPLE_RATE) :]
        audio = _lasting(sound, len(frames))
        bar.update(), bar.set_description("video: people")
        count_people(frames, path)
        bar.update(), bar.set_description("video: mask and face")
        mask, landmarks = segment(frames)
        notices += _missing(mask, landmarks)
        bar.update(), bar.set_description("video: tracks")
        found = dict(zip(("tracks", "visibility"), flow_tracks(frames, mask, spacing))) if tracks else {}
        bar.update()
    seeds = {"file": path.name, "notices": notices, "start": take.start / FPS, "box": box}
    return Clip(frames, mask=mask, landmarks=landmarks, audio=audio, source="own", seeds=seeds, **found)


def read_frames(path, longest: int, max_seconds: float | None = None, box=None) -> np.ndarray:
    """(T, H, W, 3) uint8 at 25 fps, upright, with even sides of at most `longest` px; box: shares of the picture to crop to."""
    frames, size = [], None
    for frame, _ in iter_video(path, FPS):
        if box is not None:
            h, w = frame.shape[:2]
            frame = frame[int(box[1] * h) : int(np.ceil(box[3] * h)), int(box[0] * w) : int(np.ceil(box[2] * w))]
        if size is None:
            scale = min(1.0, longest / max(frame.shape[:2]))
            size = [max(2, round(n * scale / 2) * 2) for n in frame.shape[1::-1]]
        if frame.shape[1::-1] != tuple(size):
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        frames.append(frame)
        if max_seconds is not None and len(frames) >= round(max_seconds * FPS):
            break
    if not frames:
        raise InputError(f"no picture could be read from {path}: the file may be damaged; give an mp4, mov or webm video.")
    if len(frames) < SHORTEST * FPS:
        raise InputError(f"{path} lasts {len(frames) / FPS:.2f} s, which is too short: give {SHORTEST} s or more.")
    return np.stack(frames)


def find_cuts(frames: np.ndarray) -> list[int]:
    """First frames of the takes after the first one, in small frames (T, H, W, 3) uint8.

    A cut changes the whole picture within one frame, far more than any movement before and after it.
    """
    tiny = np.stack([cv2.resize(f, (24, 24), interpolation=cv2.INTER_AREA) for f in frames]).astype(np.float32).mean(-1) / 255
    change = np.abs(np.diff(tiny, axis=0)).mean((1, 2))
    cuts = []
    for t in np.flatnonzero(change > CUT):
        usual = np.delete(change[max(0, t - 12) : t + 13], min(t, 12))
        if not len(usual) or change[t] > CUT_RATIO * np.median(usual):
            cuts.append(int(t) + 1)
    return cuts


def longest_take(frames: np.ndarray, path, notices: list[str]) -> slice:
    """The frames of the longest take, with a sentence about it if there is more than one."""
    cuts = find_cuts(frames)
    if not cuts:
        return slice(0, len(frames))
    ends = [0, *cuts, len(frames)]
    k = int(np.argmax(np.diff(ends)))
    take = slice(ends[k], ends[k + 1])
    when = ", ".join(f"{c / FPS:.2f}" for c in cuts)
    if take.stop - take.start < SHORTEST * FPS:
        raise InputError(f"{path} cuts at {when} s, and no take lasts {SHORTEST} s: give a video filmed in one go.")
    notices.append(f"The video cuts at {when} s: the longest take is used, {take.start / FPS:.2f} to {take.stop / FPS:.2f} s.")
    return take


def person_box(frames: np.ndarray) -> tuple[float, float, float, float] | None:
    """Where the person is in all of a take, as shares of the picture with some room; None if that is most of the picture."""
    import mediapipe as mp

    T, H, W, _ = frames.shape
    low, high = np.ones(2), np.zeros(2)
    with mp.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0) as selfie:
        for t in range(0, T, 3):
            y, x = np.nonzero(_largest(_person(selfie, frames[t], (0, 0, W, H)) > 0.5))
            if len(x) > LEAST_PERSON * H * W:
                low = np.minimum(low, np.percentile([x / W, y / H], 0.5, axis=1))
                high = np.maximum(high, np.percentile([(x + 1) / W, (y + 1) / H], 99.5, axis=1))
    room = 0.15 * (high - low)
    low, high = (low - room).clip(0, 1), (high + room).clip(0, 1)
    if (high <= low).any() or np.prod(high - low) > ROOM:
        return None
    return tuple(round(float(v), 4) for v in (*low, *high))


def _lasting(sound: np.ndarray, frames: int) -> np.ndarray:
    """(n,) sound that lasts as long as the frames: cut, or padded with silence."""
    n = round(frames / FPS * SAMPLE_RATE)
    return np.pad(sound[:n], (0, max(0, n - len(sound))))


def count_people(frames: np.ndarray, path) -> None:
    """InputError unless most of a few frames show one person whose face can be seen."""
    import mediapipe as mp

    faces, several = [], 0
    with contextlib.ExitStack() as stack:
        models = Models(mp.solutions, stack)
        for t in np.linspace(0, len(frames) - 1, LOOKS).round().astype(int):
            found = [f for f, _ in find_faces(models, frames[t])[0]]
            faces.extend(found[:1])
            several += len(found) > 1 and np.ptp(found[1][:, 1]) > 0.5 * np.ptp(found[0][:, 1])
    if len(faces) < LOOKS / 3:
        raise InputError(f"no person was found in {path}: give a video of one person whose face is well visible.")
    if several >= LOOKS / 2:
        raise InputError(f"several people are in {path}: give a video of one person, or crop it to one.")
    eyes = np.median([np.linalg.norm(f[LEFT_IRIS, :2] - f[RIGHT_IRIS, :2]) for f in faces])
    if eyes < EYE_DISTANCE / 2:
        raise InputError(f"the face in {path} is too small, {eyes:.0f} pixels between the eyes: crop the video around the person.")


def segment(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mask (T, H, W) bool of the person and face landmarks (T, 478, 2) px, nan where no face was found."""
    import mediapipe as mp

    T, H, W, _ = frames.shape
    radius = max(2, round(max(H, W) / 160))
    box = (0, 0, W, H)
    mask, marks, last, face = np.empty((T, H, W), bool), np.full((T, 478, 2), np.nan, np.float32), None, None
    with contextlib.ExitStack() as stack:
        selfie = stack.enter_context(mp.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0))
        models = Models(mp.solutions, stack)
        for t, frame in enumerate(frames):
            coarse = _person(selfie, frame, box)
            if t == 0:  # once more, closer
                coarse = _person(selfie, frame, _around(coarse > 0.5))
            last = coarse if last is None else 0.6 * coarse + 0.4 * last  # the model judges every frame by itself
            mask[t] = _largest(guided_filter(frame, last, radius, 1e-3) > 0.5)
            mask[t] &= mask[t].mean() > LEAST_PERSON
            box = _around(mask[t])
            face = next_face(models, frame, face, t)
            if face is not None and abs(face_yaw(face)) < TURNED:
                marks[t] = face[:, :2]
    return mask, marks


def next_face(models, frame: np.ndarray, last: np.ndarray | None, t: int) -> np.ndarray | None:
    """Face landmarks (478, 3) px near the last ones, or found anew; on crops, so that small faces are found as well."""
    if last is not None:
        size = max(np.ptp(last[:, 0]), np.ptp(last[:, 1]))
        face = refine_face(models, frame, last[:, :2].mean(0), size)
        if face is not None:
            return face
    if last is None and t % SEARCH:
        return None
    found = find_faces(models, frame)[0]
    return found[0][0] if found else None


def _missing(mask: np.ndarray, landmarks: np.ndarray) -> list[str]:
    """Sentences about frames that show no person or no face."""
    nobody, faceless = ~mask.any((1, 2)), ~np.isfinite(landmarks[:, 0, 0])
    said = []
    if nobody.any():
        said.append(f"{nobody.sum()} of {len(mask)} frames show nobody: they are left out.")
    if (faceless & ~nobody).any():
        said.append(f"In {(faceless & ~nobody).sum()} of {len(mask)} frames no face is seen, or it is turned away.")
    return said


def _person(selfie, frame: np.ndarray, box) -> np.ndarray:
    """Probability (H, W) of a person, looked for in a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    small = cv2.resize(frame[top:bottom, left:right], (256, 256), interpolation=cv2.INTER_AREA)
    out = np.zeros(frame.shape[:2], np.float32)
    found = selfie.process(small).segmentation_mask
    out[top:bottom, left:right] = cv2.resize(found, (right - left, bottom - top), interpolation=cv2.INTER_CUBIC)
    return out


def _around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """A box (left, top, right, bottom) about a mask (H, W), a fifth wider on every side for what moves; all when it is empty."""
    H, W = mask.shape
    if not mask.any():
        return 0, 0, W, H
    (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0))
    dx, dy = 0.2 * (right - left) + 8, 0.2 * (bottom - top) + 8
    return max(0, int(left - dx)), max(0, int(top - dy)), min(W, int(right + dx)), min(H, int(bottom + dy))


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected region of a mask (H, W), without holes below 0.1% of the picture."""
    count, label, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return mask
    mask = label == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    count, label, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8))
    return mask | np.isin(label, 1 + np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] < 0.001 * mask.size))


def bind(clip: Clip, means, viewmat, K, frame: int = 0, reach: float = 2.0) -> Clip:
    """Tie the tracks of footage to the particles of an avatar that was fitted to one of its frames, as `aa.deformation` needs it.

    Args: means (N, 3) m, viewmat (4, 4) and K (3, 3) in px of the clip's pictures: the avatar as it stands in that frame; reach:
        px between a track and its particle. A track follows the foremost particle near it, and is shifted by what they are
        apart; tracks that the frame does not show are left out.
    Returns: the clip with particle, K and viewmat. Raises: InputError when nothing fits together.
    """
    from scipy.spatial import cKDTree

    means, viewmat, K = (np.asarray(x, np.float64) for x in (means, viewmat, K))
    local = means @ viewmat[:3, :3].T + viewmat[:3, 3]
    front = np.flatnonzero(local[:, 2] > 1e-3)
    place = np.full((len(means), 2), np.inf)
    place[front] = (local[front] @ K.T)[:, :2] / local[front, 2:]
    tree = cKDTree(place[front])
    rows, particle = [], []
    for p in np.flatnonzero(clip.visibility[:, frame]):
        near = front[tree.query_ball_point(clip.tracks[p, frame], reach)]
        if len(near):
            near = near[local[near, 2] < local[near, 2].min() + 0.02]  # m: what lies behind is hidden
            rows.append(p)
            particle.append(near[np.linalg.norm(place[near] - clip.tracks[p, frame], axis=1).argmin()])
    if not rows:
        raise InputError("no track lies on the avatar: give the camera and the posture that the avatar has in that frame.")
    particle, first = np.unique(particle, return_index=True)
    rows = np.array(rows)[first]
    shift = place[particle] - clip.tracks[rows, frame]
    return replace(
        clip, tracks=(clip.tracks[rows] + shift[:, None]).astype(np.float32), visibility=clip.visibility[rows],
        particle=particle, K=K.astype(np.float32), viewmat=viewmat.astype(np.float32),
    )  # fmt: skip


def clean_background(clip: Clip) -> np.ndarray:
    """What is behind the person, (H, W, 3) float32 in [0, 1]: the median over the frames that show it, filled in elsewhere."""
    grow = np.ones((7, 7), np.uint8)
    frames = clip.load_frames()
    step = max(1, len(frames) // 50)
    hidden = np.stack([cv2.dilate(m.astype(np.uint8), grow) > 0 for m in clip.mask[::step]])
    seen = np.where(hidden[..., None], np.nan, frames[::step].astype(np.float32))
    never = hidden.all(0)
    seen[:, never] = 0
    plate = np.nanmedian(seen, 0).astype(np.uint8)
    return cv2.inpaint(plate, never.astype(np.uint8), 5, cv2.INPAINT_TELEA).astype(np.float32) / 255
