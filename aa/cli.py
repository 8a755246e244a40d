"""The command line: `python -m aa talk`, `course` and `version`.

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

    commands.add_parser("version", help="versions of aa, Python and the packages that matter")
    return top


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
        return {"talk": run_talk, "course": run_course, "version": run_version}[given.command](given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
