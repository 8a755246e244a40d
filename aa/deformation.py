"""4D Gaussians: a clip of one person to per-particle deformations dG_t (Problem Setting and [89] of the paper).

A HexPlane and a small MLP give every Gaussian an offset at every time. One camera leaves depth open, so tracks (Eq. 3) and a
distance-preserving prior between neighbours (ARAP, Sec. 3.3) are on from the start; before it, the two alone lift the tracks to a
coarse motion (`aa.lifting`) that the field refines. Several clips of one person share the canonical Gaussians.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from tqdm.auto import tqdm

from aa import fit_checkpoint
from aa.body import matrix_to_quat, quat_multiply, rotvec_to_matrix
from aa.errors import InputError
from aa.fit_footage import Footage, crop_camera, enlarge
from aa.fit_losses import ROBUST, dssim, edge_lengths, isometry_loss, neighbour_pairs, trajectory_loss
from aa.gaussians import Gaussians, project
from aa.hexplane import DeformationField, FitSettings, HexPlane
from aa.lifting import lift_tracks, make_graph
from aa.raster import rasterize

__all__ = [
    "Base", "DeformationField", "Fit", "FitSettings", "Footage", "HexPlane", "crop_camera", "deform", "edge_lengths", "fit_clip",
    "fit_clips", "isometry_loss", "neighbour_pairs", "trajectory_loss",
]  # fmt: skip
PLATEAU = 50  # steps that are compared with those before


@dataclass(frozen=True)
class Base:
    """The coarse motion that a field refines: means (T, N, 3) m and turns (T, N, 4) wxyz relative to the canonical Gaussians."""

    means: torch.Tensor
    turns: torch.Tensor


def deform(gaussians: Gaussians, offsets: dict[str, torch.Tensor], base: Base | None = None) -> list[torch.Tensor]:
    """G_t = G + dG_t: means, quats, scales, colours of B deformed copies, each (B, N, .); `base` holds B frames or is None."""
    turn = matrix_to_quat(rotvec_to_matrix(offsets["rot"]))
    quats = gaussians.quats.expand(len(turn), -1, -1)
    return [
        (gaussians.means if base is None else base.means) + offsets["mean"],
        quat_multiply(turn, quats if base is None else quat_multiply(base.turns, quats)),
        (gaussians.log_scales + offsets["scale"]).exp(),
        gaussians.colors + offsets["color"],
    ]


@dataclass(frozen=True)
class Fit:
    """A fitted clip: canonical Gaussians with their final appearance, the field, the motion it refines, and the loss curves."""

    gaussians: Gaussians
    field: DeformationField
    base: Base | None
    history: dict[str, list[float]]
    tint: torch.Tensor | None = None  # (T, N, 3) colours on top of the field's, see aa.recolour

    @torch.no_grad()
    def at(self, t: int) -> list[torch.Tensor]:
        """Means (N, 3), quats, scales and colours at frame t."""
        *shape, colors = (x[0] for x in deform(self.gaussians, *_moments(self.field, self.base, [t])))
        return [*shape, colors if self.tint is None else colors + self.tint[t]]

    @torch.no_grad()
    def render(self, t: int, viewmat, K, width: int, height: int, background, means=None, quats=None) -> torch.Tensor:
        """The picture (H, W, 3) of frame t from any camera; other means and quats show another motion in the same colours."""
        own, turned, scales, colors = self.at(t)
        look = (own if means is None else means, turned if quats is None else quats, scales, self.gaussians.opacities, colors)
        image, alpha, _ = rasterize(*look, viewmat[None], K[None], width, height)
        return (image[0] + (1 - alpha[0]) * background).clamp(0, 1)


def _moments(field: DeformationField, base: Base | None, times: list[int]):
    """Arguments of `deform` at some frames."""
    t = torch.tensor(times, device=field.order.device)
    return field(t.float()), None if base is None else Base(base.means[t], base.turns[t])


def fit_clip(
    gaussians: Gaussians, part: torch.Tensor, footage: Footage, settings=None, seed: int = 0, progress=True, apart=None, base=None,
    modes=None, checkpoint=None,
) -> Fit:  # fmt: skip
    """Fit dG_t of `gaussians` (N) with part labels (N,) to a clip: L1 + L_traj + isometry + plane smoothness.

    Args: apart (N, 3): the particles in a posture with the limbs apart, in which neighbours are looked up (default: the canonical
        means); base: a coarse motion, by default the lifted tracks if there are tracks and both priors are on; modes (N, M, 3):
        known changes of the canonical shape for the lifting (facial actions); checkpoint: a file that is kept up to date, from
        which an interrupted fit goes on to the same result.
    Appearance (colours, scales) is refined along with the motion. Deterministic for a seed on one machine.
    Raises: InputError: a camera cut in the clip, a checkpoint of another fit.
    """
    bases = None if base is None else [base]
    return fit_clips(gaussians, part, [footage], settings, seed, progress, apart, bases, modes, checkpoint)[0]


def fit_clips(
    gaussians: Gaussians, part: torch.Tensor, footages: list[Footage], settings=None, seed: int = 0, progress=True, apart=None,
    bases=None, modes=None, checkpoint=None,
) -> list[Fit]:  # fmt: skip
    """Several clips of one person at once: canonical Gaussians in common, a field for each; steps are per clip. See `fit_clip`."""
    settings = settings or FitSettings()
    for k, footage in enumerate(footages):
        if (cut := footage.cut()) is not None:
            which = "the clip" if len(footages) == 1 else f"clip {k}"
            raise InputError(
                f"{which} has a camera cut at frame {cut}: fit the frames before it and those from it on as two clips."
            )
    apart = gaussians.means if apart is None else apart
    job = _Job(gaussians, part, footages, settings, seed, apart)
    if checkpoint is None or not job.resume(checkpoint):
        bases = bases or [_lifted(gaussians, part, f, settings, apart, modes) for f in footages]
        job.bases = bases
    for n in tqdm(range(job.step, settings.steps * len(footages)), desc="4DGS", disable=not progress):
        job.advance()
        done = n + 1 == settings.steps * len(footages) or job.settled()
        if checkpoint is not None and (done or (n + 1) % settings.save_every == 0):
            job.save(checkpoint)
        if done:
            break
    canonical = replace(gaussians, **{k: v.detach() for k, v in job.free.items()})
    return [Fit(canonical, f, b, job.history) for f, b in zip(job.fields, job.bases)]


def _lifted(gaussians, part, footage, settings: FitSettings, apart, modes) -> Base | None:
    """The coarse motion, where there is something to lift and nobody asked to do without."""
    if not (settings.nodes and settings.w_traj and settings.w_iso and footage.visible.any()):
        return None
    return Base(*lift_tracks(gaussians.means, make_graph(apart, part, settings.nodes), footage, modes))


class _Job:
    """A fit under way: what it changes, and what the next step depends on."""

    def __init__(self, gaussians, part, footages, settings: FitSettings, seed: int, apart):
        self.gaussians, self.footages, self.settings = gaussians, footages, settings
        self.fields = [DeformationField(gaussians, part, len(f.frames), settings, seed + k) for k, f in enumerate(footages)]
        self.free = {k: getattr(gaussians, k).detach().clone().requires_grad_() for k in ("colors", "log_scales")}
        self.bases: list[Base | None] = [None] * len(footages)
        planes, trunks = ([p for f in self.fields for p in m(f).parameters()] for m in (lambda f: f.planes, lambda f: f.trunk))
        groups = [
            (planes, settings.lr_planes), (trunks, settings.lr_mlp), ([self.free["colors"]], settings.lr_colors),
            ([self.free["log_scales"]], settings.lr_scales),
        ]  # fmt: skip
        self.optimizer = torch.optim.Adam([{"params": p, "lr": lr, "top": lr} for p, lr in groups], eps=1e-15)
        self.rng, self.step, self.history = np.random.default_rng(seed), 0, {}
        pairs, weight = neighbour_pairs(apart, settings.neighbours)
        self.edges = (pairs, weight, edge_lengths(gaussians.means, pairs))
        self.views = [f.views() for f in footages]
        left = gaussians.means[:, 0] > gaussians.means[:, 0].median()
        self.hands = [f.hand_boxes(part, left) if settings.w_hand else None for f in footages]
        self.facts = {"settings": asdict(settings), "seed": seed, "particles": len(gaussians)}
        self.facts["clips"] = [[*f.frames.shape, f.tracks.shape[1], round(float(f.frames.mean()), 5)] for f in footages]

    def advance(self) -> None:
        """One step of Adam on two moments of one of the clips."""
        s, n = self.settings, self.step
        for group in self.optimizer.param_groups:  # the first steps must not undo the base
            group["lr"] = group["top"] * min(1.0, (n + 1) / 20) * s.decay ** (n / (s.steps * len(self.footages)))
        k = n % len(self.footages)
        shown = self.footages[k].shown()
        i = int(self.rng.integers(len(shown)))
        other = min(i + 1, len(shown) - 1) if self.rng.random() < 0.5 else int(self.rng.integers(len(shown)))
        terms = self._losses(k, [int(shown[i]), int(shown[other])])
        terms["look"] = s.w_look * sum((v - getattr(self.gaussians, name)).square().mean() for name, v in self.free.items())
        self.optimizer.zero_grad()
        sum(terms.values()).backward()
        self.optimizer.step()
        for name, v in terms.items():
            self.history.setdefault(name, []).append(float(v.detach()))
        self.step += 1

    def _losses(self, k: int, times: list[int]) -> dict[str, torch.Tensor]:
        """The weighted terms of one step at two moments: pictures of frame and crops, tracks, isometry, smooth planes, hold."""
        s, footage, field, base = self.settings, self.footages[k], self.fields[k], self.bases[k]
        offsets, start = _moments(field, base, times)
        means, quats, scales, colors = deform(replace(self.gaussians, **self.free), offsets, start)
        look = (means, quats, scales, self.gaussians.opacities, colors)
        terms = self._pictures(k, times, look)
        tv, bend = (sum(x) for x in zip(*(p.smoothness() for p in field.planes)))
        terms |= {"tv": s.w_tv * tv, "time": s.w_time * bend}
        if s.w_traj:
            pixels, _ = project(means[:, footage.particle], footage.viewmat, footage.K)
            side = max(footage.frames.shape[1:3])
            loss = trajectory_loss(pixels, footage.tracks[times], footage.visible[times], side, s.robust)
            terms["traj"] = s.w_traj * (ROBUST if s.robust else 1.0) * loss
        if s.w_iso:
            pairs, weight, rest = self.edges
            length = edge_lengths(means, pairs)  # (2, M)
            change = (length[0] - length[1]).abs() + (length - rest).abs().mean(0)
            terms["iso"] = s.w_iso * (weight * change).mean()
        if s.w_hold and base is not None:
            terms["hold"] = s.w_hold * (offsets["mean"] / s.hold).square().mean()
        return terms

    def _pictures(self, k: int, times: list[int], look) -> dict[str, torch.Tensor]:
        """L1 (and D-SSIM) of the whole frames, and of a crop: the face or, in a third of the steps, a hand."""
        s, footage, views = self.settings, self.footages[k], self.views[k]
        shots = [("l1", 1.0, views[0][0][times], views[0][1].expand(2, 3, 3), views[0][2])]
        box = None if self.hands[k] is None or self.rng.random() > 1 / 3 else self.hands[k][times, int(self.rng.integers(2))]
        if box is not None and np.isfinite(box).all():
            size = 128
            behind = footage.background.expand(*footage.frames.shape[1:])[None]
            stack = [enlarge(torch.cat([footage.frames[[t]], behind]), b.astype(int), size) for t, b in zip(times, box)]
            Ks = torch.stack([crop_camera(footage.K, b.tolist(), size) for b in box])
            shots.append(("l1 hand", s.w_hand, torch.stack([x[0] for x in stack]), Ks, torch.stack([x[1] for x in stack])))
        elif len(views) > 1 and s.w_face:
            shots.append(("l1 face", s.w_face, views[1][0][times], views[1][1].expand(2, 3, 3), views[1][2]))
        terms = {}
        for name, factor, frames, Ks, behind in shots:
            viewmats = footage.viewmat.expand(2, 4, 4).contiguous()
            image, alpha, _ = rasterize(*look, viewmats, Ks.contiguous(), frames.shape[2], frames.shape[1])
            image = image + (1 - alpha) * behind
            terms[name] = factor * (image - frames).abs().mean()
            if s.w_ssim:
                terms["ssim" + name[2:]] = s.w_ssim * factor * dssim(image, frames)
        return terms

    def settled(self) -> bool:
        """Whether the pictures have stopped getting better (`patience` windows without a gain of 0.5%)."""
        p, curve = self.settings.patience, self.history["l1"]
        if not p or self.step % PLATEAU or len(curve) < (p + 1) * PLATEAU:
            return False
        mean = np.array(curve[len(curve) % PLATEAU :]).reshape(-1, PLATEAU).mean(1)
        return bool(mean[-p:].min() > 0.995 * mean[:-p].min())

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint keeps besides the optimiser."""
        out = dict(self.free)
        for k, (field, base) in enumerate(zip(self.fields, self.bases)):
            out |= {f"{k}.field.{name}": p for name, p in field.named_parameters()}
            out |= {} if base is None else {f"{k}.base.means": base.means, f"{k}.base.turns": base.turns}
        return out

    def save(self, path) -> None:
        facts = self.facts | {"lifted": [b is not None for b in self.bases]}
        fit_checkpoint.save(path, facts, self.step, self._tensors(), self.optimizer, self.rng, self.history)

    def resume(self, path) -> bool:
        """Go on from a checkpoint; False where there is none."""
        lifted = fit_checkpoint.read_facts(path, self.facts)
        if lifted is None:
            return False
        x = self.gaussians.means
        for k, f in enumerate(self.footages):
            shape = (len(f.frames), len(x))
            self.bases[k] = Base(x.new_empty(*shape, 3), x.new_empty(*shape, 4)) if lifted[k] else None
        self.step, self.history = fit_checkpoint.load(path, self._tensors(), self.optimizer, self.rng)
        return True
