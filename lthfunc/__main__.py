"""``python -m lthfunc`` is ``lthfunc``: the only file here that knows the commands, and nothing imports it."""

import sys

if __name__ == "__main__":
    from lthfunc_cli.main import main

    sys.exit(main())
