"""Cards of methods: one for each method, and the documents that are made from them."""

from __future__ import annotations

import json
import subprocess
import sys

from replora.config import MethodConfig
from replora.methods.cards import METHODS
from replora.methods.page import ROOT, page, readme_with_table, table
from replora.reading.schema import variants_of


def test_every_method_has_a_card() -> None:
    assert list(METHODS) == list(variants_of(MethodConfig))


def test_documentation_of_methods_is_made_from_the_cards() -> None:
    assert (ROOT / "docs/methods.md").read_text(encoding="utf-8") == page()


def test_table_of_the_readme_is_made_from_the_cards() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table() in readme
    assert readme_with_table(readme) == readme


def test_a_card_is_one_sentence() -> None:
    claims = [card.claim for card in METHODS.values()]
    assert all(claim.endswith(".") and claim.count(". ") == 0 for claim in claims)


def test_ls_methods_reads_the_cards_without_torch() -> None:
    code = (
        "import sys; from replora.cli import main; status = main(['ls', 'methods', '--json']); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {row["name"]: row["summary"] for row in json.loads(done.stdout)} == {
        name: card.claim for name, card in METHODS.items()
    }
