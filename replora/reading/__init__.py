"""From the text of a configuration file to a checked model, every fault with its line.

`document` reads YAML, `compose` and `overlay` lay files and overrides over each other, `validate` makes the
model by what `schema` knows of it, and `faults` says all that is wrong in one error. `replora.load` is the
way in.
"""
