"""Talking full-body avatars made of 3D Gaussians: the module behind the course in `notebooks/`."""

import os

# Waiting OpenMP threads sleep instead of spinning: PyTorch's would otherwise take the cores from the renderer's own
# threads after every small operation. Only has an effect where this package is imported before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
