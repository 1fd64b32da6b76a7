"""The competition: what a skilled user writes with stock PEFT and stock Ray Tune."""
