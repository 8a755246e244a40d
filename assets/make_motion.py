"""Makes assets/motion.safetensors (and motion.json beside it): data, embedding, diffusion Transformer, refiner.

    python assets/make_motion.py [--clips 320] [--steps 2600] [--folder runs/motion] [--out assets/motion.safetensors]

The clips are kept in the folder, so that an interrupted run goes on. The notebooks 03 and 04 call the same functions.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    from aa.motion_training import make_motion_model

    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--clips", type=int, default=320)
    ask.add_argument("--embedding-steps", type=int, default=600)
    ask.add_argument("--steps", type=int, default=2600)
    ask.add_argument("--refiner-steps", type=int, default=200)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--folder", type=Path, default=ROOT / "runs" / "motion")
    ask.add_argument("--out", type=Path, default=ROOT / "assets" / "motion.safetensors")
    ask.add_argument("--device", default="cpu")
    make_motion_model(**vars(ask.parse_args()))


if __name__ == "__main__":
    main()
