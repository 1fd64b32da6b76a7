"""Sizes of language models by arithmetic, for tests of the planner."""

from __future__ import annotations

from cluster.anatomy import Anatomy
from replora.models.shapes import TargetShape


def llama(width: int, hidden: int, depth: int, heads: int, vocabulary: int = 32_000) -> Anatomy:
    """A LLaMA of given sizes: no biases, two RMS norms a block, an untied head."""
    sizes: dict[str, tuple[int, ...]] = dict.fromkeys(("query", "key", "value"), (width, width, heads))
    sizes |= {
        "output": (width, width),
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
    }
    block = 4 * width**2 + 3 * width * hidden + 2 * width
    return Anatomy(
        family="llama",
        width=width,
        hidden=hidden,
        depth=depth,
        heads=heads,
        vocabulary=vocabulary,
        tokens=None,
        base_parameters=depth * block + width + 2 * vocabulary * width,
        layer_parameters=max(vocabulary * width, hidden * width),
        targets=[TargetShape(name, b, *size) for b in range(depth) for name, size in sizes.items()],
        keys=width,
    )


LLAMA_7B = llama(4096, 11008, 32, 32)
LLAMA_13B = llama(5120, 13824, 40, 40)
