"""The house stands as it is drawn: imports go to a lower floor or a sibling, never in a circle, never inside a function.

Also: a file opens with what it knows, is short enough to read, and only the settings touch the environment.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "uim"
MOST_LINES = 400
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# From the ground up. A floor's files may import each other; `api` and `live` stand side by side and never do.
GROUND, MODEL, WIRE, STORE, CHAT, FRONTS, SERVER, ROOF = range(8)
FLOOR_OF = {
    "errors": GROUND,
    "config": GROUND,
    "log": GROUND,
    "metrics": GROUND,
    "admission": GROUND,
    "model": MODEL,
    "wire": WIRE,
    "store": STORE,
    "chat": CHAT,
    "api": FRONTS,
    "live": FRONTS,
    "admin": FRONTS,
    "listener": FRONTS,
    "head": FRONTS,
    "server": SERVER,
    "cli": ROOF,
    "__main__": ROOF,
}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "web" not in path.relative_to(PACKAGE).parts)
MODULES = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES}


def room_of(module: str) -> str:
    """The first part below the package: the floor's folder, or the file that stands alone."""
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> set[str]:
    """The modules of ours that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its floor"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {name for name in names if name in MODULES.values() and name != "uim"}


@pytest.mark.parametrize("path", SOURCES, ids=MODULES.get)
def test_imports_point_down_or_to_a_sibling(path: Path) -> None:
    here = room_of(MODULES[path])
    for imported in imports_of(path):
        there = room_of(imported)
        assert there in FLOOR_OF, f"{there} has no floor yet: give it one above"
        assert here == "" or FLOOR_OF[there] <= FLOOR_OF[here], f"{MODULES[path]} imports {imported}, which is above it"
        assert {here, there} != {"api", "live"}, f"{MODULES[path]} imports {imported}: the fronts never meet"


def test_no_circle_between_modules() -> None:
    def without_packages(path: Path) -> set[str]:
        # Importing `uim.store.people` names its package too, which imports nothing.
        return {name for name in imports_of(path) if not (PACKAGE.parent / Path(*name.split("."))).is_dir()}

    graph = {MODULES[path]: without_packages(path) for path in SOURCES if path.name != "__init__.py"}
    # static_order raises CycleError, which names the circle.
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) >= set(graph)


@pytest.mark.parametrize("path", SOURCES, ids=MODULES.get)
def test_no_import_inside_a_function(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, FUNCTIONS)]
    inner = [node.lineno for f in functions for node in ast.walk(f) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert inner == []


@pytest.mark.parametrize("path", SOURCES, ids=MODULES.get)
def test_a_file_opens_with_what_it_knows_and_stays_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "no docstring"


def test_only_the_settings_touch_the_environment() -> None:
    touching = [MODULES[path] for path in SOURCES if "environ[" in path.read_text() or "os.environ" in path.read_text()]
    assert touching == ["uim.config"]
