"""docs/methods.md and the README's table of methods, from the cards: `python -m replora.methods.page`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from replora.config import ComposedMethod, MethodConfig
from replora.methods.cards import METHODS, Card
from replora.reading.schema import variants_of

__all__ = ["page", "readme_with_table", "table"]

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- methods: made by python -m replora.methods.page -->", "<!-- /methods -->"
_INTRODUCTION = """\
# Methods

Made from `replora/methods/cards.py` by `python -m replora.methods.page`. *Known* is stated in the paper or
recomputed exactly, *reported* is only in a secondary source, and *choice* is ours, because no source at hand
says.

`W0 [out, in]` is the frozen weight, `r` the rank, `s = alpha / r`, and `||.||_c` the norm of each output row.
A low-rank method is factors (where A and B come from) x composition (how the update enters the weight):
`method.composition` picks another one, for example `method: {name: replora, composition: weight-decomposed}`.
"""


def table() -> str:
    """Every method as a row: name, claim, equation, paper."""
    rows = [f"| `{name}` | {c.claim} | `{_cell(c.equation)}` | {c.paper} |" for name, c in METHODS.items()]
    return "\n".join(["| method | what | adapted weight | paper |", "|---|---|---|---|", *rows]) + "\n"


def page() -> str:
    """The whole of docs/methods.md."""
    models = variants_of(MethodConfig)
    return _INTRODUCTION + "".join(_section(name, card, models[name]) for name, card in METHODS.items())


def readme_with_table(readme: str) -> str:
    """README.md with its table of methods renewed, between the two marks."""
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{rest.partition(END)[2]}"


def _section(name: str, card: Card, model: type[BaseModel]) -> str:
    lines = [f"\n## {name}\n", card.claim, "", f"    {card.equation}", ""]
    lines += [f"Paper: {card.paper}.", ""] if card.paper else []
    lines += [f"Defaults: {', '.join(_defaults(model))}.", ""] if len(model.model_fields) > 1 else []
    for kind, statements in (("Known", card.known), ("Reported", card.reported), ("Choice", card.choice)):
        lines += [f"- *{kind}*: {statement}." for statement in statements]
    return "\n".join(lines).rstrip() + "\n"


def _defaults(model: type[BaseModel]) -> Iterator[str]:
    """`field = value` of a method's own configuration."""
    shown = model()
    for field, value in shown.model_dump(mode="json").items():
        noiseless = isinstance(shown, ComposedMethod) and shown.composition != "noised"
        if field != "name" and not (field == "tau" and noiseless):
            yield f"`{field} = {'[' + ', '.join(value) + ']' if isinstance(value, list) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    (ROOT / "docs/methods.md").write_text(page(), encoding="utf-8")
    readme_file = ROOT / "README.md"
    readme_file.write_text(readme_with_table(readme_file.read_text(encoding="utf-8")), encoding="utf-8")
