"""Backbones by name. `replora.models.load.load_backbone` builds one; this file imports nothing heavy."""

from __future__ import annotations

__all__ = ["BACKBONES"]

#: Name -> what it is. Any other timm ViT is `timm/<its name>`, any BART or language model of Llama's
#: form `hf/<folder or hub name>`.
BACKBONES: dict[str, str] = {
    "vit-digits": "ViT of width 64 and 4 layers, pre-trained here on the handwritten digits 0 to 4",
    "vit-ti16": "ViT-Ti/16 at 224 px, ImageNet-21k (timm vit_tiny_patch16_224.augreg_in21k)",
    "vit-s16": "ViT-S/16 at 224 px, ImageNet-21k (timm vit_small_patch16_224.augreg_in21k)",
    "vit-b16": "ViT-B/16 at 224 px, ImageNet-21k (timm vit_base_patch16_224.augreg_in21k)",
    "vit-l16": "ViT-L/16 at 224 px, ImageNet-21k (timm vit_large_patch16_224.augreg_in21k)",
    "video-swin-nano": "a Video Swin of width 16 and two stages for first tries; it has no published weights",
    "video-swin-t": "Video Swin-T, Kinetics-400 (torchvision swin3d_t)",
    "video-swin-s": "Video Swin-S, Kinetics-400 (torchvision swin3d_s)",
    "video-swin-b": "Video Swin-B, Kinetics-400 (torchvision swin3d_b)",
    "llama-7b": "LLaMA-7B; give its local folder in backbone.weights",
    "llama-13b": "LLaMA-13B; give its local folder in backbone.weights",
    "bart-base": "BART-base (facebook/bart-base), from texts to texts",
    "vl-bart-image": "BART-base that also sees features of width 2048; its biases train beside any method",
    "vl-bart-video": "BART-base that also sees features of width 512; its biases train beside any method",
}
