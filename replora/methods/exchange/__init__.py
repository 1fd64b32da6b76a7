"""The only package that knows PEFT: adapters as folders for other programs, and our methods inside PEFT."""
