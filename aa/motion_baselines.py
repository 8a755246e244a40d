"""What the diffusion model has to beat: motion copied from the training clips whose sound, in the shared space, is nearest.

The other baseline, regression by the same network, is a setting: `MotionConfig(regression=True, refine=False)`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from aa.batches import Clips
from aa.motion import MotionModel

PIECE, BLEND = 10, 4  # frames copied in one go, and over which two copies are mixed


class Retrieval:
    """Nearest-neighbour motion: piece by piece, the stretch of training motion whose latents lie nearest to the sound.

    Nearest by the mean cosine of the shared space (Sec. 3.1) over the piece. Made to be judged as a `MotionModel` is.
    """

    @torch.no_grad()
    def __init__(self, model: MotionModel, clips: Clips):
        self.model, self.embedding, self.basis, self.scale = model, model.embedding, model.basis, model.scale
        x = [model.embedding.encoder(c[None])[0] for c in clips.coordinates]
        self.x = torch.cat(x) / model.scale  # (N, D) latents of all clips, one after the other
        self.motion = F.normalize(model.embedding.motion_head(torch.cat(x)), dim=-1)  # (N, S)
        whole = torch.cat([torch.arange(len(c)) < len(c) - PIECE - BLEND for c in x])
        self.begins = whole.nonzero()[:, 0]  # where a piece may begin without running into the next clip

    @torch.no_grad()
    def stream_latents(self, audio, seed: int = 0, frames: int | None = None, **_) -> Iterator[Tensor]:
        """Latents (T, D) for sound; `seed` chooses among the five nearest pieces."""
        m, generator = self.model, torch.Generator().manual_seed(seed)
        sound = (m.features(audio, frames) - m.sound_mean) / m.sound_std
        a = F.normalize(m.embedding.audio_head(m.embedding.audio(sound[None])[0]), dim=-1)  # (T, S)
        T = len(a)
        out, total = (torch.zeros(T + PIECE + BLEND, n) for n in (self.x.shape[1], 1))
        fade = torch.cat([torch.arange(1, BLEND + 1) / BLEND, torch.ones(PIECE - BLEND), torch.arange(BLEND - 1, -1, -1) / BLEND])
        for start in range(0, T, PIECE):
            cosine = a[start : start + PIECE] @ self.motion.T  # (n, N)
            score = sum(row[self.begins + k] for k, row in enumerate(cosine))
            best = score.topk(5).indices[0 if seed == 0 else int(torch.randint(5, (), generator=generator))]
            piece = self.x[self.begins[best] : self.begins[best] + PIECE + BLEND]
            out[start : start + len(piece)] += piece * fade[: len(piece), None]
            total[start : start + len(piece)] += fade[: len(piece), None]
        yield (out / total.clamp_min(1e-6))[:T]
