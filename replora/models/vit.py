"""A plain ViT whose parameters have timm's names, and the blocks that timm's own ViTs run here, too.

Two things are done that timm does not do. A head reads the class token alone, so the last block computes
this one token: its keys and values come from all tokens, its query, output projection and MLP only from
the first. And attention over short sequences is one autograd function, for torch's fused kernel is slower
there, and torch's plain operations copy more than they compute (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replora.models.prefix import Prefix

__all__ = ["Vit", "VitAttention", "VitBlock", "unfuse_short_attention"]

_SHORT_SEQUENCE = 65  # tokens; choice: the next standard size, 197, is better off with the fused kernel
_EPS = 1e-6  # of the norms, as timm has it


class VitAttention(nn.Module):
    """Attention of the first `queries` tokens (None: of all) over all tokens and, if it has one, a prefix.

    Args:
        qkv: Makes queries, keys and values, in this order, heads one after the other within each.
        proj: Of the output.
        heads: H.
        norms: Of queries, of keys and of the output; None where there are none.
        gate: Logits of what lets the output through; None where nothing does.
    """

    def __init__(
        self,
        qkv: nn.Linear,
        proj: nn.Linear,
        heads: int,
        norms: tuple[nn.Module, nn.Module, nn.Module] | None = None,
        gate: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.qkv, self.proj, self.gate = qkv, proj, gate
        self.num_heads, self.head_dim = heads, qkv.out_features // 3 // heads
        self.q_norm, self.k_norm, self.norm = norms or (nn.Identity(), nn.Identity(), nn.Identity())
        self.queries: int | None = None
        self.fused_attn = True
        self._prefix: tuple[Mapping[str, Prefix], str] | None = None

    def see(self, prefixes: Mapping[str, Prefix], path: str) -> None:
        """From now on, the prefix that the mapping holds under this path is seen beside the tokens."""
        self._prefix = prefixes, path

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, T, d]` to `[rows, Q, d]`."""
        seen = self.norm(self._attend(self.qkv(x), x.shape[1]))
        gated = seen if self.gate is None else seen * self.gate(x[:, : self.queries]).sigmoid()
        out: Tensor = self.proj(gated)
        return out

    def _attend(self, qkv: Tensor, tokens: int) -> Tensor:
        """`[rows, T, 3 d]` to `[rows, Q, d]`."""
        normed = not all(type(norm) is nn.Identity for norm in (self.q_norm, self.k_norm))
        if not (self.fused_attn or normed or self._prefix):
            short: Tensor = _ShortAttention.apply(qkv, self.num_heads, self.queries or tokens)
            return short
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, mask = self.q_norm(query[:, :, : self.queries]), self.k_norm(key), None
        if self._prefix is not None:
            prefix = self._prefix[0][self._prefix[1]]
            mask = prefix.sight.mask(query, tokens)
            key, value = prefix.beside(key, value)
        if self.fused_attn:
            # Beside a prefix a copy of the query alone, so that what backward keeps is not the whole qkv.
            query = query if self._prefix is None else query.contiguous()
            seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            seen = (scores if mask is None else scores + mask).softmax(-1) @ value
        return seen.transpose(1, 2).flatten(2)


class VitBlock(nn.Module):
    """A pre-norm block; of the first `attn.queries` tokens alone where the attention says so."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        """Of modules `norm1`, `attn`, `norm2` and `mlp`, and perhaps scales `ls1` and `ls2`."""
        super().__init__()
        self.norm1, self.attn = parts["norm1"], parts["attn"]
        self.norm2, self.mlp = parts["norm2"], parts["mlp"]
        self.ls1, self.ls2 = parts.get("ls1", nn.Identity()), parts.get("ls2", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, T, d]` to `[rows, Q, d]`."""
        first: Tensor = x[:, : self.attn.queries] + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = first + self.ls2(self.mlp(self.norm2(first)))
        return out


class _Mlp(nn.Module):
    """Two linears with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Vit(nn.Module):
    """A ViT with a class token, learned positions and MLPs four times as wide as the tokens.

    Its state is that of timm's `VisionTransformer`, and so are the calls that PEFT's users make of it. It is
    here because the import of timm takes longer than that of torch.

    Args:
        patches: Of an image.
        patch: Pixels of a patch's side.
        channels: Of an image.
        width: Of a token, d.
        depth: Blocks.
        heads: Of each attention.
    """

    def __init__(self, patches: int, patch: int, channels: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.num_features = self.embed_dim = width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        # Uniform, because normal numbers on the meta device import all of torch's compiler.
        self.pos_embed = nn.Parameter(torch.empty(1, patches + 1, width).uniform_(-0.02, 0.02))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, width, patch, patch)
        self.blocks = nn.Sequential(*(_block(width, heads) for _ in range(depth)))
        only_first(self.blocks)
        self.norm = nn.LayerNorm(width, _EPS)
        self.head: nn.Module = nn.Identity()

    def forward_features(self, image: Tensor) -> Tensor:
        """The class token after the last norm, `[rows, 1, d]`, of images `[rows, channels, H, W]`."""
        patches = self.patch_embed.proj(image).flatten(2).transpose(1, 2)  # type: ignore[operator]
        tokens = torch.cat([self.cls_token.expand(len(image), -1, -1), patches], 1) + self.pos_embed
        features: Tensor = self.norm(self.blocks(tokens))
        return features

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits `[rows, classes]`, or the features `[rows, d]` before the head."""
        first = tokens[:, 0]
        return first if pre_logits else self.head(first)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images; features while there is no head."""
        return self.forward_head(self.forward_features(image))

    def reset_classifier(self, num_classes: int) -> None:
        """A new head, with random weights."""
        self.head = nn.Linear(self.num_features, num_classes)


def _block(width: int, heads: int) -> VitBlock:
    attention = VitAttention(nn.Linear(width, 3 * width), nn.Linear(width, width), heads)
    norms = {"norm1": nn.LayerNorm(width, _EPS), "norm2": nn.LayerNorm(width, _EPS)}
    return VitBlock({**norms, "attn": attention, "mlp": _Mlp(width, 4 * width)})


def only_first(blocks: nn.Sequential) -> None:
    """Lets the last of these blocks compute the first token alone."""
    blocks[-1].attn.queries = 1  # type: ignore[union-attr]


def unfuse_short_attention(model: nn.Module) -> None:
    """Plain attention where sequences are short: torch's fused CPU kernel is slower there.

    Measured at 17 tokens, forward and backward: 2.2 against 3.4 microseconds a head (docs/log.md).
    """
    positions = getattr(model, "pos_embed", None)
    if isinstance(positions, Tensor) and positions.shape[1] <= _SHORT_SEQUENCE:
        for module in model.modules():
            if isinstance(module, VitAttention):
                module.fused_attn = False


class _ShortAttention(torch.autograd.Function):
    """`softmax(q k^T / sqrt(D)) v` for the first Q tokens: `[rows, T, 3 H D]` to `[rows, Q, H D]`."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, queries: int) -> Tensor:
        rows, tokens, _ = qkv.shape
        parts = qkv.view(rows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)
        query, key, value = parts
        scores = torch.bmm(query[:, :queries], key.transpose(1, 2)).mul_(key.shape[2] ** -0.5)
        weights = scores.softmax(-1)
        ctx.save_for_backward(parts, weights)
        return _merged(torch.bmm(weights, value), rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        parts, weights = ctx.saved_tensors
        query, key, value = parts
        rows, queries, width = grads[0].shape
        tokens, scale = key.shape[1], key.shape[2] ** -0.5
        seen = grads[0].view(rows, queries, -1, key.shape[2]).transpose(1, 2).flatten(0, 1)
        made = torch.empty_like(parts)
        torch.bmm(weights.transpose(1, 2), seen, out=made[2])
        by_weight = torch.bmm(seen, value.transpose(1, 2))
        scores = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype).mul_(scale)
        made[0, :, queries:] = 0
        made[0, :, :queries] = torch.bmm(scores, key)
        torch.bmm(scores.transpose(1, 2), query[:, :queries], out=made[1])
        whole = made.view(3, rows, -1, tokens, key.shape[2]).permute(1, 3, 0, 2, 4)
        return whole.reshape(rows, tokens, 3 * width), None, None


def _merged(seen: Tensor, rows: int) -> Tensor:
    """`[rows * H, Q, D]` to `[rows, Q, H * D]`."""
    return seen.view(rows, -1, *seen.shape[1:]).transpose(1, 2).flatten(2)
