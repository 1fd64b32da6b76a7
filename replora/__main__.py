"""`python -m replora` is the program `replora`."""

import sys

from replora.cli import main

sys.exit(main())
