"""`python -m rayjepa.cli`: the command without its script."""

import sys

from rayjepa.cli import main

sys.exit(main())
