"""Makes assets/portraits/*.png: six generated people, half body with both hands in view. Run from anywhere; 2-3 minutes.

    python assets/make_portraits.py

The people do not exist: bodies, faces, hair and clothes are drawn at random by `aa.identities.sample_identity`.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

PEOPLE = {"ada": 10, "bruno": 5, "chidi": 7, "dalia": 17, "emil": 12, "flora": 22}  # file name -> seed


def main():
    from PIL import Image

    from aa.identities import sample_identity
    from aa.studio import portrait

    (HERE / "portraits").mkdir(exist_ok=True)
    for name, seed in PEOPLE.items():
        target = HERE / "portraits" / f"{name}.png"
        Image.fromarray(portrait(sample_identity(seed), samples=4)).save(target, optimize=True)
        print(f"{target.name}: seed {seed}, {target.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
