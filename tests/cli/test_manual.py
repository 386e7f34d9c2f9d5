"""The page about the command line says what the parsers say."""

from pathlib import Path

from captum_causalseg.cli.commands import COMMANDS
from captum_causalseg.cli.manual import manual

PAGE = Path(__file__).parents[2] / "docs" / "command_line.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == manual(), "python -m captum_causalseg.cli.manual > docs/command_line.md"


def test_every_command_and_its_options_are_there():
    text = manual()
    assert [f"## causalseg {command.name}" in text for command in COMMANDS] == [True] * len(COMMANDS)
    explain = text.partition("## causalseg explain")[2].partition("\n## ")[0]
    assert "- `--image FILE ...`: the image to explain" in explain
    assert "- `--json`: print one JSON object" in explain
    assert r"e.g. \"decoder.\*\"".replace('\\"', '"') in explain
    assert "- `--ray [ADDRESS]`: run on a Ray cluster" in text
