"""The verbs of one run, and `paper`. Nothing heavy is imported here."""

from __future__ import annotations

from replora.commands.listing import LS
from replora.commands.paper import PAPER
from replora.commands.running import EVAL, EXPORT, IMPORT, TRAIN
from replora.commands.showing import SHOW
from replora.verbs import Verb

__all__ = ["VERBS"]

VERBS: tuple[Verb, ...] = (LS, SHOW, TRAIN, EVAL, EXPORT, IMPORT, PAPER)
