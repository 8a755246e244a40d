"""Plot helpers: they draw what they were given, say so in words, and stay small."""

import base64
import json
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import torch

from aa import viz
from aa.media import write_video

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would show."""
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda *what, **how: outputs.append((what[0], how)))
    return outputs


def test_pictures_of_all_kinds_become_uint8():
    grey = viz.as_uint8(np.full((2, 3), 0.5))
    assert grey.shape == (2, 3, 3)
    assert (grey == 128).all()
    assert viz.as_uint8(torch.full((2, 3, 3), 2.0, requires_grad=True)).max() == 255
    assert viz.as_uint8(np.zeros((2, 3, 4), np.uint8)).shape == (2, 3, 3)
    with pytest.raises(ValueError, match="got"):
        viz.as_uint8(np.zeros((2, 3, 5)))


def test_contact_sheet_has_one_cell_per_frame_and_its_titles():
    figure = viz.contact_sheet(torch.rand(5, 8, 6, 3), columns=3, titles="abcde")
    assert len(figure.axes) == 6
    assert [ax.get_title() for ax in figure.axes] == [*"abcde", ""]
    assert sum(len(ax.images) for ax in figure.axes) == 5
    with pytest.raises(ValueError, match="at least one"):
        viz.contact_sheet([])


def test_compare_frames_states_the_psnr():
    a = np.zeros((4, 4, 3))
    assert "14.0 dB" in viz.compare_frames(a, a + 0.2).axes[2].get_title()
    assert "identical" in viz.compare_frames(a, a).axes[2].get_title()


def test_curves_differ_by_line_style_and_sit_at_frame_centres():
    figure = viz.plot_curves({"jaw": np.arange(5), "lips": torch.ones(5)})
    jaw, lips = figure.axes[0].lines
    assert jaw.get_linestyle() != lips.get_linestyle()
    np.testing.assert_allclose(jaw.get_xdata()[:2], [0.02, 0.06])


def test_phonemes_are_written_above_their_time():
    audio = np.sin(np.arange(16000) / 20).astype(np.float32)
    speech = SimpleNamespace(audio=audio, phonemes=[("h", 0.1, 0.2), ("aʊ", 0.2, 0.6), ("m", 0.9, 1.0)])
    figure = viz.plot_phonemes(speech, {"jaw": np.zeros(25)}, end=0.7)
    texts = {t.get_text(): t.get_position()[0] for t in figure.axes[0].texts}
    assert texts == {"h": pytest.approx(0.15), "aʊ": pytest.approx(0.4)}
    assert figure.axes[0].get_xlim() == (0, 0.7)


def test_a_given_axes_is_used():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    assert viz.plot_curves({"a": np.ones(3)}, ax=ax) is figure
    assert viz.plot_embedding2d(np.eye(3)[:, :2], ax=ax) is figure


def test_embedding_keeps_the_largest_spread():
    points = np.random.default_rng(0).normal(size=(50, 6)) * [9, 0.1, 0.1, 5, 0.1, 0.1]
    figure = viz.plot_embedding2d(points, labels=np.arange(50) % 2)
    drawn = figure.axes[0].collections
    assert len(drawn) == 2
    spread = np.concatenate([d.get_offsets() for d in drawn]).std(axis=0)
    np.testing.assert_allclose(spread, points.std(axis=0)[[0, 3]], rtol=0.05)


def test_alt_shows_a_picture_with_its_text(shown):
    viz.alt(viz.plot_curves({"a": np.ones(3)}), "a flat curve")
    (picture, how), (caption, _) = shown
    assert base64.b64decode(picture["image/png"]).startswith(b"\x89PNG")
    assert how["metadata"] == {"image/png": {"alt": "a flat curve"}}
    assert "a flat curve" in caption.data
    with pytest.raises(ValueError, match="sentence"):
        viz.alt(viz.plot_curves({}), " ")


def test_large_pictures_are_stored_as_jpeg(shown):
    viz.alt(viz.contact_sheet(np.random.default_rng(0).random((4, 99, 99, 3))), "noise")
    assert list(shown[0][0]) == ["image/jpeg", "text/plain"]
    json.dumps(shown[0][0])


def test_video_is_embedded_with_its_text(tmp_path):
    path = write_video(tmp_path / "a.mp4", np.zeros((3, 16, 16, 3), np.uint8))
    page = viz.show_video(path, width=99, text='says "hello"').data
    assert 'width="99"' in page
    assert "says &quot;hello&quot;" in page
    assert base64.b64decode(page.split("base64,")[1].split('"')[0]) == path.read_bytes()


def test_a_video_too_large_for_a_notebook_is_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", np.zeros((3, 16, 16, 3), np.uint8))
    monkeypatch.setattr(viz, "VIDEO_LIMIT", 100)
    with pytest.raises(ValueError, match="2 MB"):
        viz.show_video(path)


def test_save_png_leaves_only_the_picture(tmp_path):
    path = viz.save_png(viz.plot_curves({"a": np.ones(3)}), tmp_path / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]
