"""`python -m ldm.commands` is `ldm`."""

import sys

from ldm.commands import main

sys.exit(main())
