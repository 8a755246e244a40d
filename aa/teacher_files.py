"""What the large teachers need: files, licences, memory and time, said before anything is downloaded or loaded."""

from dataclasses import dataclass
from pathlib import Path

import torch

from aa.errors import InputError
from aa.teachers import Teacher

GB = 1e9
PRESETS = {"small": (17, 256, 256), "medium": (33, 384, 384), "full": (81, 480, 832)}  # frames, height, width
RATE = 150e12  # operations a second of a large GPU in bfloat16, as OmniAvatar's published 16 s a step on an A800 come to


@dataclass(frozen=True)
class Part:
    """One download from the Hugging Face hub."""

    key: str  # as the loaders call it
    repo: str
    wanted: tuple[str, ...]  # files; of folders with "/", config and weights in one piece or in shards
    gigabytes: float
    licence: str


@dataclass(frozen=True)
class Large:
    """A large teacher: its downloads and the sizes that memory and time follow from."""

    parts: tuple[Part, ...]
    parameters: float  # of the transformer
    layers: int
    width: int  # of the video stream
    other: float  # parameters that stay on the GPU besides: autoencoders, ears
    cell: tuple[int, int, int]  # frames, rows and columns of pixels to one token


WAV2VEC = Part("wav2vec", "facebook/wav2vec2-base-960h", ("config.json", "model.safetensors"), 0.4, "Apache-2.0")


def _wan(size: str, transformer: float, changes: float) -> tuple[Part, ...]:
    folders = ("transformer/", "vae/", "text_encoder/", "tokenizer/tokenizer.json")
    omni = Part("omniavatar", f"OmniAvatar/OmniAvatar-{size}", ("pytorch_model.pt", "config.json"), changes, "Apache-2.0")
    return Part("wan", f"Wan-AI/Wan2.1-T2V-{size}-Diffusers", folders, transformer + 0.5 + 22.7, "Apache-2.0"), omni, WAV2VEC


LARGE = {
    "wan-1.3b": Large(_wan("1.3B", 5.68, 0.34), 1.42e9, 30, 1536, 0.22e9, (4, 16, 16)),
    "wan-14b": Large(_wan("14B", 57.2, 1.24), 14.3e9, 40, 5120, 0.22e9, (4, 16, 16)),
    "ltx2": Large(
        (
            Part(
                "ltx2", "Lightricks/LTX-2",
                ("transformer/", "vae/", "audio_vae/", "text_encoder/", "connectors/", "tokenizer/tokenizer.json",
                 "model_index.json"),
                95.0, "LTX-2 Community License: not open source, restricts use; what is distilled from it counts as its derivative",
            ),
        ), 19e9, 48, 4096, 1.4e9, (8, 32, 32),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """Rough needs of a teacher for clips of one size; GB are 10^9 bytes."""

    gpu: float  # GB, the larger of scoring (with gradients to the frames) and sampling
    memory: float  # GB of the computer's own memory
    scoring: float  # s on a large GPU: one guided prediction
    sampling: float  # s: one clip in 30 steps
    download: float  # GB


def estimate(name: str, frames: int, height: int, width: int, offload: bool = False) -> Estimate:
    """What a large teacher needs for clips of that size. From sizes of the model alone: right within a third or so."""
    m = LARGE[name]
    n = ((frames - 1) // m.cell[0] + 1) * (height // m.cell[1]) * (width // m.cell[2])
    weights = 2 * m.parameters  # bfloat16
    stays = 2 * (2 * m.parameters / m.layers) if offload else weights  # two blocks: one at work, one on its way
    tokens = 48 * n * m.width  # bytes: hidden states in both precisions, projections, the wide layer
    pixels = 1200 * frames * height * width  # bytes: all of the encoder's activations, kept for the gradient
    work = 2 * m.parameters * n + 4 * n * n * m.width * m.layers
    scoring = 2 * work / RATE + (0.04 * weights / GB if offload else 0) * 2  # 25 GB/s to the GPU, two passes
    download = sum(p.gigabytes for p in m.parts)
    memory = 4 + (weights / GB if offload else 4)
    return Estimate((stays + 2 * m.other + max(tokens, pixels)) / GB + 1, memory, scoring, 30 * scoring, download)


def report(name: str, preset: str, offload: bool) -> str:
    """What is needed and under which licences, in lines to print before anything is downloaded."""
    e, (frames, height, width) = estimate(name, *PRESETS[preset], offload), PRESETS[preset]
    lines = [
        f"teacher {name}, preset {preset}: {frames} frames of {width} x {height} px"
        + (", weights wait in main memory" if offload else ""),
        f"  memory about {e.gpu:.0f} GB on the GPU, {e.memory:.0f} GB beside it",
        f"  time on a large GPU about {e.scoring:.1f} s a guided prediction, {e.sampling:.0f} s a sampled clip",
        f"  files {e.download:.0f} GB:",
    ]
    return "\n".join([*lines, *(f"    {p.repo}: {p.gigabytes:.1f} GB, {p.licence}" for p in LARGE[name].parts)])


def fitting(gigabytes: float) -> list[tuple[str, str, bool]]:
    """What so much GPU memory can do, best first: (name, preset, whether weights must wait outside)."""
    every = [(n, p, o) for n in ("wan-14b", "wan-1.3b", "ltx2") for p in reversed(PRESETS) for o in (False, True)]
    return [c for c in every if estimate(c[0], *PRESETS[c[1]], c[2]).gpu <= gigabytes]


def check_memory(name: str, preset: str, offload: bool, free: float) -> None:
    """InputError if `free` GB of GPU memory are too few, naming what fits."""
    need = estimate(name, *PRESETS[preset], offload).gpu
    if need <= free:
        return
    own = [c for c in fitting(free) if c[0] == name]
    best = (own or fitting(free) or [None])[0]
    if best is None:
        advice = 'no large teacher fits: use the teacher "tiny"'
    else:
        advice = f'what fits is teacher "{best[0]}", preset="{best[1]}"' + (", offload=True" if best[2] else "")
    raise InputError(f"{name} with preset {preset} needs about {need:.0f} GB of GPU memory and {free:.0f} GB are free: {advice}.")


def missing(folder: Path, part: Part) -> list[str]:
    """Names of the files of a part that are not in its folder; shards are looked up in their index."""
    import json

    out = []
    for name in part.wanted:
        if not name.endswith("/"):
            out += [] if (folder / name).exists() else [name]
            continue
        place = folder / name
        if not (place / "config.json").exists():
            out.append(f"{name}config.json")
        index = sorted(place.glob("*.safetensors.index.json"))
        if index:
            shards = sorted(set(json.loads(index[0].read_text())["weight_map"].values()))
            out += [f"{name}{s}" for s in shards if not (place / s).exists()]
        elif not any(place.glob("*.safetensors")):
            out.append(f"{name}*.safetensors")
    return out


def locate(name: str, folder=None, download: bool = False) -> dict[str, Path]:
    """Folders of all parts of a large teacher, by key.

    Args: folder that holds one folder per part, named like its repository (`Wan2.1-T2V-1.3B-Diffusers`, ...); None: the hub's
        cache on this machine; download: fetch into either what is missing.
    Raises: InputError that says what is missing, how big it is and how to get it.
    """
    found, lacking = {}, {}
    for part in LARGE[name].parts:
        place = Path(folder) / part.repo.split("/")[1] if folder is not None else _cached(part)
        gone = missing(place, part) if place is not None and place.is_dir() else list(part.wanted)
        if gone and download:
            place = _fetch(name, part, place if folder is not None else None)
            gone = missing(place, part)
        if gone:
            lacking[part] = gone
        found[part.key] = place
    if lacking:
        say = "; ".join(
            f"{p.repo} ({p.gigabytes:.1f} GB): {', '.join(g[:3])}{', ...' if len(g) > 3 else ''}" for p, g in lacking.items()
        )
        raise InputError(
            f'the teacher {name} lacks files of {say}: get them with download=True or "hf download", or use the teacher "tiny".'
        )
    return found


def _patterns(part: Part) -> list[str]:
    return [f"{n}*" if n.endswith("/") else n for n in part.wanted] + ["tokenizer/*"] * any("/" in n for n in part.wanted)


def _cached(part: Part) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(part.repo, allow_patterns=_patterns(part), local_files_only=True))
    except (OSError, ValueError):
        return None


def _fetch(name: str, part: Part, folder: Path | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(part.repo, allow_patterns=_patterns(part), local_dir=folder))
    except Exception as error:  # the hub's, the connection's and the disk's exceptions have no common base
        raise InputError(
            f"{part.repo} ({part.gigabytes:.1f} GB, for the teacher {name}) could not be downloaded ({type(error).__name__}): "
            'check network and disk and try again, it goes on where it stopped; or use the teacher "tiny".'
        ) from error


def load_large(
    name: str, device="cuda", preset: str = "small", folder=None, download: bool = False, offload: bool = False, quiet: bool = False
) -> Teacher:
    """A large teacher, frozen, on a GPU: says what it needs, checks the memory, looks for the files, loads them.

    Args: preset, of PRESETS; folder and download of `locate`; offload: blocks wait in main memory and come to the GPU in turn.
    Raises: InputError, before anything is downloaded or loaded, if the GPU is missing or too small.
    """
    if preset not in PRESETS:
        raise InputError(f'there is no preset "{preset}" of teachers: choose one of {", ".join(PRESETS)}.')
    if not quiet:
        print(report(name, preset, offload))
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InputError(f'the teacher {name} needs a CUDA GPU and this is "{device}" on a machine '
                         f'{"with" if torch.cuda.is_available() else "without"} one: use the teacher "tiny".')  # fmt: skip
    check_memory(name, preset, offload, torch.cuda.mem_get_info(device)[0] / GB)
    parts = locate(name, folder, download)
    frames, height, width = PRESETS[preset]
    settings = {"frames": frames, "height": height, "width": width, "place": device if offload else None}
    if name == "ltx2":
        from aa.teacher_ltx2 import load_ltx2

        return placed(load_ltx2(parts, **settings), device, offload)
    from aa.teacher_wan import load_wan

    return placed(load_wan(parts, name, **settings), device, offload)


def placed(teacher: Teacher, device: torch.device, offload: bool) -> Teacher:
    """The teacher on its device; with `offload` the transformer's blocks stay behind and are sent for one at a time."""
    if not offload:
        return teacher.to(device)
    transformer = teacher.transformer
    del teacher.transformer
    teacher.to(device)
    teacher.transformer = transformer
    transformer.enable_group_offload(device, torch.device("cpu"), "block_level", num_blocks_per_group=1, use_stream=True)
    return teacher
