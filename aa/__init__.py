"""Talking full-body avatars made of 3D Gaussians: the module behind the course in `notebooks/`."""

__version__ = "0.1.0"
