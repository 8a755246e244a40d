"""Makes assets/portraits/*.png: six generated people, half body with both hands in view; and a picture of the whole cast.

    python assets/make_portraits.py            # the six portraits, 2-3 minutes
    python assets/make_portraits.py --people   # assets/readme/people.jpg, everybody in `aa.identities.PEOPLE`, 3 minutes

The people do not exist: bodies, faces, hair and clothes are drawn at random by `aa.identities.sample_identity`.
"""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

SHIPPED = ("ada", "bruno", "chidi", "dalia", "emil", "flora")
COLUMNS, WIDTH, HEIGHT = 6, 176, 220  # of the picture of the cast; each is the upper part of a portrait twice as large


def make_portraits():
    """The portraits that are shipped, 768 x 1152."""
    from PIL import Image

    from aa.identities import person
    from aa.studio import portrait

    (HERE / "portraits").mkdir(exist_ok=True)
    for name in SHIPPED:
        target = HERE / "portraits" / f"{name}.png"
        Image.fromarray(portrait(person(name), samples=4)).save(target, optimize=True)
        print(f"{target.name}: {target.stat().st_size / 1e3:.0f} KB")


def make_people(target: Path):
    """One picture of the whole cast: people to learn from first, then those held out, under a line with their names."""
    from PIL import Image, ImageDraw

    from aa.identities import people
    from aa.studio import portrait

    groups = [("people to learn from", people("train")), ("held out", people("held-out"))]
    rows = [1 + -(-len(cast) // COLUMNS) for _, cast in groups]
    line = 16
    sheet = Image.new("RGB", (COLUMNS * WIDTH, sum((n - 1) * (HEIGHT + line) + 26 for n in rows)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for (title, cast), n in zip(groups, rows):
        draw.text((6, top + 8), f"{len(cast)} {title}", fill=(30, 30, 30), font_size=14)
        for i, (name, identity) in enumerate(cast.items()):
            big = Image.fromarray(portrait(identity, 2 * WIDTH, 3 * WIDTH, samples=2)).crop((0, 0, 2 * WIDTH, 2 * HEIGHT))
            x, y = i % COLUMNS * WIDTH, top + 26 + i // COLUMNS * (HEIGHT + line)
            sheet.paste(big.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS), (x, y))
            draw.text(
                (x + 4, y + HEIGHT + 1), f"{name}, {identity.years:.0f}, {identity.height:.2f} m", fill=(60, 60, 60), font_size=11
            )
        top += (n - 1) * (HEIGHT + line) + 26
    part = target.with_suffix(".part.jpg")
    sheet.save(part, quality=80, optimize=True)
    os.replace(part, target)
    print(f"{target.name}: {sheet.size[0]} x {sheet.size[1]}, {target.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", action="store_true", help="make assets/readme/people.jpg instead")
    if parser.parse_args().people:
        make_people(HERE / "readme" / "people.jpg")
    else:
        make_portraits()
