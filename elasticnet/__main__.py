"""`python -m elasticnet`: the same as the command `elasticnet`."""

import sys

from elasticnet.cli import main

sys.exit(main())
