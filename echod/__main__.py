"""The `echod` command, also as `python -m echod`."""

import signal
import sys


def main() -> int:
    """Run the command; return the exit code."""
    # Until a command handles signals itself, Ctrl-C ends it at once, without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from echod import cli  # slow to import
    except ModuleNotFoundError as error:
        found = getattr(sys.modules.get("twisted"), "__file__", None)
        if found is None or not str(error.name).startswith("twisted."):
            raise
        raise SystemExit(
            f"echod: {found!r} hides Twisted: remove that file, or take its folder from PYTHONPATH"
        ) from None
    return cli.main()


if __name__ == "__main__":
    # Python puts the current folder first, where a file could stand in front of an installed
    # module. The daemon adds it at the end.
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.exit(main())
