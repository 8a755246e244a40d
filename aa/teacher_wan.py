"""Wan 2.1 with OmniAvatar's hearing as a teacher: diffusers' classes, the audio pack and low-rank changes from the published files.

OmniAvatar (Gan et al. 2025) adds to the text-to-video model: 17 input channels (the image's latents in every frame, and a mask that
is 0 where a frame is given, the first); an audio pack, which turns all 14 x 768 hidden states of wav2vec 2.0 of four video frames
into 32 numbers; and one linear map of them for each of the blocks 2 .. L/2, added to all tokens of their latent frame.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aa.errors import InputError
from aa.media import SAMPLE_RATE
from aa.teachers import FirstFrameTeacher

PACK = 4  # frames to one latent frame, as in the video autoencoder
PACKED = 32  # numbers that are left of them
FIRST = 2  # the first block that hears
ALPHA = 64.0  # of the low-rank changes, where their file does not say
NAMES = {  # Wan's own names of layers -> diffusers'
    **{f"self_attn.{a}": f"attn1.to_{a}" for a in "qkv"}, "self_attn.o": "attn1.to_out.0",
    **{f"cross_attn.{a}": f"attn2.to_{a}" for a in "qkv"}, "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
}  # fmt: skip


class AudioPack(nn.Module):
    """Hidden states of sound (B, T, C), T = 4 k + 1 -> what each hearing block adds, a list of (B, k + 1, D)."""

    def __init__(self, columns: int, width: int, blocks: int, packed: int = PACKED):
        super().__init__()
        self.proj, self.norm_out = nn.Linear(PACK * columns, packed), nn.LayerNorm(packed)
        self.blocks = nn.ModuleList(nn.Linear(packed, width) for _ in range(blocks))

    def forward(self, audio: Tensor) -> list[Tensor]:
        audio = torch.cat([audio[:, :1].expand(-1, PACK - 1, -1), audio], 1)  # the first latent frame is one video frame
        packed = self.norm_out(self.proj(audio.unflatten(1, (-1, PACK)).flatten(2)))
        return [block(packed) for block in self.blocks]


class WanTeacher(FirstFrameTeacher):
    """Latents z (B, 16, t, h, w), t = (T - 1) / 4 + 1, h = H / 8. The first frame is the image: its velocity is the one that
    leads there, so hand over the first rendered frame as the image when scoring.

    Args: transformer (33 input channels), vae: diffusers' Wan classes; pack; ears: a transformers Wav2Vec2Model; prompts (2, L, D):
        embeddings of what to show and of what to avoid, the latter used where nothing is heard, as OmniAvatar does.
    """

    fps, shift, guidance = 25.0, 5.0, (4.5, 1.0)

    def __init__(
        self, transformer: nn.Module, vae: nn.Module, pack: AudioPack, ears: nn.Module, prompts: Tensor, frames: int = 17,
        height: int = 256, width: int = 256, name: str = "wan-1.3b", place=None,
    ):  # fmt: skip
        super().__init__()
        if (frames - 1) % PACK or height % 16 or width % 16:
            raise InputError(f"{frames} frames of {width} x {height} px: Wan wants 4 k + 1 frames and sides that 16 divides.")
        self.name, self.frames, self.height, self.width = name, frames, height, width
        self.transformer, self.vae, self.pack, self.ears, self.place = transformer, vae, pack, ears, place
        self.register_buffer("text", prompts, persistent=False)
        stats = [torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std)]
        for n, value in zip(("z_mean", "z_std"), stats):
            self.register_buffer(n, value, persistent=False)
        self.added: list[Tensor] = []  # to the tokens of the hearing blocks, in the pass that is under way
        for k, block in enumerate(list(transformer.blocks)[FIRST : FIRST + len(pack.blocks)]):
            block.register_forward_pre_hook(self._inject(k), with_kwargs=True)
        self.freeze()

    def _inject(self, k: int):
        def before(block, args, kwargs):
            tokens, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            added = self.added[k]  # (B, t, D)
            places = tokens.shape[1] // added.shape[1]
            return (tokens + added.to(tokens.dtype).repeat_interleave(places, 1), *rest), kwargs

        return before

    def scale(self) -> tuple[Tensor, Tensor]:
        return self.z_mean, self.z_std

    def hear(self, sound: np.ndarray, frames: int | None = None) -> Tensor:
        """All hidden states of wav2vec 2.0, (N, 14 x 768): its convolutions' output is brought to 25 rows a second first."""
        n = frames or max(1, round(len(sound) * 25 / SAMPLE_RATE))
        x = torch.from_numpy(np.asarray(sound, np.float32)).to(self.device)
        x = (x - x.mean()) / (x.var(unbiased=False) + 1e-7).sqrt()
        to_frames = lambda module, args, raw: F.interpolate(raw.float(), n, mode="linear", align_corners=True).to(raw)  # noqa: E731
        hook = self.ears.feature_extractor.register_forward_hook(to_frames)  # (1, C, m) at 50 a second -> (1, C, n)
        try:
            with torch.no_grad():
                states = self.ears(x[None].to(self.ears.dtype), output_hidden_states=True)
        finally:
            hook.remove()
        return torch.cat([states.last_hidden_state, *states.hidden_states], -1)[0].float()

    def predict(self, z_sigma: Tensor, sigma: Tensor, audio: Tensor | None, image: Tensor | None) -> Tensor:
        """v. Without an image nothing is given and the mask says so; without sound the pack gets zeros, as in its training."""
        B, _, t = z_sigma.shape[:3]
        if audio is None:
            audio = z_sigma.new_zeros(B, PACK * (t - 1) + 1, self.pack.proj.in_features // PACK)
            text = self.text[1:]
        else:
            text = self.text[:1]
        shown = torch.zeros_like(z_sigma[:, :, :1]) if image is None else image
        mask = torch.ones_like(z_sigma[:, :1])
        if image is not None:
            mask[:, :, 0] = 0
        x = torch.cat([self.anchor(z_sigma, image), shown.expand(-1, -1, t, -1, -1), mask], 1)
        run = lambda x, audio: self._pass(x, 1000 * sigma, audio, text.expand(B, -1, -1))  # noqa: E731
        v = self.again(run, x.to(self.dtype), audio.to(self.pack.proj.weight.dtype)).float()
        return self.led_to(image, v, z_sigma, sigma)

    def _pass(self, x: Tensor, timestep: Tensor, audio: Tensor, text: Tensor) -> Tensor:
        self.added = self.pack(audio)
        return self.transformer(x, timestep, text.to(x.dtype), return_dict=False)[0]


# ---------------------------------------------------------------- from published files


def hearing_blocks(layers: int) -> int:
    """How many blocks of `layers` hear: 2 .. layers / 2."""
    return layers // 2 - 1


def apply_omniavatar(transformer: nn.Module, state: dict[str, Tensor], alpha: float = ALPHA) -> AudioPack:
    """Build OmniAvatar's changes into diffusers' text-to-video transformer, in place; returns the audio pack.

    Args: state, of its `pytorch_model.pt`: pairs lora_A, lora_B of layers by Wan's names, patch_embedding, audio_proj,
        audio_cond_projs; alpha: low-rank products count alpha / rank.
    Raises: InputError if names are missing or shapes are another model's.
    """
    state = {k.removeprefix("module.").removeprefix("model.").removeprefix("dit."): v for k, v in state.items()}
    try:
        columns = state["audio_proj.proj.weight"].shape[1] // PACK
        packed, width = state["audio_proj.proj.weight"].shape[0], transformer.patch_embedding.out_channels
        pack = AudioPack(columns, width, hearing_blocks(len(transformer.blocks)), packed)
        named = {"proj": "audio_proj.proj", "norm_out": "audio_proj.norm_out"}
        named |= {f"blocks.{k}": f"audio_cond_projs.{k}" for k in range(len(pack.blocks))}
        pack.load_state_dict({f"{to}.{p}": state[f"{of}.{p}"] for to, of in named.items() for p in ("weight", "bias")})
        weight = state["patch_embedding.weight"]
        old = transformer.patch_embedding
        new = nn.Conv3d(weight.shape[1], width, old.kernel_size, old.stride).to(old.weight)
        new.load_state_dict({"weight": weight, "bias": state["patch_embedding.bias"]})
        transformer.patch_embedding = new
        transformer.register_to_config(in_channels=weight.shape[1])
        merged = _merge(transformer, state, alpha)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"these are not OmniAvatar's weights for this Wan model ({_short(error)}): get both of one size."
        ) from error
    if not merged:
        raise InputError("OmniAvatar's file holds no low-rank weights: get the published pytorch_model.pt.")
    return pack


@torch.no_grad()
def _merge(transformer: nn.Module, state: dict[str, Tensor], alpha: float) -> int:
    """Add the low-rank products to the layers; their number."""
    count = 0
    for key, down in state.items():
        if ".lora_A." not in key:
            continue
        _, number, *layer = key[: key.index(".lora_A.")].split(".")
        target = transformer.get_submodule(f"blocks.{number}.{NAMES['.'.join(layer)]}")
        up = state[key.replace(".lora_A.", ".lora_B.")]
        target.weight += (alpha / len(down) * up.float() @ down.float()).to(target.weight)
        count += 1
    return count


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()[:120]


def load_wan(parts: dict[str, Path], name: str, dtype=torch.bfloat16, **settings) -> WanTeacher:
    """A teacher from folders of `aa.teacher_files.locate`: "wan", "omniavatar", "wav2vec"; settings of `WanTeacher`.

    Raises: InputError when a file cannot be read or belongs to another model.
    """
    import json

    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import Wav2Vec2Model

    folder = parts["wan"]
    try:
        transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype)
        vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=dtype)
        ears = Wav2Vec2Model.from_pretrained(parts["wav2vec"], local_files_only=True)
        state = torch.load(parts["omniavatar"] / "pytorch_model.pt", map_location="cpu", weights_only=True)
        config = parts["omniavatar"] / "config.json"
        alpha = float(json.loads(config.read_text()).get("lora_alpha", ALPHA)) if config.exists() else ALPHA
    except Exception as error:  # every reader has its own exceptions for files cut short
        raise InputError(f"the files of {name} cannot be read ({_short(error)}): delete them and download them again.") from error
    pack = apply_omniavatar(transformer, state, alpha).to(dtype)
    return WanTeacher(transformer, vae, pack, ears, wan_prompts(folder, transformer.config.text_dim), name=name, **settings)


PROMPTS = (
    "A person faces the camera and talks, with natural lip movements, glances and gestures of both hands. Plain background.",
    "Vivid tones, overexposed, static, blurred, worst quality, deformed, badly drawn hands, extra fingers, messy background.",
)
LONGEST = 512  # tokens


def wan_prompts(folder: Path, width: int) -> Tensor:
    """Embeddings (2, 512, width) of PROMPTS by the model's own text encoder, computed once on the CPU (11 GB of memory, a minute)
    and kept beside it."""
    from safetensors.torch import load_file, save_file

    from aa.media import replacing

    kept = folder / "prompts.safetensors"
    if not kept.exists():
        from transformers import AutoTokenizer, UMT5EncoderModel

        tokens = AutoTokenizer.from_pretrained(folder / "tokenizer")(
            list(PROMPTS), padding="max_length", max_length=LONGEST, truncation=True, return_tensors="pt"
        )
        encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.bfloat16)
        with torch.no_grad():
            made = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        with replacing(kept) as part:
            save_file({"prompts": (made * tokens.attention_mask[..., None]).float().contiguous()}, part)
    prompts = load_file(kept)["prompts"]
    if prompts.shape[-1] != width:
        raise InputError(f"{kept} belongs to another model: delete it and try again.")
    return prompts
