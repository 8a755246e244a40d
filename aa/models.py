"""MediaPipe's models (Apache-2.0, inside its wheel), opened when they are asked for and fed with square crops."""

import contextlib
import os
import sys

import cv2
import numpy as np


class Models:
    """MediaPipe graphs, opened when first asked for and closed by the caller's exit stack."""

    def __init__(self, solutions, stack):
        self.stack, self.opened = stack, {}
        self.makers = {
            "near": lambda: solutions.face_detection.FaceDetection(model_selection=0, min_detection_confidence=0.4),
            "far": lambda: solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.4),
            "mesh": lambda: solutions.face_mesh.FaceMesh(
                static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.3
            ),
            "pose": lambda: solutions.pose.Pose(static_image_mode=True, model_complexity=1, enable_segmentation=True),
            "hands": lambda: solutions.hands.Hands(static_image_mode=True, max_num_hands=2, min_detection_confidence=0.35),
            "selfie": lambda: solutions.selfie_segmentation.SelfieSegmentation(model_selection=0),
        }

    def run(self, name: str, image: np.ndarray):
        """The answer of model `name` on image (H, W, 3) uint8 RGB."""
        if name not in self.opened:
            self.opened[name] = self.stack.enter_context(self.makers[name]())
        return self.opened[name].process(np.ascontiguousarray(image))


@contextlib.contextmanager
def quiet():
    """Silence the C++ log of MediaPipe and TensorFlow Lite, which write to file descriptor 2 whatever their settings."""
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def crop_square(image, centre, side: float, size: int):
    """A square of `side` px about `centre`, resampled to size x size, grey outside the photo.

    Returns: crop (size, size, 3) uint8 and a function that takes points (..., 2) from fractions of the crop to px of the image.
    """
    corner = np.asarray(centre, float) - side / 2
    scale = size / side
    matrix = np.array([[scale, 0, -scale * corner[0]], [0, scale, -scale * corner[1]]])
    if scale < 0.6:  # the warp has no antialiasing
        image = cv2.GaussianBlur(image, (0, 0), 0.4 / scale)
    crop = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(127, 127, 127))
    return crop, lambda points: np.asarray(points) * side + corner


def to_world(landmarks) -> np.ndarray:
    """MediaPipe's world landmarks (x image right, y down, z away) in the axes of `Person`, (n, 3) m."""
    points = np.array([(p.x, p.y, p.z) for p in landmarks.landmark], np.float32)
    return points[:, [0, 2, 1]] * np.array([1, 1, -1], np.float32)
