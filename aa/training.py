"""One training loop for every network here: on a CPU, a GPU or several (`accelerate launch`), resumable to the bit.

What a step draws follows from (seed, step, process) alone, so that a checkpoint needs no state of a random generator and a run that
was interrupted ends where the uninterrupted one does. Checkpoints are safetensors: weights, their running mean, Adam's moments and
the curves, written in one piece.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from aa.errors import InputError
from aa.media import replacing

WARM_UP = 50  # steps
LAST_RATE = 0.02  # of the learning rate, at the end of the cosine


@dataclass(frozen=True)
class Run:
    """How long one training lasts, and where it is kept."""

    steps: int
    batch: int = 16  # examples per process
    rate: float = 1e-3
    seed: int = 0
    average: float = 0.0  # decay of the running mean of the weights (EMA) that is put in at the end; 0 is none
    folder: Path | str | None = None  # where checkpoints go; None keeps none
    every: int = 200  # steps between checkpoints
    precision: str | None = None  # "no" or "bf16"; None is bf16 on GPUs that have it
    progress: bool = False


class Objective(nn.Module):
    """What is minimised. `forward(*batch)` returns {"total": loss, ...}; only the parameters of `trained` are changed."""

    trained: nn.Module

    def draw(self, rng: np.random.Generator, size: int) -> tuple[Tensor, ...]:
        """A batch of `size` examples, all chance from `rng`."""
        raise NotImplementedError


class Average:
    """Exponential moving average of a module's parameters (EMA), warmed up."""

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay = module, decay
        self.mean = {k: v.detach().clone() for k, v in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, counted from 1."""
        keep = min(self.decay, (1 + step) / (10 + step))
        for k, v in self.module.named_parameters():
            self.mean[k].lerp_(v, 1 - keep)

    @torch.no_grad()
    def load(self) -> None:
        """Put the mean into the module."""
        for k, v in self.module.named_parameters():
            v.copy_(self.mean[k])


def rate_at(step: int, run: Run) -> float:
    """Learning rate: linear warm-up, then half a cosine down to LAST_RATE."""
    down = 0.5 * (1 + np.cos(np.pi * step / max(run.steps, 1)))
    return run.rate * min(1, (step + 1) / WARM_UP) * (LAST_RATE + (1 - LAST_RATE) * down)


def accelerator_for(device: torch.device, precision: str | None):
    """`accelerate`'s view of the machine, on the device where the model lies; several processes if launched so."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    if AcceleratorState._shared_state and PartialState().num_processes == 1:
        AcceleratorState._reset_state(True)  # it is one per process and remembers the device of the training before
    cuda = device.type == "cuda"
    precision = precision or ("bf16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "no")
    return Accelerator(cpu=not cuda, mixed_precision=precision)


class Checkpoint:
    """One file `run.folder`/`name`.safetensors: weights, their mean, Adam's moments, curves."""

    def __init__(self, run: Run, name: str, module: nn.Module, mean: Average, adam: torch.optim.Optimizer):
        self.path = None if run.folder is None else Path(run.folder) / f"{name}.safetensors"
        self.module, self.mean, self.adam = module, mean, adam
        self.recipe = {k: getattr(run, k) for k in ("steps", "batch", "rate", "seed", "average")}

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name; Adam's moments in the order of the parameters."""
        out = {f"net.{k}": v for k, v in self.module.state_dict().items()} | {f"mean.{k}": v for k, v in self.mean.mean.items()}
        for n, p in enumerate(self.module.parameters()):
            out |= {f"adam.{n}.{k}": v for k, v in self.adam.state[p].items()}
        return {k: v.detach().cpu().contiguous() for k, v in out.items()}

    def write(self, step: int, curves: dict[str, list[float]]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        drawn = {"curves": torch.tensor(list(curves.values()), dtype=torch.float64)}
        meta = {"step": step, "recipe": self.recipe, "terms": list(curves)}
        with replacing(self.path) as part:
            save_file(self.tensors() | drawn, part, {"training": json.dumps(meta)})

    def read(self) -> tuple[int, dict[str, list[float]]]:
        """Put back what `write` wrote; the step to go on from and the curves so far, (0, {}) if there is no file."""
        if self.path is None or not self.path.exists():
            return 0, {}
        try:
            with safe_open(self.path, "pt") as f:
                meta, t = json.loads((f.metadata() or {})["training"]), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
            if meta["recipe"] != self.recipe:
                raise KeyError("recipe")
            self.module.load_state_dict(_under(t, "net."))
            self.mean.mean = {k: t[f"mean.{k}"].to(v.device) for k, v in self.mean.mean.items()}
            state = {n: _under(t, f"adam.{n}.") for n, _ in enumerate(self.module.parameters())}
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise InputError(
                f"{self.path} is damaged or from a training with other settings: delete it, or give another folder."
            ) from error
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})
        return meta["step"], dict(zip(meta["terms"], t["curves"].tolist()))


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def train(objective: Objective, run: Run, name: str) -> dict[str, list[float]]:
    """Minimise an objective by AdamW with clipped gradients; returns the curves {term: [value of each step]}.

    Args: name, of the checkpoint `run.folder`/`name`.safetensors: if it is there, training goes on from it; if it is finished, it
        is only read.
    Raises: InputError if that file is damaged or belongs to another network or recipe.
    """
    from tqdm.auto import tqdm

    place = accelerator_for(next(objective.parameters()).device, run.precision)
    objective.to(place.device)
    before = {p: p.requires_grad for p in objective.parameters()}
    objective.requires_grad_(False)
    objective.trained.requires_grad_(True)
    adam = torch.optim.AdamW(objective.trained.parameters(), lr=run.rate, betas=(0.9, 0.98), weight_decay=0.01)
    mean = Average(objective.trained, run.average)
    keep = Checkpoint(run, name, objective.trained, mean, adam)
    start, curves = keep.read()
    net, steady = place.prepare(objective, adam)
    shown = tqdm(
        range(start, run.steps), desc=name, initial=start, total=run.steps, disable=not (run.progress and place.is_main_process)
    )
    with torch.random.fork_rng(devices=[place.device] if place.device.type == "cuda" else []):
        for step in shown:
            chance = np.random.SeedSequence([run.seed, step, place.process_index])
            torch.manual_seed(int(chance.generate_state(1)[0]))  # for dropout
            batch = [b.to(place.device) for b in objective.draw(np.random.default_rng(chance), run.batch)]
            for group in adam.param_groups:
                group["lr"] = rate_at(step, run)
            terms = net(*batch)
            place.backward(terms["total"])
            place.clip_grad_norm_(objective.trained.parameters(), 1.0)
            steady.step()
            steady.zero_grad()
            mean.update(step + 1)
            values = place.reduce(torch.stack([v.detach().float() for v in terms.values()]), "mean")
            for k, v in zip(terms, values.tolist()):
                curves.setdefault(k, []).append(v)
            if (step + 1) % run.every == 0 or step + 1 == run.steps:
                shown.set_postfix({k: f"{np.mean(v[-50:]):.3f}" for k, v in curves.items()})
                if place.is_main_process:
                    keep.write(step + 1, curves)
    if run.average:
        mean.load()
    for p, wanted in before.items():
        p.requires_grad_(wanted)
    return curves
