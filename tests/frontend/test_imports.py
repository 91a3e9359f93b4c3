"""Which file of the command line imports which: from the commands down to what knows of none, and in no circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import hsta
import pytest

ROOT = Path(hsta.__file__).parent
# A part imports itself and what stands below it; parts on one floor do not know of each other.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("serving", "tuning"),
    ("results",),
    ("training",),
    ("data",),
    ("face", "generated"),
    ("files",),
    ("errors",),
)
FLOOR = {part: number for number, floor in enumerate(FLOORS) for part in floor}


def modules(root: Path) -> dict[str, Path]:
    """Every file below a package's folder by its dotted name within the package; the package itself is ``""``."""
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> dict[str, set[str]]:
    """The modules of a package that each of them imports: within functions too, and for type checkers only."""
    known = modules(root)
    graph = {}
    for name, path in known.items():
        folder = name if path.stem == "__init__" else name.rpartition(".")[0]
        asked = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    above = [root.name, *filter(None, folder.split("."))]
                    base = ".".join([*above[: len(above) - node.level + 1], *filter(None, [node.module])])
                asked |= {f"{base}.{alias.name}" for alias in node.names}
        graph[name] = set()
        for dotted in asked:
            if dotted.split(".")[0] == root.name:
                inner = ".".join(dotted.split(".")[1:])
                # ``from .module import name`` asks for a name in a module, ``from . import module`` for a module.
                graph[name].add(inner if inner in known else inner.rpartition(".")[0])
    return graph


def wrong_ways(graph: dict[str, set[str]]) -> list[str]:
    """Imports that lead up, or to another part of the same floor."""
    return [
        f"{name} imports {other or 'hsta'}"
        for name, others in graph.items()
        for other in others
        if (here := name.split(".")[0]) != (there := other.split(".")[0])
        and FLOOR.get(there, -1) <= FLOOR.get(here, len(FLOORS))
    ]


def test_every_part_has_its_floor():
    assert {name.split(".")[0] for name in modules(ROOT)} - {""} == set(FLOOR)


def test_imports_lead_down():
    assert not wrong_ways(imports(ROOT))


def test_no_circle():
    tuple(TopologicalSorter(imports(ROOT)).static_order())


@pytest.mark.parametrize(
    "planted", ["from . import metrics", "from .metrics import score", "def late():\n    import hsta.results.metrics"]
)
def test_a_circle_is_seen(tmp_path, planted):
    folder = tmp_path / "hsta" / "results"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "metrics.py").write_text("from .plots import draw")
    (folder / "plots.py").write_text(planted)
    with pytest.raises(CycleError):
        TopologicalSorter(imports(tmp_path / "hsta")).prepare()


@pytest.mark.parametrize(
    "planted", ["from ..cli import options", "from ..cli.options import DataOptions", "import hsta.cli"]
)
def test_a_wrong_way_is_seen(tmp_path, planted):
    for part in ("data", "cli"):
        (tmp_path / "hsta" / part).mkdir(parents=True)
        (tmp_path / "hsta" / part / "__init__.py").write_text("")
    (tmp_path / "hsta" / "cli" / "options.py").write_text("")
    (tmp_path / "hsta" / "data" / "clips.py").write_text(planted)
    assert len(wrong_ways(imports(tmp_path / "hsta"))) == 1
