"""Files that contract suites of language models share."""

from __future__ import annotations

import pytest

from tests.contracts.llamas import Folders
from tests.replora.tiny_llama import save_commonsense, save_tiny_llama


@pytest.fixture(scope="package")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A tiny Llama with grouped queries, and commonsense files."""
    root = tmp_path_factory.mktemp("language")
    return save_tiny_llama(root / "llama"), save_commonsense(root / "data")
