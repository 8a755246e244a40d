"""The command line: `python -m aa talk`, `course`, `bench` and `version`.

Exit codes: 0 done, 1 a notebook failed, 2 the input cannot be used (one sentence on stderr), 130 stopped by Ctrl-C.
Everything heavy is imported inside the commands, so that `--help` is there at once.
"""

import argparse
import ast
import sys
from pathlib import Path

from aa import __version__
from aa.errors import InputError

ASSETS = Path(__file__).resolve().parents[1] / "assets"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".m4a")


def shipped(kind: str, endings: tuple[str, ...]) -> Path:
    """The first file of assets/<kind> with one of these endings; InputError if there is none."""
    found = sorted(p for p in (ASSETS / kind).glob("*") if p.suffix.lower() in endings)
    if not found:
        raise InputError(f"no default in {ASSETS / kind}: clone the whole repository or name a file of your own.")
    return found[0]


def picture_size(text: str) -> int:
    """Argument type of --size: an even number of pixels between 128 and 2048."""
    size = int(text)
    if not 128 <= size <= 2048 or size % 2:
        raise argparse.ArgumentTypeError(f"{text} is not an even number of pixels between 128 and 2048")
    return size


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="python -m aa", description="A photo and a recording in, a talking full-body Gaussian avatar out."
    )
    commands = top.add_subparsers(dest="command", metavar="command")

    talk = commands.add_parser("talk", help="make a talking video from a photo and a recording")
    talk.add_argument("--image", type=Path, help="photo of one person: jpg, png or webp (default: a shipped portrait)")
    sound = talk.add_mutually_exclusive_group()
    sound.add_argument("--audio", type=Path, help="any sound file, or a video with sound (default: shipped speech)")
    sound.add_argument("--text", help="English words to speak instead of a recording")
    talk.add_argument("--voice", default="joe", help="voice for --text (default: %(default)s)")
    talk.add_argument("--out", type=Path, default=Path("talk.mp4"), help="mp4 to write (default: %(default)s)")
    talk.add_argument("--size", type=picture_size, default=768, help="longer side in pixels (default: %(default)s)")
    talk.add_argument("--seed", type=int, default=0, help="the same seed gives the same video (default: %(default)s)")
    talk.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    talk.add_argument("--background", default="photo", help="photo, or a colour such as white or #404040")
    talk.add_argument("--no-cache", action="store_true", help="fit the photo anew, even if it was fitted before")
    talk.add_argument("--quiet", action="store_true", help="no progress bars")

    course = commands.add_parser("course", help="run the notebooks in order")
    course.add_argument("--preset", choices=("smoke", "quick", "full"), default="quick", help="default: %(default)s")
    course.add_argument("--out", type=Path, help="folder for results (default: runs/<preset>)")
    course.add_argument("--only", nargs="+", default=[], metavar="NN", help="numbers of the notebooks to run, as 01 03")
    course.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    course.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    course.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    course.add_argument("--quiet", action="store_true", help="no progress bar")
    course.add_argument("--refresh-nav", action="store_true", help="only rewrite the generated cells of the notebooks")

    add_bench(commands)
    commands.add_parser("version", help="versions of aa, Python and the packages that matter")
    return top


def add_bench(commands) -> None:
    """The arguments of `bench`."""
    bench = commands.add_parser("bench", help="time the renderer on this machine")
    bench.add_argument("--sizes", nargs="+", metavar="N-PIXELS", help="scenes, as 20k-512 or avatar-40k-512 (default: six of them)")
    bench.add_argument("--threads", nargs="+", type=int, metavar="N", help="numbers of threads (default: 1, 2, all cores)")
    bench.add_argument("--repeats", type=int, default=10, help="timed calls per number (default: %(default)s)")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: against gsplat (default: %(default)s)")
    bench.add_argument("--all", action="store_true", help="the slow reference on the largest scene too")
    bench.add_argument("--scaling", action="store_true", help="curves over Gaussians, pixels and frames instead of the table")
    bench.add_argument("--out", type=Path, help="json to write; with --scaling also a png beside it (default then: scaling.json)")
    bench.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    bench.add_argument("--quiet", action="store_true", help="no progress bar")


def run_talk(given: argparse.Namespace) -> int:
    """`talk`: everything that can be refused without work is refused first."""
    from aa.media import check_writable

    check_writable(given.out)
    if given.out.suffix.lower() != ".mp4":
        raise InputError(f"{given.out.name} does not end in .mp4: videos are written as mp4 only.")
    if given.text is not None and not given.text.strip():
        raise InputError("--text is empty: give some words to speak.")
    image = given.image or shipped("portraits", PICTURES)
    audio = None if given.text else given.audio or shipped("speech", SOUNDS)
    for path in (image, audio):
        if path and not path.is_file():
            raise InputError(f"{path} is not there: check the name of the file.")
    from aa.talk import talk

    result = talk(
        image,
        audio,
        given.out,
        text=given.text,
        voice=given.voice,
        size=given.size,
        seed=given.seed,
        device=given.device,
        background=given.background,
        cache=not given.no_cache,
        progress=not given.quiet,
    )
    for notice in result.notices:
        print(f"note: {notice}", file=sys.stderr)
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    print(f"{result.path}: {result.frames} frames ({result.frames / 25:.2f} s); {steps}")
    return 0


def run_course(given: argparse.Namespace) -> int:
    """`course`: the notebooks in order; 1 with one line about the notebook and cell that failed."""
    from aa import course

    if given.refresh_nav:
        print("changed: " + (", ".join(course.refresh()) or "nothing"))
        return 0
    out = given.out or Path("runs") / given.preset
    parameters = {"SEED": given.seed, "DEVICE": given.device}
    parameters |= {name: literal(value) for name, value in given.parameters}
    try:
        seconds = course.run_course(given.preset, out, given.only, parameters, progress=not given.quiet)
    except course.NotebookFailed as failure:
        print(f"stopped: {failure} (executed so far: {out})", file=sys.stderr)
        return 1
    for stem, taken in seconds.items():
        print(f"{stem:24} {taken:7.1f} s")
    print(f"{'all':24} {sum(seconds.values()):7.1f} s, notebooks and results in {out}")
    return 0


def run_bench(given: argparse.Namespace) -> int:
    """`bench`: a table, or with --scaling curves; the file is checked before anything is timed."""
    from aa import bench
    from aa.bench_scenes import SIZES, parse_size
    from aa.media import check_writable, save_json

    sizes = [parse_size(text) for text in given.sizes] if given.sizes else SIZES
    bench.check(given.threads, given.repeats, given.device)
    if given.scaling:
        return run_scaling(given)
    if given.out is not None:
        check_writable(given.out)
    report = bench.run(sizes, given.threads, given.repeats, given.device, given.all, not given.quiet)
    print(bench.table(report, given.markdown))
    print(("\n" if given.markdown else "") + bench.footer(report))
    if given.out is not None:
        save_json(given.out, report)
    return 0


def run_scaling(given: argparse.Namespace) -> int:
    """`bench --scaling`: curves as text, json and png, by the largest number of threads given."""
    from aa import bench_scaling
    from aa.media import check_writable, save_json
    from aa.viz import save_png

    if given.sizes or given.device != "cpu":
        raise InputError("--scaling has its own sizes, on the CPU: leave --sizes and --device out.")
    out = check_writable(given.out or Path("scaling.json"))
    if out.suffix.lower() != ".json":
        raise InputError(f"{out.name} does not end in .json: the curves are written as json, the picture beside it as png.")
    check_writable(out.with_suffix(".png"))
    threads = max(given.threads) if given.threads else None
    result = bench_scaling.scaling(threads=threads, repeats=given.repeats, progress=not given.quiet)
    print(bench_scaling.text(result))
    save_json(out, result)
    picture = save_png(bench_scaling.plot(result), out.with_suffix(".png"))
    print(f"{out} and {picture}")
    return 0


def literal(text: str):
    """A parameter's value from the command line: a Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def run_version(given: argparse.Namespace) -> int:
    """`version`: what a bug report needs."""
    from importlib.metadata import PackageNotFoundError, version

    print(f"aa {__version__}, Python {sys.version.split()[0]}")
    for name in ("torch", "numpy", "gsplat", "numba", "mediapipe", "diffusers", "av"):
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            print(f"{name} is not installed: pip install -r requirements.txt")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    given = parser().parse_args(arguments)
    if given.command is None:
        parser().print_help()
        return 0
    try:
        run = {"talk": run_talk, "course": run_course, "bench": run_bench, "version": run_version}
        return run[given.command](given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
