"""`python -m aa`: see `aa.cli`."""

import sys

from aa.cli import main

sys.exit(main())
