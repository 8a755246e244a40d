"""Motion while somebody speaks: sound comes in as it is recorded, frames go out at most 0.4 s later (Sec. 3.2, run forwards).

Features need a little sound after a frame (`aa.audio.Ear`), the diffusion model too. Each time a few frames of features have come,
a window is drawn that ends with them; all frames that were shown before are given (out-painting), the last `margin` frames are
drawn again next time. Noise belongs to a frame, not to a window, so that a frame drawn twice comes out alike.
"""

import torch
from torch import Tensor

from aa.media import FPS
from aa.motion import MotionModel, Sampler
from aa.transfer import Deformation

PAST = 32  # frames of sound before a window that the convolutions look at
JOIN = {"body": 5, "face": 1, "hand": 5}  # frames in which a piece leaves the course of the one before: it has seen all of it


class Live:
    """Feed `push` with sound of any length; it returns motion of the frames that are final. `finish` returns the last ones.

    Args: step: frames that are drawn at a time; margin: frames behind them that are drawn and thrown away; ear: s of sound after a
        frame that its features may use; guidance and sampling steps as in `MotionModel.stream`.
    A frame is returned when sound up to `delay` s behind its end has been pushed.
    """

    def __init__(self, model: MotionModel, seed: int = 0, step: int = 2, margin: int = 3, ear: float = 0.16, guidance=1.4,
                 steps: int = 6, join=JOIN):  # fmt: skip
        from aa.audio import Ear

        self.model, self.step, self.margin = model, step, margin
        self.ear, self.sampler = Ear(model.embedding.config.sound, ahead=ear), Sampler(model, guidance, steps, join)
        self.generator = torch.Generator().manual_seed(seed)
        c = model.config
        self.start = -c.known  # index of the first frame that is kept; the body has been at rest before frame 0
        self.sound = model.silence(c.known)  # (n, F) features of the frames from `start` on
        self.x = torch.zeros(1, c.known, len(model.scale), device=model.device)  # what has been drawn and shown
        self.noise = self._noise(c.known)

    @property
    def delay(self) -> float:
        """s of sound behind a frame that must have come before it is shown, at most."""
        return self.ear.delay + (self.step - 1 + self.margin) / FPS

    def push(self, samples) -> Deformation:
        """Sound (n,) float32 at 16 kHz that follows what was pushed before -> dG (T, V, 3) of the frames that are now final."""
        return self._go_on(self.ear.push(samples), self.margin)

    def finish(self) -> Deformation:
        """The frames that waited for what comes next: nothing does."""
        return self._go_on(self.ear.finish(), 0)

    @torch.no_grad()
    def _go_on(self, features, margin: int) -> Deformation:
        self.sound = torch.cat([self.sound, torch.as_tensor(features).to(self.sound)])
        self.noise = torch.cat([self.noise, self._noise(len(self.sound) - self.noise.shape[1])], 1)
        pieces = [self._draw(0, 0)]
        while (ready := len(self.sound) - self.x.shape[1] - margin) >= (self.step if margin else 1):
            pieces.append(self._draw(min(ready, self.step), margin))
        x = torch.cat(pieces)
        return self.model.to_motion(x)

    def _noise(self, frames: int) -> Tensor:
        return torch.randn(1, frames, len(self.model.scale), generator=self.generator).to(self.model.device)

    def _draw(self, new: int, margin: int) -> Tensor:
        """Latents (new, D) of the next frames."""
        if not new:
            return self.x.new_zeros(0, self.x.shape[-1])
        m, shown = self.model, self.x.shape[1]
        end = shown + new + margin
        first = max(0, end - m.config.window)
        hear_from = max(0, first - PAST)
        heard = m.hear(self.sound[None, hear_from:end])[:, first - hear_from :]
        x = self.sampler(self.noise[:, first:end], heard, self.x[:, first:])
        out = m.finish(x, heard, self.start + first)[0, shown - first : shown - first + new]
        self.x = torch.cat([self.x, x[:, shown - first :][:, :new]], 1)
        self._forget(shown + new - m.config.window - PAST)
        return out

    def _forget(self, count: int) -> None:
        """Drop the first frames, which nothing looks at any more."""
        if count > 0:
            self.start += count
            self.sound, self.x, self.noise = self.sound[count:], self.x[:, count:], self.noise[:, count:]
