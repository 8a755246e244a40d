"""Makes assets/teacher.safetensors (and teacher.json beside it): close-ups of the studio's people, the tiny teacher, its test.

    python assets/make_teacher.py [--size full] [--folder runs/teacher] [--out assets/teacher.safetensors] [--device cuda]

Sizes: smoke (seconds, teaches nothing), quick (20 minutes on a core), hour, full (for a GPU). Close-ups and checkpoints are kept
in the folder: called again, an interrupted run goes on and ends in the same weights. With several GPUs, `accelerate launch
--multi_gpu` once the clips are made.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    from aa.teacher_training import SIZES, make_teacher

    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--size", choices=list(SIZES), default="full")
    ask.add_argument("--steps", type=int, help="instead of the size's own number")
    ask.add_argument("--clips", type=int, help="instead of the size's own number")
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--folder", type=Path, default=ROOT / "runs" / "teacher")
    ask.add_argument("--out", type=Path, default=ROOT / "assets" / "teacher.safetensors")
    ask.add_argument("--device", default="cpu", help="cpu or cuda")
    ask.add_argument("--workers", type=int, default=1, help="processes that film close-ups")
    make_teacher(**vars(ask.parse_args()))


if __name__ == "__main__":
    main()
