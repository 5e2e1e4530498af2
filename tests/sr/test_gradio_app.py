"""The app of the guide: its page shows the file itself, and the real gradio serves it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from elasticnet.sr import Upscaler

ROOT = Path(__file__).parents[2]
APP = ROOT / "docs" / "gradio" / "app.py"
PAGE = ROOT / "docs" / "guides" / "checkpoints.md"


def test_the_guide_shows_the_app_as_it_is() -> None:
    assert f"```py\n{APP.read_text(encoding='utf-8')}```" in PAGE.read_text(encoding="utf-8")


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app's module, imported where nothing is reported to anybody."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("gradio", reason='needs pip install "elastic-depth[gradio]"')
    spec = importlib.util.spec_from_file_location("gradio_app", APP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_browser_gets_the_photograph_enlarged_at_the_depth_of_the_slider(
    app: Any, tmp_path: Path
) -> None:
    from gradio_client import (  # pyright: ignore[reportMissingImports] - comes with gradio
        Client,
        handle_file,
    )

    photo = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    _, url, _ = app.app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False, download_files=str(tmp_path / "got"))
        result = client.predict(handle_file(str(tmp_path / "photo.png")), 1, api_name="/enlarge")
    finally:
        app.app.close()

    expected = Upscaler(scale=4)(photo, depth=1)
    np.testing.assert_array_equal(np.asarray(Image.open(result)), expected)
