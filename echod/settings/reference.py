"""Make the reference of the settings from their definitions: docs/settings.md and etc/echod.toml.

`make docs` writes both; a test fails if they differ from the settings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from echod.limits import Limits
from echod.settings.definitions import SETTINGS
from echod.settings.schema import Setting, by_section

# The part of docs/settings.md after this line is made here; the part before it is written by hand.
MARK = (
    "<!-- From here on made by `make docs` from echod/settings/definitions.py and "
    "echod/limits.py: edit those. -->\n"
)

FILE = """\
# The settings of echod, each with its default: uncomment the ones that you change, and run
#   twistd -n echod --config echod.toml
# A flag on the command line wins over this file. Made by `make docs`: see docs/settings.md.
"""


def tables() -> str:
    """Return the generated part of docs/settings.md: every setting, and the limits' reasons."""
    lines = [MARK]
    for section, members in by_section(SETTINGS).items():
        lines += [f"## {section}", "", "| setting | default | reload | meaning |"]
        lines += ["| --- | --- | --- | --- |", *map(_row, members), ""]
        reasons = [reason for one in members for reason in _reason(one)]
        lines += ["The reasons for these defaults:", "", *reasons, ""] if reasons else []
    return "\n".join(lines)


def _row(one: Setting) -> str:
    default = one.shown_default or ("off" if one.native is bool else "")
    unit = f" {one.text.unit}" if one.text.unit and not one.text.unset else ""
    cells = (
        f"`{one.key}`",
        _cell(f"{default}{unit}"),
        "yes" if one.text.reload else "",
        _cell(one.text.help),
    )
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _reason(one: Setting) -> Iterator[str]:
    """Yield the reason for a limit's default, if the setting is a limit."""
    for limit in fields(Limits):
        if limit.name == one.name and "why" in limit.metadata:
            yield f"- `{one.key}`: {limit.metadata['why']}"


def annotated_file() -> str:
    """Return etc/echod.toml: every key, commented out, with its help."""
    lines = [FILE]
    for section, members in by_section(SETTINGS).items():
        lines += [f"\n## {section}\n"]
        for one in members:
            lines += textwrap.wrap(
                one.sentence,
                98,
                initial_indent="# ",
                subsequent_indent="# ",
                break_on_hyphens=False,
            )
            lines.append(f"#{one.key} = {one.in_file(example(one))}\n")
    return "\n".join(lines)


def example(one: Setting) -> object:
    """Return a value for the file: the default, or an example if there is none."""
    return one.default if one.default not in (None, ()) else one.text.example


def main() -> None:
    """Write both files, in the repository whose root is the current folder."""
    page = Path("docs/settings.md")
    page.write_text(page.read_text().partition(MARK)[0] + tables())
    Path("etc/echod.toml").write_text(annotated_file())


if __name__ == "__main__":
    main()
