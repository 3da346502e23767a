"""What every test shares: no network, no telemetry, settings that start from nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.telemetry import quiet_telemetry
from tests.places import MIRROR, ROOT

quiet_telemetry()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = (
    "1"  # threads that wait for each other are slow beside a second worker
)
os.environ["PHASEWISE_TRACK"] = "false"
# A shell starts what it puts in the background deaf to Ctrl-C, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fresh_settings() -> Iterator[None]:
    """Settings are cached for a process; a test that changes the environment must be seen."""
    from tasks.settings import settings

    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture(scope="session")
def mirror() -> Path:
    """A folder of real text that stands in for the hub."""
    if not MIRROR.is_dir():
        pytest.skip("no mirror of the hub beside the repository (../shared/hub)")
    return MIRROR


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of tests/tiny.yaml on the planted corpus, ready to train. Copy it to change it."""
    from tasks import recipe as recipes
    from tasks.data.clean import clean
    from tasks.data.dedup import dedup
    from tasks.data.download import download
    from tasks.data.split import split
    from tasks.tokens.encode import encode
    from tasks.tokens.mix import mix
    from tasks.tokens.tokenizer import tokenizer
    from tasks.training.init import init
    from tasks.workspace import Workspace
    from tests.corpus import write_corpus

    root = tmp_path_factory.mktemp("tiny")
    (root / "params.yaml").write_text((ROOT / "tests/tiny.yaml").read_text())
    write_corpus(root / "corpus")
    workspace, recipe = Workspace(root), recipes.load(root / "params.yaml")
    for source in recipe.sources:
        download(workspace, recipe, source)
        clean(workspace, recipe, source)
    dedup(workspace, recipe)
    split(workspace, recipe)
    tokenizer(workspace, recipe)
    for source in recipe.sources:
        encode(workspace, recipe, source)
    for phase in recipe.phases:
        mix(workspace, recipe, phase)
    init(workspace, recipe)
    return root
