"""Makes assets/layouts.safetensors: the shared particle layouts of 10 000, 40 000 and 60 000 particles (about 40 s)."""

from pathlib import Path

from aa.body import load_body
from aa.gaussians import make_layout, save_layouts

if __name__ == "__main__":
    body = load_body()
    save_layouts(body, [make_layout(body, n) for n in (10_000, 40_000, 60_000)], Path(__file__).parent / "layouts.safetensors")
