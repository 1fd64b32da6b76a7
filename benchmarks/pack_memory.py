"""Resident memory of a pack of K = 8 against K = 1: one base, however many trials.

A ViT of the shape of S/16 (21.6 million frozen parameters, 82 MiB) on images of 32 px, so that a copy of
the base would outweigh the activations. Each measurement is a process of its own: the resident memory
after some steps, less that of the same process with the base loaded and no trial. What it may hold is
computed: per trial the trained values, their gradients and two Adam moments (4 x 4 bytes each), and per
slot the activations that autograd saves.

Rows:
    growth          resident growth K = 1 -> 8 over the computed sum of seven more trials: at most 1.5
    vs-eight-bases  resident memory of the pack of 8 over that of 8 PEFT LoRA models with a base each, in
                    one process: at most 0.4
"""
