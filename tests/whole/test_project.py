"""The project's habits: what the files around the package promise each other."""

import ast
import configparser
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", MAKEFILE, re.MULTILINE))


def test_the_changelog_keeps_its_format():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert releases[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", release) for release in releases[1:])
    for release in text.split("\n## ")[1:]:
        sections = re.findall(r"^### (.+)$", release, re.MULTILINE)
        assert len(sections) == len(set(sections)), "each section once per release"
        assert set(sections) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
        first, *_ = release.split("\n### ")
        assert "\n- " not in first, "each entry is in a section"


def test_every_lower_bound_is_what_the_lowest_environment_installs():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.scripts]")[0].split("[project]")[1]
    bounds = dict(re.findall(r'"([a-z0-9-]+)>=([\d.]+)"', project))
    # Tools of lint and documentation, which are not run there, what has an environment of its own, and what needs a later pydicom.
    for tool in ("highdicom", "import-linter", "nnunetv2", "sphinx"):
        del bounds[tool]
    pins = dict(line.split("==") for line in (ROOT / "constraints-lowest.txt").read_text().splitlines() if line[0] != "#")
    assert {"torch", "numpy", "monai"} <= set(bounds)
    assert {name: _short(pin) for name, pin in pins.items()} == {name: _short(bound) for name, bound in bounds.items()}


def _short(version: str) -> str:
    return re.sub(r"(\.0)+$", "", version)


def test_the_wheel_holds_every_file_that_the_package_reads():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.findall(r'"([^"]+)"', re.search(r"^package-data\.captum_causalseg = \[(.*?)\]", project, re.M | re.S)[1])
    package = ROOT / "captum_causalseg"
    held = {file for pattern in patterns for file in package.glob(pattern)}
    others = {file for file in package.rglob("*.*") if file.suffix not in (".py", ".pyc")}
    assert package / "cli" / "pages" / "page.html" in others, "this test looks at the right thing"
    assert others == held


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_targets_that_there_are(path):
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    called = {target for line in lines for target in re.findall(r"\bmake ([a-z-]+)", line)}
    assert called, "this test looks at the right thing"
    assert called <= TARGETS


def test_what_continuous_integration_runs_is_there():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    run = {word for line in lines if line.startswith("make ") for word in line.split()[1:] if not word.startswith("-")}
    assert {"checks", "test"} <= run <= TARGETS
    checks = re.search(r"^checks: (.+)$", MAKEFILE, re.MULTILINE)[1].split()
    assert {"lint", "docs", "test-wheel"} == set(checks) <= TARGETS


def test_coverage_has_a_floor():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    assert settings.getfloat("coverage:report", "fail_under") > 50
    assert any("make coverage" in path.read_text(encoding="utf-8") for path in WORKFLOWS)


def test_hooks_before_a_commit_are_what_lint_runs():
    hooks = [hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"] for hook in repo["hooks"]]
    called = {hook["entry"].replace(".venv/bin/", "").replace(" --force-exclude", "") for hook in hooks}
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert called <= {re.sub(r" --check| \.$", "", line.replace("$(BIN)/", "")).strip() for line in lint.strip().splitlines()}


def test_slow_files_are_there():
    source = ast.parse((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    (slow,) = [node.value for node in source.body if isinstance(node, ast.Assign) and node.targets[0].id == "SLOW"]
    assert {name for name in ast.literal_eval(slow) if not (ROOT / "tests" / f"{name}.py").exists()} == set()
