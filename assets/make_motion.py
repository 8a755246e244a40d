"""Makes assets/motion.safetensors (and motion.json beside it): data, embedding, diffusion Transformer, refiner.

    python assets/make_motion.py [--clips 480] [--steps 500 2600 300] [--folder runs/motion] [--out assets/motion.safetensors]
    accelerate launch --multi_gpu assets/make_motion.py --device cuda

Clips and checkpoints are kept in the folder: called again, an interrupted run goes on and ends in the same weights. With several
GPUs, run it once without `accelerate` until the clips are made. The notebooks 03 and 04 call the same functions.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    from aa.motion_training import make_motion_model

    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--clips", type=int, default=480)
    ask.add_argument("--steps", type=int, nargs=3, default=(500, 2600, 300), help="of embedding, diffusion and refiner")
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--folder", type=Path, default=ROOT / "runs" / "motion")
    ask.add_argument("--out", type=Path, default=ROOT / "assets" / "motion.safetensors")
    ask.add_argument("--device", default="cpu", help="cpu or cuda")
    ask.add_argument("--workers", type=int, default=1, help="processes that make clips")
    make_motion_model(**vars(ask.parse_args()))


if __name__ == "__main__":
    main()
