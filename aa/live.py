"""Motion while somebody speaks: sound comes in as it is recorded, frames go out at most 0.4 s later (Sec. 3.2, run forwards).

Features need a little sound after a frame (`aa.audio.Ear`), the diffusion model too. Each time a few frames of features have come,
a window is drawn that ends with them; all frames that were shown before are given (out-painting), the last `margin` frames are
drawn again next time. Two draws of a frame differ: body and hands pass gradually from the first to the second, so that no seam
shakes them; the face takes the second, which has heard more. Noise belongs to a frame, not to a window.
"""

import torch
from torch import Tensor

from aa.media import FPS
from aa.motion import GUIDANCE, MotionModel, Sampler
from aa.transfer import Deformation

PAST = 32  # frames of sound before a window that the convolutions look at
JOIN = {"body": 1, "face": 1, "hand": 1}  # a window need not be led away from the one before: it has seen nearly all of it


class Live:
    """Feed `push` with sound of any length; it returns motion of the frames that are final. `finish` returns the last ones.

    Args: step: frames that are drawn at a time; margin: frames behind them that are drawn for the first time; ear: s of sound
        after a frame that its features may use; guidance and sampling steps as in `MotionModel.stream`.
    A frame is returned when sound up to `delay` s behind its end has been pushed.
    """

    def __init__(self, model: MotionModel, seed: int = 0, step: int = 4, margin: int = 4, ear: float = 0.12, guidance=GUIDANCE,
                 steps: int = 6):  # fmt: skip
        from aa.audio import Ear

        self.model, self.step, self.margin = model, step, margin
        self.ear = Ear(model.embedding.config.sound, ahead=ear, hop=step, device=model.device)
        self.sampler = Sampler(model, guidance, steps, JOIN)
        self.generator = torch.Generator().manual_seed(seed)
        c = model.config
        self.start = -c.known  # index of the first frame that is kept; the body has been at rest before frame 0
        self.sound = model.silence(c.known)  # (n, F) features of the frames from `start` on
        self.x = torch.zeros(1, c.known, len(model.scale), device=model.device)  # what has been drawn and shown
        self.next = self.x[:, :0]  # the first draw of what comes behind it
        self.noise = self._noise(c.known)
        latents = model.embedding.config.latents
        self.slow = torch.cat([torch.full((n,), p != "face") for p, n in latents.items()]).to(model.device)

    @property
    def delay(self) -> float:
        """s of sound behind a frame that must have come before it is shown, at most; features come `step` frames at a time."""
        return (self.ear.ahead + self.step - 1 + self.margin + -self.margin % self.step) / FPS

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
        each = [torch.randn(1, 1, len(self.model.scale), generator=self.generator) for _ in range(frames)]  # however it is cut
        return torch.cat([self.sound.new_zeros(1, 0, len(self.model.scale)), *(e.to(self.model.device) for e in each)], 1)

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
        self._pass_over(x[:, shown - first :])
        out = m.finish(x, heard, self.start + first)[0, shown - first : shown - first + new]
        self.x, self.next = torch.cat([self.x, x[:, shown - first :][:, :new]], 1), x[:, end - margin - first :]
        self._forget(shown + new - m.config.window - PAST)
        return out

    def _pass_over(self, x: Tensor) -> None:
        """Lead body and hands of the new frames (1, n, D) from their first draw to this one, in place."""
        n = min(self.next.shape[1], x.shape[1])
        keep = 1 - torch.arange(1, n + 1, device=x.device)[:, None] / (n + 1)  # (n, 1)
        x[:, :n] += torch.where(self.slow, keep, 0) * (self.next[:, :n] - x[:, :n])

    def _forget(self, count: int) -> None:
        """Drop the first frames, which nothing looks at any more."""
        if count > 0:
            self.start += count
            self.sound, self.x, self.noise = self.sound[count:], self.x[:, count:], self.noise[:, count:]
