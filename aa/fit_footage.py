"""What the 4DGS fit sees of a clip, checked: pictures, camera, tracks, and crops of face and hands."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from aa.errors import InputError
from aa.media import FPS

CUT_TRACKS = 0.05  # share of tracks that live on across a camera cut, at most
CUT_JUMP = 0.08  # mean difference of neighbouring frames at a cut, at least, and CUT_TIMES the clip's median
CUT_TIMES = 6.0


def crop_camera(K: torch.Tensor, box: tuple[int, int, int, int], size: int) -> torch.Tensor:
    """Intrinsics of the crop (left, top, right, bottom) resampled to size x size: a crop is only another K."""
    left, top, right, bottom = box
    scale = torch.tensor([size / (right - left), size / (bottom - top), 1.0], device=K.device)
    shift = torch.eye(3, device=K.device)
    shift[0, 2], shift[1, 2] = -left, -top
    return torch.diag(scale) @ shift @ K


@dataclass(frozen=True)
class Footage:
    """What the fit sees of a clip: frames (T, H, W, 3) float in [0, 1], K, viewmat, background, tracks and a face box."""

    frames: torch.Tensor
    K: torch.Tensor
    viewmat: torch.Tensor
    background: torch.Tensor  # (H, W, 3) or one colour (3,)
    tracks: torch.Tensor  # (T, P, 2) px
    visible: torch.Tensor  # (T, P) bool
    particle: torch.Tensor  # (P,) which Gaussian each track follows
    face_box: tuple[int, int, int, int] | None = None  # left, top, right, bottom, square
    person: torch.Tensor | None = None  # (T,) bool: frames that show the person; None: all

    @classmethod
    def of(cls, clip, background, face_box=None, device="cpu") -> "Footage":
        """From a `Clip` with camera and tracks and an empty picture of the place, (H, W, 3) in [0, 1] or one colour (3,).

        Without tracks it works as far as pictures alone do, with a warning. Raises: InputError: another frame rate than 25, no
        camera, tracks that belong to no particle, nobody in any frame.
        """
        if abs(clip.fps - FPS) > 0.01:
            raise InputError(
                f"the clip has {clip.fps:g} frames a second: convert it to {FPS} (read_video does so), the rate of all motion."
            )
        if clip.K is None or clip.viewmat is None:
            raise InputError("the clip has no camera: give K and viewmat, or tie it to an avatar with aa.own_video.bind.")
        if clip.tracks is not None and clip.particle is None:
            raise InputError("the clip's tracks belong to no particles: tie them to an avatar with aa.own_video.bind.")
        f = lambda x: torch.as_tensor(np.asarray(x), dtype=torch.float32, device=device)  # noqa: E731
        frames = f(clip.load_frames()) / 255
        if clip.tracks is None:
            warnings.warn("the clip has no tracks: the fit has pictures alone to go by, and depth will be poor.", stacklevel=2)
            tracks = torch.zeros(len(frames), 0, 2), torch.zeros(len(frames), 0, dtype=torch.bool), torch.zeros(0, dtype=torch.long)
        else:
            tracks = f(clip.tracks).transpose(0, 1), torch.as_tensor(clip.visibility).T, torch.as_tensor(clip.particle)
        person = None if clip.mask is None else torch.as_tensor(np.asarray(clip.mask).any((1, 2)), device=device)
        if person is not None and not person.any():
            raise InputError("nobody is in any frame of the clip: give one that shows a person.")
        return cls(frames, f(clip.K), f(clip.viewmat), f(background), *(x.to(device) for x in tracks), face_box, person)

    def shown(self) -> np.ndarray:
        """Frames (n,) that show the person."""
        return np.arange(len(self.frames)) if self.person is None else self.person.nonzero()[:, 0].cpu().numpy()

    def views(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(pictures (T, h, w, 3), K, background (h, w, 3)) of the frame and, if given, of the face box at twice its size."""
        behind = self.background.expand(*self.frames.shape[1:])
        whole = [(self.frames, self.K, behind)]
        if self.face_box is None:
            return whole
        size = 2 * (self.face_box[2] - self.face_box[0])
        large = enlarge(torch.cat([self.frames, behind[None]]), self.face_box, size)
        return [*whole, (large[:-1].contiguous(), crop_camera(self.K, self.face_box, size), large[-1])]

    def cut(self) -> int | None:
        """The first frame of another shot, or None: most tracks end there, if there are any, and the picture jumps."""
        jump = (self.frames[1:] - self.frames[:-1]).abs().mean((1, 2, 3))
        if not len(jump):
            return None
        sudden = (jump > CUT_JUMP) & (jump > CUT_TIMES * jump.median())
        if self.tracks.shape[1]:
            lives = (self.visible[1:] & self.visible[:-1]).sum(1) / self.visible[:-1].sum(1).clamp_min(1)
            ended = (lives < CUT_TRACKS) & (self.visible[:-1].sum(1) > 0)
            sudden = sudden | (ended & (jump > CUT_JUMP / 2))
        if self.person is not None:
            sudden &= self.person[1:] & self.person[:-1]
        return int(sudden.nonzero()[0, 0]) + 1 if sudden.any() else None

    def hand_boxes(self, part: torch.Tensor, side: torch.Tensor) -> np.ndarray:
        """Square boxes (T, 2, 4) px about each hand's visible tracks, nan without. part (N,); side (N,) bool, the left hand."""
        H, W = self.frames.shape[1:3]
        half = round(0.09 * max(H, W))
        out = np.full((len(self.frames), 2, 4), np.nan)
        for k, mine in enumerate((side, ~side)):
            which = (mine & (part == 2))[self.particle]
            for t in self.shown():
                seen = self.tracks[t, which & self.visible[t]]
                if len(seen) >= 4:
                    x, y = (seen.amin(0) + seen.amax(0)).div(2).round().long().tolist()
                    x, y = min(max(x, half), W - half), min(max(y, half), H - half)
                    out[t, k] = x - half, y - half, x + half, y + half
        return out


def enlarge(pictures: torch.Tensor, box, size: int) -> torch.Tensor:
    """A box (left, top, right, bottom) of pictures (B, H, W, 3), resampled to (B, size, size, 3)."""
    left, top, right, bottom = box
    part = pictures[:, top:bottom, left:right].permute(0, 3, 1, 2)
    return nn.functional.interpolate(part, (size, size), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).clamp(0, 1)
