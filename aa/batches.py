"""Training clips as a source of batches: windows that begin at rest, one take of the sound, features disturbed on the way."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aa.audio import PROSODY, features
from aa.dit import MotionConfig
from aa.media import SAMPLE_RATE
from aa.parts import PARTS

RAMP = {"body": 15, "face": 4, "hand": 15}  # frames in which a clip leaves the rest it is joined to
DEAF = 0.5  # share of windows whose prosody is hidden: lips must not lean on loudness, real mouths do not


class Clips:
    """Clips as one batch source: each begins with `known` frames at rest and silent, as generation does.

    Args: clips of `aa.motion_data.make_clips`; sizes of the basis; kind of the sound features.
    """

    def __init__(self, clips: list[dict], sizes: dict[str, int], config: MotionConfig, kind: str = "phones"):
        self.window = config.window
        self.rest = torch.from_numpy(features(np.zeros(SAMPLE_RATE, np.float32), kind=kind)[12])  # (F,) digital silence
        self.coordinates, self.features, self.silent = [], [], []
        for clip in clips:
            c = clip["coordinates"].clone()
            for part, at in zip(PARTS, c.split(list(sizes.values()), -1)):
                n = min(RAMP[part], len(at))
                at[:n] *= torch.linspace(0, 1, n + 1)[1:, None].pow(2)
            short = max(0, self.window - config.known - len(c))
            heard = clip["features"].float()  # (takes, T, F)
            before, after = (self.rest.expand(len(heard), n, -1) for n in (config.known, short))
            self.coordinates.append(F.pad(c, (0, 0, config.known, short)))
            self.features.append(torch.cat([before, heard, after], 1))
            self.silent.append(F.pad(clip["silent"], (config.known, short), value=True))
        everything = torch.cat([f.flatten(0, 1) for f in self.features])
        self.mean = everything.mean(0)  # (F,)
        self.std = everything.std(0).clamp_min(0.1)  # columns that hardly vary are not blown up

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates (B, W, K), features (B, W, F) of a random take, silent (B, W) of random windows."""
        out = []
        for n in rng.integers(len(self.coordinates), size=size):
            start = int(rng.integers(-self.window // 4, len(self.coordinates[n]) - self.window + 1))
            at = slice(max(start, 0), max(start, 0) + self.window)  # beginnings are drawn more often
            take = int(rng.integers(len(self.features[n])))
            out.append((self.coordinates[n][at], self.disturbed(self.features[n][take, at], rng), self.silent[n][at]))
        return tuple(torch.stack(x) for x in zip(*out))

    def disturbed(self, f: Tensor, rng: np.random.Generator) -> Tensor:
        """Features (T, F), a little less sure of themselves: columns scaled and shaken, some moments lost, prosody often hidden.

        Cheap augmentation on top of `aa.augment`, which works on the sound: without it, clips are learned by heart.
        """
        away = f - self.rest  # silence stays silence
        away = away * torch.from_numpy(rng.uniform(0.7, 1.2, f.shape[1]).astype(np.float32))
        away = away * (1 + 0.15 * torch.from_numpy(rng.standard_normal(f.shape).astype(np.float32)))
        for _ in range(2):
            at = int(rng.integers(len(f)))
            away[at : at + int(rng.integers(3))] *= float(rng.uniform(0, 1))
        out = self.rest + away
        if rng.random() < DEAF:
            out[:, -PROSODY:] = self.mean[-PROSODY:]
        return out
