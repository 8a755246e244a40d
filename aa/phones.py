"""A phone recogniser trained on real speech, in torch: with it a motion model that learned from synthetic voices hears people.

Weights and token table are those inside the package `hama` 1.7.0 (Apache-2.0), a CTC recogniser of IPA phones; nothing of its
code runs here. 80 log-mel bands every 10 ms, one strided convolution, four Conformer blocks (Gulati et al. 2020: feed-forward,
attention, convolution, feed-forward) of width 144 without position codes, a softmax over 191 tokens, 50 times a second.

Phase. Frame i is centred at sample 320 i (20 ms apart, i = 0 at the very beginning). Video frame t owns the frames 2t and 2t + 1.
"""

import functools
import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aa.errors import InputError

RATE = 50  # frames per second
STRIDE = 320  # samples per frame
PAIR = 2 * STRIDE  # samples per video frame
WINDOW, CONTEXT = 12 * RATE // 2, RATE  # 12 s of which 2 s to each side are only context, in video frames

# What lips, teeth and tongue let one see of each phone; the last class, "other", takes all marks that are left.
MOUTH_CLASSES = {
    "closed": "p b m pʰ p͈ ɱ ɓ ʙ", "lip": "f v ɸ β ʋ", "w": "w wa we wi wʌ ʷ ɥ", "u": "u ʉ ju y o ʊ ɔ oʊ œ ø ɵ ʏ jo ũ õ",
    "ou": "ɔɪ ɒ", "er": "ɚ ɝ ɜ ɹ r ɻ",
    "hush": "ʃ ʒ t͡ʃ d͡ʒ t͡ɕ ɕ ʑ t͡ɕʰ t͡ɕ͈ ʂ ʐ", "teeth": "s z s͈", "th": "θ ð",
    "tip": "t d n l ɫ ɾ tʰ t͈ ɲ ɖ ɗ ʈ ɽ ɮ ʎ", "back": "k g ŋ x kʰ k͈ ɡ ɣ h ɦ χ ʔ ħ ʁ c ɟ ç ʝ ɴ ʀ ɰ",
    "spread": "i ɪ e eɪ ɛ j je ɨ ĩ ẽ eə ɪə",
    "open": "a æ ɑ aɪ ʌ ja jʌ ɐ aʊ ã ä", "mid": "ə ɘ ɤ ɯ ɯi", "word": "<wb>", "blank": "<blank>", "other": "",
}  # fmt: skip
SEEN = list(MOUTH_CLASSES).index("blank")  # the classes that are something to see come first
DECAY = 0.6  # per 20 ms: CTC says a phone in one or two frames, the lips take several


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(self.norm(x))))


class Convolution(nn.Module):
    """Gated pointwise, depthwise over 31 frames (0.6 s; its batch norm is folded in), pointwise. (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, kernel: int = 31):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.pointwise1, self.pointwise2 = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.pointwise1(self.norm(x).transpose(1, 2)), 1)
        return self.pointwise2(F.silu(self.depthwise(y))).transpose(1, 2)


class ConformerBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ffn1, self.ffn2, self.conv = FeedForward(width), FeedForward(width), Convolution(width)
        self.attn_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.ffn1(x)
        y = self.attn_norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        x = x + self.conv(x)
        return self.norm(x + 0.5 * self.ffn2(x))


class Recogniser(nn.Module):
    """Sound (B, n) at 16 kHz -> log-posteriors (B, n // 320 + 1, tokens) of the phones."""

    def __init__(self, tokens: list[str], width: int = 144, blocks: int = 4, heads: int = 4, bands: int = 80):
        super().__init__()
        self.tokens = tokens
        self.register_buffer("stft_real_kernel", torch.zeros(201, 1, 400))
        self.register_buffer("stft_imag_kernel", torch.zeros(201, 1, 400))
        self.register_buffer("mel_fb", torch.zeros(201, bands))
        self.subsample = nn.Conv1d(bands, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*[ConformerBlock(width, heads) for _ in range(blocks)])
        self.proj = nn.Conv1d(width, len(tokens), 1)

    def mel(self, audio: Tensor) -> Tensor:
        """(B, n) -> log-mel (B, 80, n // 160 + 1), 25 ms windows centred at 160 i."""
        x = F.pad(audio[:, None], (200, 200), mode="reflect")
        real, imag = (F.conv1d(x, k, stride=160) for k in (self.stft_real_kernel, self.stft_imag_kernel))
        return (self.mel_fb.T @ (real.square() + imag.square())).clamp_min(1e-10).log()

    def forward(self, audio: Tensor) -> Tensor:
        x = F.gelu(self.subsample(self.mel(audio))).transpose(1, 2)
        return self.proj(self.blocks(x).transpose(1, 2)).transpose(1, 2).log_softmax(-1)


# ---------------------------------------------------------------- the weights in the wheel


def _folder() -> Path:
    """The package's folder of weights, found without importing it: its native library is neither needed nor loaded."""
    found = importlib.util.find_spec("hama")
    folder = Path(found.origin).parent / "assets" if found and found.origin else None
    if folder is None or not (folder / "asr_waveform.hama").is_file():
        raise InputError("the phone recogniser is not installed: pip install hama==1.7.0 (4.7 MB of weights, Apache-2.0).")
    return folder


def read_arrays(path) -> dict[str, Tensor]:
    """Named arrays of a .hama file: "HAMAPK", version, count; per array name, type (0 float32, 1 float16), shape, place; data."""
    data = Path(path).read_bytes()
    try:
        if data[:6] != b"HAMAPK":
            raise ValueError("no HAMAPK")
        (count,), at, rows = struct.unpack_from("<I", data, 8), 12, []
        for _ in range(count):
            (length,) = struct.unpack_from("<H", data, at)
            name, at = data[at + 2 : at + 2 + length].decode(), at + 2 + length
            kind, rank = data[at], data[at + 1]
            *shape, offset, size = struct.unpack_from(f"<{rank}IQQ", data, at + 2)
            rows.append((name, ("<f4", "<f2")[kind], shape, offset, size))
            at += 18 + 4 * rank
        base = len(data) - max(offset + size for *_, offset, size in rows)
        if base < at:
            raise ValueError("cut off")
        arrays = {n: np.frombuffer(data, k, s // int(k[2]), base + o).reshape(shape) for n, k, shape, o, s in rows}
        return {n: torch.from_numpy(a.astype(np.float32)) for n, a in arrays.items()}
    except (struct.error, ValueError, IndexError) as error:
        raise InputError(f"{path} is damaged or of another version: pip install --force-reinstall hama==1.7.0.") from error


def _named(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """The export has nameless matrices (transposed) and convolutions, in order of use: give them the names of our modules."""
    number = lambda name: int(name.rsplit("_", 1)[1])  # noqa: E731
    matrices, kernels = (
        [arrays[n] for n in sorted((n for n in arrays if n.startswith(f"onnx::{k}")), key=number)] for k in ("MatMul", "Conv")
    )
    out = {n.removeprefix("acoustic_model.model."): v for n, v in arrays.items() if not n.startswith("onnx::")}
    out |= {"subsample.weight": kernels[0], "subsample.bias": kernels[1]}
    order = (
        "ffn1.fc1.weight",
        "ffn1.fc2.weight",
        "attn.in_proj_weight",
        "attn.out_proj.weight",
        "ffn2.fc1.weight",
        "ffn2.fc2.weight",
    )
    for n, matrix in enumerate(matrices):
        out[f"blocks.{n // 6}.{order[n % 6]}"] = matrix.T
    for n, kernel in enumerate(kernels[2:]):
        out[f"blocks.{n // 2}.conv.depthwise.{('weight', 'bias')[n % 2]}"] = kernel
    return out


@functools.cache
def load_recogniser(device: str = "cpu") -> Recogniser:
    """The recogniser with its weights, on `device`. Raises InputError where the package `hama` is missing or is another version."""
    folder = _folder()
    words = json.loads((folder / "g2p_vocab.json").read_text(encoding="utf-8"))["decoder"]
    net = Recogniser([*words, "<wb>", "<blank>"])
    try:
        net.load_state_dict(_named(read_arrays(folder / "asr_waveform.hama")))
    except (RuntimeError, IndexError) as error:
        raise InputError("the installed `hama` holds another network: pip install hama==1.7.0.") from error
    return net.eval().requires_grad_(False).to(device)


# ---------------------------------------------------------------- use


def in_windows(audio: np.ndarray, run, batch: int = 4) -> np.ndarray:
    """`run` (B, n) -> (B, 2 n / 640, C) over a long sound in windows of 12 s, of which it keeps the middle 8: (n,) -> (2T, C).

    n is a multiple of 640. What fits into one window goes through at once. All windows are equally long (the last one begins
    earlier), and at most `batch` of them are in memory. Attention looks at all of a window: it must not become minutes.
    """
    T = len(audio) // PAIR
    if T <= WINDOW:
        return run(audio[None])[0]
    starts = [*range(0, T - WINDOW, WINDOW - 2 * CONTEXT), T - WINDOW]
    pieces, done = [], 0
    for i in range(0, len(starts), batch):
        group = starts[i : i + batch]
        rows = run(np.stack([audio[s * PAIR : (s + WINDOW) * PAIR] for s in group]))
        for s, row in zip(group, rows):
            end = T if s == starts[-1] else s + WINDOW - CONTEXT
            pieces.append(row[2 * (done - s) : 2 * (end - s)])
            done = end
    return np.concatenate(pieces)


@torch.no_grad()
def posteriors(audio, device="cpu", batch: int = 4) -> np.ndarray:
    """(n,) float32 sound at 16 kHz -> (2T, 191) log-posteriors at 50 Hz, T = n / 640 rounded; frame i is around sample 320 i."""
    audio = np.asarray(audio, np.float32)
    T = max(1, round(len(audio) / PAIR))
    padded = np.zeros(T * PAIR, np.float32)
    padded[: len(audio)] = audio[: T * PAIR]
    net = load_recogniser(str(device))
    return in_windows(padded, lambda x: net(torch.from_numpy(x).to(device))[:, :-1].cpu().numpy(), batch)


@functools.cache
def _grouping(tokens: tuple[str, ...]) -> np.ndarray:
    """(tokens, 17) of 0 and 1: which token falls into which mouth class."""
    classes = [set(symbols.split()) for symbols in MOUTH_CLASSES.values()]
    table = np.array([[t in c for c in classes] for t in tokens], np.float32)
    table[:, -1] = 1 - table.sum(1)
    return table


def mouth_posteriors(log_posteriors: np.ndarray) -> np.ndarray:
    """(2T, 191) -> (2T, 17) probability of each of MOUTH_CLASSES."""
    return np.exp(log_posteriors) @ _grouping(tuple(load_recogniser().tokens))


def smear(p: np.ndarray, decay: float = DECAY) -> np.ndarray:
    """(2T, C) -> (2T, 2C): each spike fades by `decay` per frame, once forwards and once backwards in time."""
    forwards, backwards = p.copy(), p.copy()
    for t in range(1, len(p)):
        np.maximum(p[t], decay * forwards[t - 1], out=forwards[t])
        np.maximum(p[-t - 1], decay * backwards[-t], out=backwards[-t - 1])
    return np.concatenate([forwards, backwards], 1)


def mouth_features(audio, device="cpu") -> np.ndarray:
    """(n,) -> (T, 94) at 25 fps: the 17 mouth posteriors of its two frames, and the smeared 15 that can be seen."""
    p = mouth_posteriors(posteriors(audio, device))
    return np.concatenate([p.reshape(len(p) // 2, -1), smear(p[:, :SEEN]).reshape(len(p) // 2, -1)], 1)
