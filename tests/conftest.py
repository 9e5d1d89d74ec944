"What all tests share: the real data sets, and how nbval meets clean notebooks."
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")



@pytest.fixture(scope="session")
def public_data() -> Path:
    "The folder of public data sets: FTNB_TEST_DATA, or ../shared/data beside the checkout."
    folder = Path(os.environ.get("FTNB_TEST_DATA", ROOT.parent/"shared"/"data"))
    if not folder.is_dir():
        pytest.skip("no public data sets here; name their folder in FTNB_TEST_DATA")
    return folder


@pytest.fixture
def site(tmp_path, monkeypatch):
    "A site of its own: reports, cards and everything else under a temporary folder."
    from ftnb.foundation.settings import settings
    for name in ("reports", "data_cards", "store", "workbench"):
        monkeypatch.setenv(f"FTNB_{name.upper()}", str(tmp_path/name))
    monkeypatch.setenv("FTNB_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return settings()
