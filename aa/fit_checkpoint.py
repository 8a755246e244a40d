"""Checkpoints of a fit: everything that the next step depends on, so that an interrupted fit ends where it would have ended."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from aa.errors import InputError


def save(path, facts: dict, step: int, tensors: dict[str, torch.Tensor], optimizer, rng: np.random.Generator, history) -> None:
    """Write tensors, Adam's moments, the state of the random numbers and the curves; to a temporary name, then renamed."""
    out = {f"tensor.{k}": v.detach().cpu().contiguous() for k, v in tensors.items()}
    for k, state in optimizer.state_dict()["state"].items():
        out |= {f"adam.{k}.{name}": torch.as_tensor(v).detach().cpu().contiguous() for name, v in state.items()}
    words = {"facts": facts, "step": step, "rng": rng.bit_generator.state, "history": history}
    part = Path(f"{path}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    save_file(out, part, {"fit": json.dumps(words)})
    os.replace(part, path)


def _words(path) -> dict:
    try:
        with safe_open(path, "pt") as f:
            return json.loads(f.metadata()["fit"])
    except (SafetensorError, TypeError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path} is no checkpoint of a fit, or damaged: delete it to start the fit anew.") from error


def read_facts(path, facts: dict) -> list[bool] | None:
    """For each clip whether the checkpoint holds a coarse motion; None without a file. InputError: of another fit."""
    if not Path(path).exists():
        return None
    kept = _words(path)["facts"]
    lifted = kept.pop("lifted")
    if kept != json.loads(json.dumps(facts)):
        raise InputError(f"{path} belongs to another fit (other clip, settings or seed): give another name, or delete it.")
    return lifted


def load(path, tensors: dict[str, torch.Tensor], optimizer, rng: np.random.Generator) -> tuple[int, dict]:
    """Put a checkpoint back into tensors (in place), optimizer and rng. Returns the steps done and the curves."""
    words, state = _words(path), {}
    with safe_open(path, "pt") as f, torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(f.get_tensor(f"tensor.{name}"))
        for name in f.keys():  # noqa: SIM118
            if name.startswith("adam."):
                _, k, what = name.split(".")
                state.setdefault(int(k), {})[what] = f.get_tensor(name)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    rng.bit_generator.state = words["rng"]
    return words["step"], words["history"]
