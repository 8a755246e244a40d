"""A user's own talking video as a `Clip` (3.3): 25 fps, one person's mask, face landmarks, and tracks by dense optical flow.

Flow (OpenCV's DIS, Kroeger et al. 2016) gives where each pixel goes in the next frame; chained from frame to frame it gives tracks.
A track ends where flow there and back disagree, and new ones are started where the person is left without: what is hidden is never
guessed. Such tracks belong to no particle; `bind` ties them to an avatar that was fitted to one of the frames.
"""

import contextlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from aa.clips import Clip
from aa.detect import EYE_DISTANCE, LEFT_IRIS, RIGHT_IRIS, _Models, _quiet, find_faces
from aa.errors import InputError
from aa.mask import guided_filter
from aa.media import FPS, SAMPLE_RATE, iter_video, load_audio

SHORTEST = 0.5  # s
LOOKS = 4  # frames in which people are counted
APART = 0.75  # px + 5% of the step: there-and-back error at which a track ends
RESEED = 5  # frames between looks for places without a track
LEAST_LIFE = 6  # frames: shorter tracks say little


def clip_from_video(
    path, longest: int = 640, spacing: float | None = None, max_seconds: float | None = 20.0, progress: bool = True
) -> Clip:
    """Read a video of one talking person.

    Args: longest: side in px that larger pictures are reduced to; spacing of the tracks in px, by default 1/64 of the longer
        side; max_seconds: read no more than that (None: all; memory grows with it).
    Returns: `Clip` with frames, mask, landmarks, tracks, visibility and audio; source "own"; `particle`, K and viewmat are None.
    Raises: InputError: not a video, damaged, without sound, shorter than half a second, nobody or several people in it.
    """
    from tqdm.auto import tqdm

    path = Path(path)
    frames = read_frames(path, longest, max_seconds)
    audio = _sound(path, len(frames))
    with tqdm(total=3, desc="video: people", disable=not progress, bar_format="{desc}: {bar:20} {elapsed}") as bar, _quiet():
        count_people(frames, path)
        bar.update(), bar.set_description("video: mask and face")
        mask, landmarks = segment(frames)
        bar.update(), bar.set_description("video: tracks")
        tracks, visibility = flow_tracks(frames, mask, spacing)
        bar.update()
    return Clip(
        frames, mask=mask, landmarks=landmarks, tracks=tracks, visibility=visibility, audio=audio, source="own",
        seeds={"file": path.name},
    )  # fmt: skip


def read_frames(path, longest: int, max_seconds: float | None = None) -> np.ndarray:
    """(T, H, W, 3) uint8 at 25 fps, upright, with even sides of at most `longest` px."""
    frames, size = [], None
    for frame, _ in iter_video(path, FPS):
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


def _sound(path, frames: int) -> np.ndarray:
    """(n,) sound that lasts as long as the frames: cut, or padded with silence."""
    sound, n = load_audio(path), round(frames / FPS * SAMPLE_RATE)
    return np.pad(sound[:n], (0, max(0, n - len(sound))))


def count_people(frames: np.ndarray, path) -> None:
    """InputError unless most of a few frames show one person whose face can be seen."""
    import mediapipe as mp

    faces, several = [], 0
    with contextlib.ExitStack() as stack:
        models = _Models(mp.solutions, stack)
        for t in np.linspace(0, len(frames) - 1, LOOKS).round().astype(int):
            found = [f for f, _ in find_faces(models, frames[t])[0]]
            faces.extend(found[:1])
            several += len(found) > 1 and np.ptp(found[1][:, 1]) > 0.5 * np.ptp(found[0][:, 1])
    if len(faces) < LOOKS / 2:
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
    mask, marks, last = np.empty((T, H, W), bool), np.full((T, 478, 2), np.nan, np.float32), None
    with (
        mp.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0) as selfie,
        mp.solutions.face_mesh.FaceMesh(max_num_faces=1, refine_landmarks=True) as mesh,
    ):
        for t, frame in enumerate(frames):
            coarse = _person(selfie, frame, box)
            if t == 0:  # once more, closer
                coarse = _person(selfie, frame, _around(coarse > 0.5))
            last = coarse if last is None else 0.6 * coarse + 0.4 * last  # the model judges every frame by itself
            mask[t] = _largest(guided_filter(frame, last, radius, 1e-3) > 0.5)
            box = _around(mask[t])
            found = mesh.process(frame).multi_face_landmarks
            if found:
                marks[t] = [(p.x * W, p.y * H) for p in found[0].landmark]
    return mask, marks


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


# ---------------------------------------------------------------- tracks


def flow_tracks(frames, mask, spacing: float | None = None, points=None) -> tuple[np.ndarray, np.ndarray]:
    """Follow points of the person through (T, H, W, 3) uint8 frames.

    Args: mask (T, H, W) bool; spacing of the tracks in px; points (P, 2) px of frame 0 to follow instead of a grid: no track is
        then added or dropped.
    Returns: tracks (P, T, 2) px, held where they are not visible, and visibility (P, T): from start to end of each track.
    """
    T, H, W, _ = frames.shape
    spacing = spacing or max(4.0, max(H, W) / 64)
    inner = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    inside = [cv2.erode(m.astype(np.uint8), inner) > 0 for m in mask]  # flow smears over the outline
    fixed = points is not None
    x = np.asarray(points, np.float32) if fixed else fill(inside[0], np.zeros((0, 2), np.float32), spacing)
    alive, flow = np.ones(len(x), bool), _Flow()
    places, seen = [x], [alive]
    for t in range(1, T):
        x, alive = places[-1].copy(), seen[-1].copy()
        at = np.flatnonzero(alive)
        x[at], good = flow.step(frames[t - 1], frames[t], x[at])
        good &= _pick(inside[t] if not fixed else mask[t], x[at])
        alive[at] = good
        if not fixed and t % RESEED == 0 and t < T - LEAST_LIFE:
            new = fill(inside[t], x[alive], spacing)
            x, alive = np.concatenate([x, new]), np.concatenate([alive, np.ones(len(new), bool)])
        places.append(x), seen.append(alive)
    return _stack(places, seen, 0 if fixed else min(LEAST_LIFE, T))


def _stack(places: list, seen: list, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Growing lists of places (p_t, 2) and flags (p_t,) -> (P, T, 2) and (P, T), without tracks seen in fewer frames than that."""
    P, T = len(places[-1]), len(places)
    tracks, visible = np.zeros((P, T, 2), np.float32), np.zeros((P, T), bool)
    for t, (x, a) in enumerate(zip(places, seen)):
        tracks[: len(x), t], visible[: len(x), t] = x, a
    first = visible.argmax(1)
    before = np.arange(T) < first[:, None]
    tracks = np.where(before[..., None], tracks[np.arange(P), first][:, None], tracks)
    keep = visible.sum(1) >= least
    return tracks[keep], visible[keep]


class _Flow:
    """Dense flow between neighbouring frames, there and back."""

    def __init__(self):
        self.dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.dis.setFinestScale(0)  # full resolution: 1 is four times as fast and drifts four times as much
        self.dis.setUseSpatialPropagation(True)

    def step(self, a: np.ndarray, b: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points x (P, 2) of frame a are in frame b, and whether the way back agrees (P,)."""
        if not len(x):
            return x, np.zeros(0, bool)
        grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (a, b)]
        there = _sample(self.dis.calc(grey[0], grey[1], None), x)
        y = x + there
        error = np.linalg.norm(there + _sample(self.dis.calc(grey[1], grey[0], None), y), axis=1)
        return y, error < APART + 0.05 * np.linalg.norm(there, axis=1)


def _sample(field: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear values (P, C) of a field (H, W, C) at x (P, 2) px, pixel centres at +0.5."""
    at = (x - 0.5).astype(np.float32)
    return cv2.remap(field, at[:, None, 0], at[:, None, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]


def _pick(mask: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Values (P,) of a mask (H, W) at x (P, 2); False outside the picture."""
    i = np.floor(x).astype(int)
    ok = (i >= 0).all(1) & (i[:, 0] < mask.shape[1]) & (i[:, 1] < mask.shape[0])
    ok[ok] = mask[i[ok, 1], i[ok, 0]]
    return ok


def fill(mask: np.ndarray, taken: np.ndarray, spacing: float) -> np.ndarray:
    """Points (n, 2) of a grid inside a mask (H, W) that have none of the points taken (m, 2) within 3/4 of the spacing."""
    H, W = mask.shape
    y, x = np.meshgrid(np.arange(spacing / 2, H, spacing), np.arange(spacing / 2, W, spacing), indexing="ij")
    grid = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)
    grid = grid[_pick(mask, grid)]
    if len(taken) and len(grid):
        from scipy.spatial import cKDTree

        grid = grid[cKDTree(taken).query(grid)[0] > 0.75 * spacing]
    return grid


# ---------------------------------------------------------------- into the fit


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
