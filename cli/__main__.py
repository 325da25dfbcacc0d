"""``python -m lthfunc_cli`` is ``lthfunc``."""

import sys

from .main import main

sys.exit(main())
