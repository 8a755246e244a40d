"""Hidden states of wav2vec 2.0 or HuBERT as sound features, for those who have such weights: a folder, or the name of a download.

Phase. The convolutions of these models look at 400 samples every 320. The sound is shifted by half of what they overlap, so that
the states of a video frame lie symmetrically around its centre (10 and 30 ms into it); their mean is the frame's row.
"""

import functools
import math

import numpy as np

from aa.errors import InputError
from aa.phones import PAIR, in_windows

DEPTH = 2 / 3  # of the layers: phones are clearest there, later ones turn to the training task (Pasad et al. 2021)
LEVEL = 10.0  # these models want unit variance; normalised speech has an rms of 0.1


@functools.lru_cache(maxsize=2)
def _config(name: str):
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
        stride, size = math.prod(config.conv_stride), 1
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f'there are no wav2vec 2.0 or HuBERT weights at "{name}" on this machine: get them with "hf download NAME" '
            'or choose the sound features "phones" or "mel".'
        ) from error
    for kernel, step in zip(reversed(config.conv_kernel), reversed(config.conv_stride)):
        size = (size - 1) * step + kernel
    if PAIR % stride:
        raise InputError(f'the model "{name}" steps {stride} samples at a time, which does not divide a video frame of {PAIR}.')
    return config, stride, size


@functools.lru_cache(maxsize=2)
def _model(name: str, device: str):
    from safetensors import SafetensorError
    from transformers import AutoModel

    _config(name)
    try:
        return AutoModel.from_pretrained(name, local_files_only=True).eval().requires_grad_(False).to(device)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f'the weights of "{name}" cannot be read: get them again, or use the sound features "phones".') from error


def hidden_size(name: str) -> int:
    """Columns of `hidden_states`."""
    return _config(name)[0].hidden_size


def hidden_states(audio: np.ndarray, name: str, device="cpu") -> np.ndarray:
    """Normalised sound (640 T,) -> (T, hidden_size) at 25 fps, in windows of 12 s at constant memory."""
    import torch

    (config, stride, size), model = _config(name), _model(name, str(device))
    layer = round(DEPTH * config.num_hidden_layers)
    half = (size - stride) // 2
    per_frame = PAIR // stride

    @torch.no_grad()
    def run(x: np.ndarray) -> np.ndarray:
        x = np.pad(LEVEL * x, ((0, 0), (half, size - stride - half)))
        h = model(torch.from_numpy(x).to(device), output_hidden_states=True).hidden_states[layer]
        h = h.unflatten(1, (-1, per_frame)).mean(2)  # (B, T, C)
        return h.repeat_interleave(2, 1).cpu().numpy()

    return in_windows(audio, run, batch=1)[::2]
