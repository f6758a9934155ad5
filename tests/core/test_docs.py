"""The documentation does what it says: the page on adding a system is followed to the letter, snippets are run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.dummy import code_blocks
from support.tiny import write_tiny_llama

ROOT = Path(__file__).resolve().parents[2]


def command(line, place, **more):
    words = shlex.split(line)
    words = [sys.executable, "-m", "unbraid.cli", *words[1:]] if words[0] == "unbraid" else words
    environment = os.environ | {"UNBRAID_SYSTEMS_PATH": str(place / "my_systems"), "COLUMNS": "200"} | more
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A folder with every file that the page shows, written as it is shown."""
    place = tmp_path_factory.mktemp("page")
    for language, title, code in code_blocks((ROOT / "docs" / "adding-a-system.md").read_text(encoding="utf-8")):
        if title and language != "console":
            path = place / title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, encoding="utf-8")
    return place


def test_the_page_shows_all_files(followed):
    found = {str(path.relative_to(followed)) for path in followed.rglob("*") if path.is_file()}
    system = {f"my_systems/first_token/{name}" for name in ("__init__.py", "method.py", "study.py", "README.md")}
    assert found == {*system, "from_python.py", "tests/systems/test_first_token.py"}


def test_the_commands_of_the_page_run(followed):
    page = (ROOT / "docs" / "adding-a-system.md").read_text(encoding="utf-8")
    lines = next(code for language, _, code in code_blocks(page) if language == "console").splitlines()
    assert len(lines) == 4
    outputs = [command(line.removeprefix("$ "), followed) for line in lines]
    assert "first_token" in outputs[0]
    assert "2309.17453" in outputs[1]
    assert "--lengths" in outputs[2]
    assert "of the texts, in tokens" in outputs[2]
    assert (followed / "page" / "index.html").is_file()
    assert (followed / "page" / "result.json").is_file()


def test_the_python_of_the_page_runs(followed):
    command(f"{sys.executable} from_python.py", followed)


def test_the_test_of_the_page_passes(followed):
    command(f"{sys.executable} -m pytest -q -p no:cacheprovider tests/systems/test_first_token.py", followed)


def test_the_system_of_the_page_fulfils_the_contract(followed):
    tests = ROOT / "tests" / "contract" / "test_systems.py"
    line = f"{sys.executable} -m pytest -p no:cacheprovider -c {ROOT / 'pyproject.toml'} {tests} -k first_token"
    out = command(line, ROOT, UNBRAID_SYSTEMS_PATH=str(followed / "my_systems"))
    assert " passed" in out
    assert "skipped" not in out


def test_pages_are_made_from_card_readme_and_results(followed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setenv("UNBRAID_SYSTEMS_PATH", str(followed / "my_systems"))
    import pages

    monkeypatch.setattr(pages, "ROOT", tmp_path)
    page = pages.system_page("first_token")
    assert page.startswith("# First token\n")
    assert "Language models put much of their attention on the first token" in page
    assert "not measured yet" in page
    assert "::: unbraid.systems.first_token.method.FirstToken\n" in page
    assert "::: unbraid.systems.first_token.study.run\n" in page
    for name, created, holds in (("old", "2025-01-01", True), ("new", "2026-01-01", False)):
        claim = {"name": "sink", "measured": 0.25, "interval": [0.2, 0.3], "comparator": 0.5, "holds": holds}
        data = {"slug": "first_token", "claims": [claim], "meta": {"created": created, "seed": 3}}
        path = tmp_path / "results" / "first_token" / name / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(data))
    page = pages.system_page("first_token")
    assert "| 0.25 [0.2, 0.3] | 0.5 | **no** |" in page
    assert "Measured: `results/first_token/new` (seed 3, created 2026-01-01)." in page
    papers = pages.papers_page()
    assert "## Efficient Streaming Language Models with Attention Sinks" in papers
    assert 'unbraid.create("first_token", threshold=0.1)' in papers
    assert "| [`first_token`](x/first_token) | see | language |" in pages.system_table("x/{slug}")


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_lines_on_a_model_of_ones_own_run(page, tmp_path):
    write_tiny_llama(tmp_path / "my-model")
    blocks = code_blocks((ROOT / page).read_text(encoding="utf-8"))
    code = next(code for language, _, code in blocks if language == "python")
    assert len([line for line in code.splitlines() if line]) <= 12
    (tmp_path / "lines.py").write_text(code, encoding="utf-8")
    out = command(f"{sys.executable} lines.py", tmp_path, HF_HUB_OFFLINE="1")
    assert "model.layers." in out


def test_the_table_of_systems_in_the_readme_is_current():
    command(f"{sys.executable} tools/readme_table.py --check", ROOT)


def test_the_commands_of_the_pages_exist():
    pages = ("README.md", "docs/cli.md", "docs/index.md", "CONTRIBUTING.md", "AGENTS.md")
    shown = "\n".join(code for name in pages for _, _, code in code_blocks((ROOT / name).read_text(encoding="utf-8")))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z]+)\b", shown)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    verbs = set(re.findall(r"^(?:\$ )?unbraid ([a-z]+)", shown, re.MULTILINE))
    assert len(verbs) > 5
    for verb in verbs:
        assert "Usage:" in command(f"unbraid {verb} --help", ROOT), f"unbraid {verb}"


def test_the_places_that_agents_are_told_of_exist():
    text = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|docs|tests|tools|results|benchmarks)/[\w/.-]*)`", text)
    assert len(named) > 8
    for name in named:
        assert (ROOT / name).exists(), name


def test_local_links_of_the_root_pages_lead_somewhere():
    for page in ("README.md", "AGENTS.md", "CONTRIBUTING.md"):
        for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{page}: {link}"
