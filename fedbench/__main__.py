"""`python -m fedbench`."""

import sys

from fedbench.cli import main

sys.exit(main())
