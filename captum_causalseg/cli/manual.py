"""The page of the documentation about the command line, made from the parsers: ``python -m captum_causalseg.cli.manual > docs/command_line.md``."""

import argparse
import re
import sys

from captum_causalseg.cli.arguments import Parser, add_command
from captum_causalseg.cli.command import Command
from captum_causalseg.cli.commands import COMMANDS

__all__ = ["manual"]

_INTRODUCTION = """\
# Command line

`causalseg COMMAND --help` says the same in the terminal. Status 0 means that all went well, 1 that cases failed, 2 that something that was given cannot be used, which is then named in one line.
What a command has finished is kept where a later part fails. With `--json` a command prints one object for other programs and nothing else.
"""


def manual() -> str:
    """The page, in Markdown."""
    parser = Parser(prog="causalseg")
    commands = parser.add_subparsers(dest="command")
    parts = [_INTRODUCTION]
    for kind in COMMANDS:
        command = kind()
        add_command(commands, command)
        parts.append(_of_command(command, commands.choices[command.name]))
    return "\n".join(parts)


def _of_command(command: Command, parser: argparse.ArgumentParser) -> str:
    said = [f"## causalseg {command.name}", ""]
    for text in (command.description or command.help, command.epilog):
        for paragraph in (one.strip("\n") for one in text.split("\n\n") if one.strip()):
            # Lines of a table or an example are kept, as in the terminal.
            said += ["```text", paragraph, "```", ""] if "\n" in paragraph else [_plain(paragraph.strip()), ""]
    for group in parser._action_groups:
        options = [one for one in group._group_actions if one.option_strings != ["-h", "--help"]]
        if options:
            said += [f"### {(group.title or 'options').capitalize()}", "", *(_of_option(one) for one in options), ""]
    return "\n".join(said)


def _of_option(action: argparse.Action) -> str:
    words = action.metavar if isinstance(action.metavar, str) else "{" + ",".join(map(str, action.choices or ())) + "}"
    value = {0: "", "?": f" [{words}]", "+": f" {words} ..."}.get(action.nargs if action.nargs is not None else 1, f" {words}")
    return f"- `{', '.join(action.option_strings)}{value}`: {_plain((action.help or '').replace('%%', '%'))}"


def _plain(text: str) -> str:
    """What means something in Markdown is itself."""
    return re.sub(r"([*_<>|\[\]`])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    sys.stdout.write(manual())
