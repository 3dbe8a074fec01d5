"""What holds the project together and no other check sees."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import moc
from tools import lock, sizes

ROOT = Path(__file__).parents[2]
CLIENTS = sorted((ROOT / "tests" / "clients").glob("*.in"))
LOCKS = [ROOT / "constraints.txt", *(client.with_suffix(".txt") for client in CLIENTS)]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def test_one_version_everywhere() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    noted = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert noted is not None
    assert moc.__version__ == declared == noted[1]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_lock_pins_and_names_no_registry(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9._-]+(\[[a-z0-9,-]+\])?==[^\s/:@]+( ; .+)?", line), line
        assert "://" not in line


def test_make_help_tells_of_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {name for line in re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE) for name in line.split()}
    told = subprocess.run(["make", "--silent"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"serve", "test", "check"} <= targets
    assert set(re.findall(r"^  make (\S+) +\S", told, re.MULTILINE)) == targets


def test_make_installs_every_judging_client() -> None:
    named = re.search(r"^CLIENTS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named is not None
    assert sorted(named[1].split()) == [client.stem for client in CLIENTS]


def test_installer_can_be_read_by_an_old_python() -> None:
    ast.parse((ROOT / "tools" / "environment.py").read_text(), feature_version=(3, 7))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize(("lines", "found"), [(sizes.FUNCTION_LINES_MAX, 0), (sizes.FUNCTION_LINES_MAX + 1, 1)])
def test_sizes_bounds_functions(tmp_path: Path, lines: int, found: int) -> None:
    path = tmp_path / "noun.py"
    path.write_text("@decorated\nasync def long():\n" + "    pass\n" * (lines - 1))
    assert len(list(sizes.too_long(path))) == found


@pytest.mark.parametrize(("lines", "found"), [(sizes.FILE_LINES_MAX, 0), (sizes.FILE_LINES_MAX + 1, 1)])
def test_sizes_bounds_files(tmp_path: Path, lines: int, found: int) -> None:
    path = tmp_path / "noun.py"
    path.write_text("pass\n" * lines)
    assert len(list(sizes.too_long(path))) == found


@pytest.mark.parametrize(
    ("required", "said"),
    [("b-b>=2", ""), ("B_b>=2.6", "B_b>=2.6 is required, but b-b==2.5"), ("c", "c is not pinned")],
)
def test_lock_knows_what_does_not_fit(tmp_path: Path, required: str, said: str) -> None:
    path = tmp_path / "constraints.txt"
    path.write_text("# a comment\na==1\nb-b==2.5 ; sys_platform != 'win32'\n")
    found = list(lock.misfits(Requirement(required), lock.pins_of(path)))
    assert len(found) == bool(said)
    assert all(line.startswith(said) for line in found)
