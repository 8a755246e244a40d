"""Sound to particle motion by diffusion (Sec. 3.2, Eq. 1): embedding, diffusion Transformer, refiner and sampling.

The diffusion Transformer sees [X^tau, A] with FiLM on tau and predicts the clean X^0. Frames that are already known (the end of the
previous window) enter clean and marked, so that long recordings are continued window by window at constant memory.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from aa.body import ASSETS
from aa.dit import JOIN, FiLM, MotionConfig, MotionDiT, Refiner, continued, noise_scheduler, steady, time_embedding
from aa.embedding import Embedding, EmbeddingConfig
from aa.errors import InputError
from aa.parts import Basis
from aa.transfer import Deformation

__all__ = ["FiLM", "MotionConfig", "MotionDiT", "MotionModel", "Refiner", "Sampler", "noise_scheduler", "time_embedding"]

# Few steps and the mean that x0-prediction learns make gestures small and alike; with these, hands are about as quick, reach about
# as far and differ about as much from seed to seed as performed ones do (`aa.motion_metrics.Judge`).
GUIDANCE, HEAT = 1.5, 1.3  # push towards the sound, and size of the noise that body and hands set out from


class MotionModel(nn.Module):
    """Everything between sound and dG: embedding, diffusion Transformer, refiner and the particle basis."""

    def __init__(self, basis: Basis, config: MotionConfig | None = None, embedding: EmbeddingConfig | None = None):
        super().__init__()
        self.config, self.basis = config or MotionConfig(), basis
        self.embedding = Embedding(embedding, basis.sizes)
        latents, columns = self.embedding.config.latents, self.embedding.config.features
        self.dit = MotionDiT(sum(latents.values()), self.config, self.embedding.config)
        self.refiner = Refiner(latents, self.config, self.config.width)
        self.register_buffer("scale", torch.ones(sum(latents.values())))  # one number per part: latents of order one
        self.register_buffer("sound_mean", torch.zeros(columns))
        self.register_buffer("sound_std", torch.ones(columns))
        self.register_buffer("sound_rest", torch.zeros(columns))  # the features of digital silence

    @property
    def device(self) -> torch.device:
        return self.scale.device

    def hear(self, sound: Tensor) -> Tensor:
        """Features (B, T, F) -> what the diffusion model is given, (B, T, width)."""
        sound = (sound - self.sound_mean) / self.sound_std
        a = self.embedding.audio(sound)
        return self.dit.condition(a if self.config.embedded else torch.zeros_like(a), sound)

    def features(self, audio, frames: int | None = None) -> Tensor:
        """Sound (n,) float32 at 16 kHz -> its features (T, F), of the kind that the model was trained on."""
        from aa.audio import features

        return torch.from_numpy(features(audio, frames, kind=self.embedding.config.sound)).to(self.device)

    def to_latents(self, motion: Deformation) -> Tensor:
        """dG (T, V, 3) -> normalised latents (T, D), those that the diffusion model works on."""
        return self.embedding.encode(self.basis, motion) / self.scale

    def to_motion(self, x: Tensor) -> Deformation:
        """Normalised latents (T, D) -> dG (T, V, 3)."""
        return self.embedding.decode(self.basis, x * self.scale)

    @torch.no_grad()
    def generate(self, audio, seed: int = 0, guidance: float | dict = GUIDANCE, steps: int = 6, frames=None) -> Deformation:
        """Motion dG (T, V, 3) for sound (n,) float32 at 16 kHz, T = round(25 n / 16000); see `stream`."""
        chunks = list(self.stream(audio, seed, guidance, steps, frames))
        return Deformation(torch.cat([c.means for c in chunks]), torch.cat([c.rotvecs for c in chunks]))

    @torch.no_grad()
    def stream(self, audio, seed=0, guidance=GUIDANCE, steps=6, frames=None, chunk: int = 60) -> Iterator[Deformation]:
        """As `generate`, in pieces of at most `chunk` frames, so that memory does not grow with the recording.

        Args: guidance: how far body and hands are pushed from "any motion" to "motion for this sound" (1 is none); the face is
            not pushed; steps: of DDIM; the same seed gives the same motion.
        """
        for x in self.stream_latents(audio, seed, guidance, steps, frames):
            for piece in x.split(chunk):
                yield self.to_motion(piece)

    @torch.no_grad()
    def stream_latents(self, audio, seed=0, guidance=GUIDANCE, steps=6, frames=None) -> Iterator[Tensor]:
        """Normalised latents (n, D) window by window, starting at rest."""
        c, sound = self.config, self.features(audio, frames)
        T, hop = len(sound), c.window - c.known - c.margin
        # Before the start the body is at rest and all is silent; behind the end there is silence too.
        sound = torch.cat([self.silence(c.known), sound, self.silence(c.window)])
        generator, sampler = torch.Generator().manual_seed(seed), Sampler(self, guidance, steps)
        x_known = torch.zeros(1, c.known, len(self.scale), device=self.device)
        context = 32  # frames of sound to each side that the convolutions look at
        for start in range(0, T, hop):
            lo = max(0, start - context)
            heard = self.hear(sound[None, lo : start + c.window + context])[:, start - lo :][:, : c.window]
            noise = torch.randn(1, c.window, len(self.scale), generator=generator).to(self.device)
            x = sampler(noise, heard, x_known)
            refined = self.finish(x, heard, start - c.known)
            x_known = x[:, hop : hop + c.known]
            yield refined[0, c.known : c.known + min(hop, T - start)]

    def live(self, seed: int = 0, **settings):
        """A generator that is fed sound as it arrives: see `aa.live.Live`."""
        from aa.live import Live

        return Live(self, seed, **settings)

    def silence(self, frames: int) -> Tensor:
        """Features (frames, F) of nothing at all."""
        return self.sound_rest.expand(frames, -1)

    def finish(self, x: Tensor, heard: Tensor, start: int) -> Tensor:
        """What comes after the diffusion: refiner and smoothing of sampled windows (B, W, D) that begin at frame `start`."""
        if self.config.refine:
            t = torch.arange(start, start + x.shape[1], device=x.device).clamp_min(0)
            x = self.refiner(x, heard, t.expand(len(x), -1))
        return steady(x, self.embedding.config.latents)

    def save(self, path, facts: dict | None = None) -> None:
        """Write weights (half precision), basis and sizes to `path`, and `facts` about the training beside it as .json."""
        from safetensors.torch import save_file

        from aa.media import replacing, save_json

        tensors = {f"net.{k}": v.detach().cpu().half() for k, v in self.state_dict().items()}
        tensors |= {f"basis.{k}": v for k, v in self.basis.tensors().items()}
        meta = {"motion": self.config.as_dict(), "embedding": self.embedding.config.as_dict()}
        with replacing(path) as part:
            save_file(tensors, part, {"config": json.dumps(meta)})
        if facts is not None:
            save_json(Path(path).with_suffix(".json"), facts)

    @classmethod
    def load(cls, path=None, device="cpu") -> "MotionModel":
        """The shipped model (assets/motion.safetensors), or one that `save` wrote; ready to generate.

        Raises InputError: no such file, not a safetensors file (or half of one), not a motion model, weights of other sizes.
        """
        path = Path(path or ASSETS / "motion.safetensors")
        if not path.is_file():
            raise InputError(f"there is no motion model at {path}: give the .safetensors file that MotionModel.save wrote.")
        try:
            with safe_open(path, "pt", device=str(device)) as f:
                meta = json.loads((f.metadata() or {})["config"])
                t = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
            config, embedding = MotionConfig(**meta["motion"]), EmbeddingConfig(**{"sound": "mel", **meta["embedding"]})
            basis = Basis.from_tensors({k[6:]: v for k, v in t.items() if k.startswith("basis.")})
        except SafetensorError as error:
            raise InputError(f"{path} is not a whole safetensors file ({error}): get or make the motion model again.") from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} holds no motion model ({error}): give a file that MotionModel.save wrote.") from error
        model = cls(basis, config, embedding).to(device)
        try:
            weights = {k[4:]: v.float() for k, v in t.items() if k.startswith("net.")}
            model.load_state_dict({**_added_later(model), **weights})
        except RuntimeError as error:
            raise InputError(
                f"the weights in {path} do not fit the sizes written in it: the file was changed or made by another version; "
                "make the motion model again."
            ) from error
        return model.eval()


def _added_later(model: MotionModel) -> dict[str, Tensor]:
    """What files of the first version lack."""
    return {k: v for k, v in model.state_dict().items() if k == "sound_rest" or k.startswith("dit.guess.")}


class Sampler:
    """DDIM in few steps, with guidance and out-painting.

    Args: guidance: how far parts are pushed from "any motion" to "motion for this sound" (1 is none): a number for body and hands,
        the face keeps to 1; or a dict by part. join: frames per part in which a window leaves the course of the one before.
    """

    def __init__(self, model: MotionModel, guidance: float | dict = GUIDANCE, steps: int = 6, join: dict[str, int] = JOIN):
        self.dit, self.latents, self.join = model.dit, model.embedding.config.latents, join
        self.regression = model.config.regression
        self.pace = noise_scheduler(model.config)
        self.pace.set_timesteps(1 if self.regression else steps)
        if self.regression:  # it has never been without sound
            guidance = 1.0
        by_part = guidance if isinstance(guidance, dict) else {"body": guidance, "hand": guidance}
        push = [torch.full((n,), float(by_part.get(p, 1.0))) for p, n in self.latents.items()]
        self.push = torch.cat(push).to(model.device)  # (D,)
        self.heat = torch.cat([torch.full((n,), 1.0 if p == "face" else HEAT) for p, n in self.latents.items()]).to(model.device)

    def __call__(self, x: Tensor, heard: Tensor, x_known: Tensor, first: int = 0) -> Tensor:
        """From noise x (B, W, D), or clean motion noised to the level of step `first`, to X^0 (B, W, D).

        heard (B, W, width); x_known (B, k, D) are the clean first frames.
        """
        (B, W, _), k = x.shape, x_known.shape[1]
        known = (torch.arange(W, device=x.device) < k).expand(B, -1)
        x_known, mark = F.pad(x_known, (0, 0, 0, W - k)), known[..., None]
        if self.regression:
            x = torch.zeros_like(x)
        elif first == 0:
            x = x * self.heat
        both, twice = torch.cat([heard, self.dit.silence.expand_as(heard)]), (2, 1, 1)
        for tau in self.pace.timesteps[first:]:
            tau2 = tau.expand(2 * B).to(x.device)
            x0, free = self.dit(x.repeat(twice), both, tau2, known.repeat(2, 1), x_known.repeat(twice)).chunk(2)
            x0 = torch.where(mark, x_known, free + self.push * (x0 - free))
            x0 = continued(x0, k, self.latents, self.join)
            x = x0 if self.regression else self.pace.step(x0, tau, x).prev_sample
        return torch.where(mark, x_known, x)
