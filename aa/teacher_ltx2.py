"""LTX-2 as a teacher: the one diffusers model that hears by itself, since it generates video and sound together.

The sound's own latents are handed over clean, at audio noise level 0, and the video is denoised beside them; switching off the
attention between the two gives the prediction without sound. The image is the first latent frame, clean, at noise level 0.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aa.errors import InputError
from aa.media import FPS, SAMPLE_RATE
from aa.teachers import FirstFrameTeacher

MEL_WINDOW, LEAST = 1024, 1e-5  # of LTX-2's spectrogram: samples; the magnitude below which all is silence


def log_mel(sound: np.ndarray, bins: int, hop: int) -> Tensor:
    """Sound (n,) at 16 kHz -> (n / hop, bins): log of Slaney's mel magnitudes in windows of 64 ms, as LTX-2 was trained on."""
    from transformers.audio_utils import mel_filter_bank

    x = torch.from_numpy(np.asarray(sound, np.float32))
    x = nn.functional.pad(x, (0, max(0, MEL_WINDOW - len(x))))
    spectrum = torch.stft(x, MEL_WINDOW, hop, window=torch.hann_window(MEL_WINDOW), return_complex=True).abs()
    bank = mel_filter_bank(MEL_WINDOW // 2 + 1, bins, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return (spectrum.T @ torch.from_numpy(bank).float()).clamp_min(LEAST).log()


class LTX2Teacher(FirstFrameTeacher):
    """Latents z (B, 128, t, h, w), t = (T - 1) / 8 + 1, h = H / 32. As with Wan, the first frame is the image.

    Args: transformer, vae, audio_vae: diffusers' LTX-2 classes; prompts: embeddings for the video (1, L, D) and the sound (1, L, E)
        and their mask (1, L), as the connectors give them.
    """

    name, fps, shift, guidance = "ltx2", 25.0, 3.0, (3.0, 1.0)

    def __init__(
        self, transformer: nn.Module, vae: nn.Module, audio_vae: nn.Module, prompts: tuple[Tensor, Tensor, Tensor],
        frames: int = 17, height: int = 256, width: int = 256, place=None,
    ):  # fmt: skip
        super().__init__()
        across, along = vae.spatial_compression_ratio, vae.temporal_compression_ratio
        if (frames - 1) % along or height % across or width % across:
            raise InputError(
                f"{frames} frames of {width} x {height} px: LTX-2 wants {along} k + 1 frames and sides that {across} divides."
            )
        self.frames, self.height, self.width, self.place = frames, height, width, place
        self.transformer, self.vae, self.audio_vae = transformer, vae, audio_vae
        for name, value in zip(("text", "audio_text", "text_mask"), prompts):
            self.register_buffer(name, value, persistent=False)
        self.freeze()

    def checkpointing(self, on: bool = True) -> "LTX2Teacher":
        (self.vae.enable_gradient_checkpointing if on else self.vae.disable_gradient_checkpointing)()
        return super().checkpointing(on)

    def scale(self) -> tuple[Tensor, Tensor]:
        mean, std = (v.float().view(1, -1, 1, 1, 1).to(self.device) for v in (self.vae.latents_mean, self.vae.latents_std))
        return mean, std / self.vae.config.scaling_factor

    @torch.no_grad()
    def hear(self, sound: np.ndarray, frames: int | None = None) -> Tensor:
        """The sound's latents, (N, channels x mel): the audio autoencoder gives 25 a second."""
        c, n = self.audio_vae.config, frames or max(1, round(len(sound) * FPS / SAMPLE_RATE))
        mel = log_mel(sound, c.mel_bins, c.mel_hop_length)
        both = mel.expand(1, c.in_channels, -1, -1).to(self.device, self.audio_vae.dtype)  # (1, 2, frames, bins)
        z = self.audio_vae.encode(both).latent_dist.mode().float()  # (1, C, L, M)
        rows = z[0].transpose(0, 1).flatten(1)
        rows = (rows - self.audio_vae.latents_mean.float()) / self.audio_vae.latents_std.float()
        return torch.cat([rows, rows[-1:].expand(max(0, n - len(rows)), -1)])[:n]

    def predict(self, z_sigma: Tensor, sigma: Tensor, audio: Tensor | None, image: Tensor | None) -> Tensor:
        B, _, t, h, w = z_sigma.shape
        c = self.transformer.config
        tokens = self.anchor(z_sigma, image).flatten(2).transpose(1, 2).to(self.dtype)  # (B, t h w, C)
        level = (c.timestep_scale_multiplier * sigma)[:, None].repeat(1, t * h * w)
        if image is not None:
            level[:, : h * w] = 0
        deaf = audio is None
        if deaf:  # what goes in is not attended to
            audio = z_sigma.new_zeros(B, round(self.frames * FPS / self.fps), c.audio_in_channels)
        text, audio_text, mask = (x.expand(B, *x.shape[1:]) for x in (self.text, self.audio_text, self.text_mask))
        v, _ = self.transformer(
            hidden_states=tokens, audio_hidden_states=audio.to(self.dtype), encoder_hidden_states=text.to(self.dtype),
            audio_encoder_hidden_states=audio_text.to(self.dtype), timestep=level, audio_timestep=torch.zeros_like(sigma),
            sigma=c.timestep_scale_multiplier * sigma, audio_sigma=torch.zeros_like(sigma), encoder_attention_mask=mask,
            audio_encoder_attention_mask=mask, num_frames=t, height=h, width=w, fps=self.fps, audio_num_frames=audio.shape[1],
            isolate_modalities=deaf, return_dict=False,
        )  # fmt: skip
        return self.led_to(image, v.float().transpose(1, 2).unflatten(2, (t, h, w)), z_sigma, sigma)


# ---------------------------------------------------------------- from published files

PROMPT = "A person faces the camera and talks, with natural lip movements, glances and gestures of both hands. Plain background."


def load_ltx2(parts: dict[str, Path], dtype=torch.bfloat16, **settings) -> LTX2Teacher:
    """A teacher from the folder of `aa.teacher_files.locate`; settings of `LTX2Teacher`.

    Raises: InputError when a file cannot be read or belongs to another model.
    """
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel

    folder = parts["ltx2"]
    kinds = {"transformer": LTX2VideoTransformer3DModel, "vae": AutoencoderKLLTX2Video, "audio_vae": AutoencoderKLLTX2Audio}
    try:
        models = [kind.from_pretrained(folder / name, torch_dtype=dtype) for name, kind in kinds.items()]
    except Exception as error:  # every reader has its own exceptions for files cut short
        what = str(error).strip().splitlines()[-1][:120]
        raise InputError(f"the files of ltx2 cannot be read ({what}): delete them and download them again.") from error
    return LTX2Teacher(*models, ltx2_prompts(folder), **settings)


def ltx2_prompts(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of PROMPT by Gemma and the connectors, computed once on the CPU (30 GB of memory) and kept beside them."""
    from safetensors.torch import load_file, save_file

    from aa.media import replacing

    kept = folder / "prompts.safetensors"
    if not kept.exists():
        from diffusers import LTX2Pipeline

        none = {"transformer": None, "vae": None, "audio_vae": None, "vocoder": None}
        pipe = LTX2Pipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, **none)
        with torch.no_grad():
            states, mask, *_ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False, device="cpu")
            made = pipe.connectors(states, mask, padding_side=getattr(pipe.tokenizer, "padding_side", "left"))
        with replacing(kept) as part:
            save_file({k: v.float().contiguous() for k, v in zip(("text", "audio", "mask"), made)}, part)
    t = load_file(kept)
    return t["text"], t["audio"], t["mask"]
