"""The documentation: what it shows runs, what it promises is there."""

import ast
import doctest
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest
import yaml

import captum_causalseg
from captum_causalseg import metrics
from captum_causalseg.evaluation import faithfulness
from captum_causalseg.evaluation.refute import REFUTERS
from captum_causalseg.layout import UNIT_KINDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
# What these modules name in __all__ is for users; the reference has to have it.
PUBLIC = (
    "captum_causalseg",
    "captum_causalseg.baselines",
    "captum_causalseg.cohort",
    "captum_causalseg.donors",
    "captum_causalseg.evaluation",
    "captum_causalseg.images",
    "captum_causalseg.metrics",
    "captum_causalseg.regions",
    "captum_causalseg.visualization",
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """Fenced blocks in these languages, and the lines where they begin."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start(2)) + 1, match.group(2))
        for match in BLOCK.finditer(text)
        if match.group(1) in languages
    ]


def examples(page: Path) -> doctest.DocTest:
    """Everything with a prompt on a page, as one session."""
    found = []
    for line, source in blocks(page, "pycon"):
        for example in doctest.DocTestParser().get_examples(source, page.name):
            example.lineno += line - 1
            found.append(example)
    return doctest.DocTest(found, {"__name__": "__main__"}, page.stem, str(page), 0, None)


WITH_EXAMPLES = [page for page in PAGES if examples(page).examples]


@pytest.fixture
def _tables_as_they_were():
    """Pages add to the open tables; other tests are not to meet that."""
    tables = metrics.METRICS, faithfulness.METRICS, REFUTERS, UNIT_KINDS
    before = [dict(table) for table in tables]
    yield
    for table, held in zip(tables, before):
        table.clear()
        table.update(held)


@pytest.mark.usefixtures("_tables_as_they_were")
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.name)
def test_what_a_page_shows_is_what_comes_out(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pages write files
    said: list[str] = []
    session = examples(page)
    outcome = doctest.DocTestRunner(verbose=False).run(session, out=said.append)
    assert outcome.attempted == len(session.examples)
    assert outcome.failed == 0, "".join(said)


def test_the_pages_that_show_how_have_examples():
    assert {"start.md", "cohort.md", "statistics.md", "speed.md", "recipes.md", "extending.md"} <= {
        page.name for page in WITH_EXAMPLES
    }


@named
def test_code_without_prompts_is_at_least_python(page):
    for line, source in blocks(page, "python"):
        try:
            ast.parse(textwrap.dedent(source))
        except SyntaxError as error:
            pytest.fail(f"{page.name}, line {line}: {error}")
        assert ">>>" not in source, f"{page.name}, line {line}: a block with prompts is pycon, or it does not run"


@named
def test_what_code_without_prompts_takes_from_the_package_is_there(page):
    for line, source in blocks(page, "python"):
        for node in ast.walk(ast.parse(textwrap.dedent(source))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "captum_causalseg":
                module = importlib.import_module(node.module)
                missing = [
                    alias.name
                    for alias in node.names
                    if not hasattr(module, alias.name) and not _is_module(f"{node.module}.{alias.name}")
                ]
                assert not missing, f"{page.name}, line {line}"


def _is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


# --- Links -----------------------------------------------------------------------------------------------------------


@named
def test_links_within_the_project_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        # A page of the folder above that is included here is read from here.
        assert target.exists() or (DOCS / file).exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}; there are {sorted(anchors(target))}"


def anchors(page: Path) -> set[str]:
    """As GitHub and MyST make them of headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    # What a page includes has headings as well.
    included = [
        page.parent / name for name in re.findall(r"^```\{include\} (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    for one in included:
        text += "\n" + one.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_contents():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = {line.strip() for tree in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL) for line in tree.splitlines()}
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= listed


# --- The reference ---------------------------------------------------------------------------------------------------


def documented() -> set[str]:
    """Full names of what api.md describes."""
    found, module = set(), ""
    for line in (DOCS / "api.md").read_text(encoding="utf-8").splitlines():
        directive = re.match(r"\.\. (?:auto|py:)(\w+):: (\S+)", line)
        if directive:
            found.add(directive.group(2))
            module = directive.group(2) if directive.group(1) == "module" else ""
        members = re.match(r"\s+:members:(.*)", line)
        if module and members:
            names = [name.strip() for name in members.group(1).split(",") if name.strip()]
            found |= {f"{module}.{name}" for name in names or importlib.import_module(module).__all__}
    return found


def test_every_public_name_is_in_the_reference():
    """By whatever path: what two modules name is described once."""
    described = {id(_resolved(name)) for name in documented()}
    missing = []
    for module in PUBLIC:
        for name in importlib.import_module(module).__all__:
            value = getattr(importlib.import_module(module), name)
            if not name.startswith("__") and not inspect.ismodule(value) and id(value) not in described:
                missing.append(f"{module}.{name}")
    assert not missing


def test_what_the_reference_describes_is_there():
    for name in documented():
        _resolved(name)


# A class on the page, and which of its parts: named one by one, or all of them.
_CLASS = re.compile(r"^\.\. autoclass:: (\S+)\n(?:\s+:members:(.*)\n)?", re.MULTILINE)


def public_values() -> dict[str, object]:
    """Every class and function that a door (``__all__``) or the reference names, and every method that the reference names.

    Tables, constants and type aliases are not among them: they say what they are where they are defined.
    """
    names = {name for module in PUBLIC for name in _doors(module)} | documented()
    for described, members in _CLASS.findall((DOCS / "api.md").read_text(encoding="utf-8")):
        names |= {f"{described}.{member.strip()}" for member in members.split(",") if member.strip()}
    values = {id(value): (name, value) for name in sorted(names) for value in [_resolved(name)]}
    return {name: value for name, value in values.values() if inspect.isclass(value) or _function_of(value) is not None}


def _doors(module: str) -> list[str]:
    return [f"{module}.{name}" for name in importlib.import_module(module).__all__]


def _function_of(value: object) -> object | None:
    function = value.fget if isinstance(value, property) else value
    return function if inspect.isroutine(function) else None


def has_example(value: object) -> bool:
    """An example whose result is asserted; pytest runs it (``--doctest-modules``)."""
    documentation = (value if inspect.isclass(value) else _function_of(value)).__doc__ or ""
    return any(example.want for example in doctest.DocTestParser().get_examples(documentation))


def test_every_public_name_has_an_example():
    """Of its own; a method or property may also be shown at work in its class's."""
    missing = [name for name, value in public_values().items() if not has_example(value)]
    assert [name for name in missing if not _shown(name.rpartition(".")[2], _resolved(name.rpartition(".")[0]))] == []


def _shown(part: str, of: object) -> bool:
    if not inspect.isclass(of):
        return False
    shown = "".join(example.source for example in doctest.DocTestParser().get_examples(of.__doc__ or ""))
    return re.search(rf"(\.|def ){part}\b", shown) is not None


def test_every_public_method_is_shown_at_work():
    """Of classes whose every part the reference describes: by an example of its own, or in its class's."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    in_part = [
        _resolved(name) for name, members in _CLASS.findall(page) if members.strip() or f":: {name}\n   :members:" not in page
    ]
    unseen = []
    for name, value in public_values().items():
        if not inspect.isclass(value) or value in in_part:
            continue
        inherited = {part for base in value.__mro__[1:] for part in vars(base)} - {"attribute"}
        for part, method in vars(value).items():
            function = method.__func__ if isinstance(method, (classmethod, staticmethod)) else method
            if part.startswith("_") or part in inherited or not inspect.isfunction(function):
                continue
            if not has_example(function) and not _shown(part, value):
                unseen.append(f"{name}.{part}")
    assert unseen == []


def _resolved(name: str) -> object:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        if _is_module(".".join(parts[:cut])):
            value: object = importlib.import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                value = getattr(value, part)
            return value
    raise ModuleNotFoundError(name)


def test_every_metric_of_the_table_is_explained_somewhere():
    text = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("method.md", "choosing.md"))
    hard = {name for name in metrics.METRICS if not name.startswith("soft_")}
    assert {name for name in hard if f"`{name}`" not in text} == set()


# --- The project's face ----------------------------------------------------------------------------------------------


def test_the_citation_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "type", "license", "version"} <= set(citation)
    assert citation["version"] == captum_causalseg.__version__
    assert citation["license"] == "BSD-3-Clause"
    assert all("name" in author or "family-names" in author for author in citation["authors"])
    assert any("2602.20511" in str(reference) for reference in citation["references"])


@pytest.mark.parametrize("name", ["bug", "feature", "question"])
def test_issue_forms_have_what_a_form_needs(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0
    for field in form["body"]:
        assert field["type"] in {"markdown", "input", "textarea", "dropdown", "checkboxes"}
        assert field["attributes"].get("value") if field["type"] == "markdown" else field["attributes"]["label"]
        assert field["type"] != "dropdown" or field["attributes"]["options"]
