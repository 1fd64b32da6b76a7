"""One card per method: what it claims, its equation, its paper, how sure each statement is. Without torch.

`replora ls methods`, docs/methods.md and the README's table are made from these cards:
`python -m replora.methods.page`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["METHODS", "Card"]


@dataclass(frozen=True)
class Card:
    """What is to be said of a method; its defaults are those of its configuration.

    Attributes:
        claim: What it is, in one sentence.
        equation: The adapted weight or output.
        paper: Where it comes from; empty where nowhere.
        known: Stated in the paper, or recomputed exactly.
        reported: Only in a secondary source.
        choice: Ours, because no source at hand says.
    """

    claim: str
    equation: str
    paper: str = ""
    known: tuple[str, ...] = ()
    reported: tuple[str, ...] = ()
    choice: tuple[str, ...] = ()


_GENERATOR = (
    "one hidden layer per side: A_t[j] = head_A,t . act(W1[:, j] a_j + bias), and the same for B",
    "GELU and a hidden bias, because a ReLU unit without one stays dead once it is dead",
    "seeds start at 1, the A-heads give A the deviation of LoRA's, the B-heads start at zero",
)
METHODS: dict[str, Card] = {
    "replora": Card(
        claim="RepLoRA: A and B are outputs of small generators shared by the targets of a block.",
        equation="W0 + s B A, [A_Q, A_V] = g_A(a), [B_Q, B_V] = g_B(b)",
        paper="Truong et al., RepLoRA, ICML 2025, arXiv 2502.03044",
        known=(
            "two MLPs, each shared by the query and the value of a block",
            "the seeds a and b are learned diagonal matrices",
        ),
        reported=("after training only A and B are kept: inference costs what LoRA costs",),
        choice=(*_GENERATOR, "dense seeds, unshared generators, one generator for all blocks: ablations"),
    ),
    "lora": Card(
        claim="LoRA: A and B are learned directly, B starts at zero.",
        equation="W0 + s B A, s = alpha / r",
        paper="Hu et al., LoRA, ICLR 2022",
        known=("B starts at zero, A uniform in +-1 / sqrt(in)",),
    ),
    "dora": Card(
        claim="DoRA: LoRA's A and B, with the magnitude of each output learned apart.",
        equation="m (W0 + s B A) / ||W0 + s B A||_c",
        paper="Liu et al., DoRA, ICML 2024",
        known=("m starts at ||W0||_c", "the norm is a constant in the gradient (section 4.3)"),
        choice=(
            "dropout leaves the input of the base's own product alone; PEFT drops part of it",
            "a slice of a fused linear has magnitudes of its own rows alone",
        ),
    ),
    "doran": Card(
        claim="DoRAN: A and B from auxiliary networks with a shared first layer, and noise in DoRA's norm.",
        equation="m (W0 + s B A) / (||W0 + s B A||_c + tau)",
        paper="Diep et al., DoRAN, arXiv 2510.04331",
        reported=(
            "tau is positive and learned",
            "one-hidden-layer networks whose first layer is shared by query, value and their heads",
        ),
        choice=(
            "tau = softplus of one learned number per target and block, at first 0.1",
            "m starts at ||W0||_c + tau, so that training starts at W0",
            "the norm is a constant in the gradient, as in DoRA",
            "the seeds are dense",
            *_GENERATOR,
        ),
    ),
    "hora": Card(
        claim="HoRA: networks shared by all attention heads of a block make an A a target and a B a head.",
        equation="W0_n + s B_n A for each attention head n, [A_Q, A_V] = g_A(a), B_n = g_B(b_n)",
        paper="Diep et al., HoRA, arXiv 2510.04295",
        known=("low-rank matrices of all heads come from a joint hypernetwork, with few more parameters",),
        reported=("A_Q and A_V come from one learned seed; each head has a B_Q,n and a B_V,n",),
        choice=(
            "each head has a dense seed b_n of its own, at first normal with deviation 1 / sqrt(r)",
            "the heads of a target share the output layer: B_n[:, j] = head_B . act(W1 b_n[:, j] + bias)",
            "the B of all heads under one another are the B of a plain LoRA of the same rank",
            "with grouped queries a target has as many B as it has heads",
            *_GENERATOR[:2],
            "the A-seed starts at the identity, the A-heads give A the deviation of LoRA's",
            "the B-heads start at zero",
        ),
    ),
    "adapter": Card(
        claim="Bottleneck adapter: a small MLP with a skip around it, after a linear or beside it.",
        equation="y + s U act(D y), y = W0 x (series), or y + s U act(D x) (parallel)",
        paper="Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019",
        known=(
            "`bottleneck: 256` in series on `down` has the 0.99 % and 0.80 % of the RepLoRA paper's adapters "
            "on LLaMA-7B and 13B: 67,108,864 and 104,857,600, divided by base and adapters together",
        ),
        reported=(
            "LLM-Adapters' code: width 256, tanh, no biases, s = 1, no dropout, each adapter on one linear",
            "its parallel adapters are on `up` and `down`, which gives the 3.54 % of its table on LLaMA-7B",
            "its code draws both matrices from N(0, 0.02^2), so it does not start at the base",
        ),
        choice=(
            "U starts at zero, so training starts at W0 to the bit; D uniform in +-1 / sqrt(in)",
            "width 64, because smaller backbones than LLaMA are adapted too",
            "in series it reads its linear's output; LLM-Adapters puts those of `up` and `gate` before it",
            "not linear, so it cannot be merged into the weights",
        ),
    ),
    "prefix": Card(
        claim="Prefix tuning: learned keys and values that every query of every attention also sees.",
        equation="attention(q, [K; P_K], [V; P_V]), P_K and P_V learned or made by one MLP",
        paper="Li and Liang, Prefix-Tuning, ACL 2021",
        known=(
            "10 tokens have the 0.03 % of the RepLoRA paper's prefix on LLaMA-13B (4,096,000); its 0.11 % "
            "on 7B fits 10 tokens (0.04) as little as 30 (0.12)",
        ),
        reported=(
            "LLM-Adapters trains 10 tokens at a learning rate of 3e-2",
            "PEFT: keys are not rotated, tokens begin at position P, keys and values start from N(0, 1); "
            "the MLP has one tanh layer that all blocks share",
        ),
        choice=(
            "training does not start at the base: even keys and values of zero take a part of each "
            "query's attention",
            "the MLP is 512 wide (PEFT: as wide as the keys) and its embeddings as wide as the first keys",
            "a ViT's class token and patches see it in every block, in addition to each other",
            "not a change of weights, so it cannot be merged into them",
        ),
    ),
    "full": Card(
        claim="Full fine-tuning: every weight of the backbone and the head trains.",
        equation="W",
    ),
    "linear-probe": Card(
        claim="Linear probe: only the task head trains.",
        equation="W0",
        choice=("the usual floor; not in the paper",),
    ),
}
