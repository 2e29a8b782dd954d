"""`python -m echod` is the `echod` command."""

import sys

if __name__ == "__main__":
    # Python puts the current folder first, where a file could stand in front of an installed
    # module. The daemon adds it at the end.
    if not sys.flags.safe_path:
        del sys.path[0]

    from echod.cli import main

    sys.exit(main())
