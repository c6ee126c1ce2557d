"""The size and shape of `app/` as a table: `python -m benchmarks.structure [CHECKOUT ...]`, one column a checkout.

Floors are the longest chain of imports between rooms (packages, or modules at the top level), import circles counted as
one floor; both from the imports that run when a module is loaded or a function called, not those for type checkers.
"""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

BELOW_BUILD = ("engine", "core", "hooks", "data", "models", "optim", "metrics", "checkpoint", "visualizer")


def modules(root: Path) -> dict[str, Path]:
    found = {}
    for path in sorted((root / "app").rglob("*.py")):
        parts = path.relative_to(root / "app").with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules of ours that `path` imports, at any depth, except below TYPE_CHECKING."""
    found: set[str] = set()
    queue: list[ast.AST] = [ast.parse(path.read_text())]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        queue += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "app":
            parent = node.module.removeprefix("app").lstrip(".")
            for alias in node.names:
                full = f"{parent}.{alias.name}".lstrip(".")
                found.add(full if full in known else parent)
    return found


def components(graph: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected components, each after those that it imports (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            component = set(stack[stack.index(name) :])
            del stack[stack.index(name) :]
            found.append(component)

    for name in graph:
        if name not in index:
            visit(name)
    return found


def floors(graph: dict[str, set[str]]) -> int:
    height: dict[str, int] = {}
    for component in components(graph):
        below = [height[other] for name in component for other in graph[name] if other not in component]
        height |= dict.fromkeys(component, 1 + max(below, default=0))
    return max(height.values())


def comment_lines(source: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(token.type == tokenize.COMMENT and not token.string.startswith("# type:") for token in tokens)


def long_functions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno + 1 > 40:
            yield node.name


def imported_by_main(root: Path) -> int:
    """Modules of ours in the process of one default run."""
    script = (
        "import atexit, os, sys\n"
        "def show():\n"
        "    print('MODULES', sum(n == 'app' or n.startswith('app.') for n in sys.modules), flush=True)\n"
        "real = os._exit\n"
        "os._exit = lambda code: (show(), real(code))\n"
        "sys.argv = ['app', 'train.max_epochs=1', 'output_root=/tmp/structure']\n"
        "import runpy\n"
        "try: runpy.run_module('app', run_name='__main__')\n"
        "except SystemExit: show()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("MODULES")]
    return int(lines[-1].split()[1]) if lines else -1


def measure(root: Path) -> dict[str, str]:
    found = modules(root)
    sources = {name: path.read_text() for name, path in found.items()}
    graph = {name: imports(path, set(found)) & set(found) - {name} for name, path in found.items()}
    rooms: dict[str, set[str]] = {}
    for name, others in graph.items():
        rooms.setdefault(name.partition(".")[0], set()).update(other.partition(".")[0] for other in others)
    rooms = {room: others - {room} for room, others in rooms.items()}
    lines = {name: source.count("\n") for name, source in sources.items()}
    total = sum(lines.values())
    table = {"lines": f"{total:,}", "files": str(len(found))}
    for room in sorted({name.partition(".")[0] for name in found if "." in name}):
        own = [name for name in found if name == room or name.startswith(f"{room}.")]
        table[f"  {room}/"] = f"{sum(lines[name] for name in own):,} in {len(own)}"
    top = [name for name in found if "." not in name and not any(other.startswith(f"{name}.") for other in found)]
    table["  top level"] = f"{sum(lines[name] for name in top):,} in {len(top)}"
    table["modules imported by python -m app"] = str(imported_by_main(root))
    table["floors of rooms"] = str(floors(rooms))
    table["arrows between rooms"] = str(sum(map(len, rooms.values())))
    table["rooms in circles"] = str(sum(len(c) for c in components(rooms) if len(c) > 1))
    table["modules in circles"] = str(sum(len(c) for c in components(graph) if len(c) > 1))
    table["functions over 40 lines"] = str(sum(len(list(long_functions(ast.parse(s)))) for s in sources.values()))
    table["files over 250 lines"] = str(sum(count > 250 for count in lines.values()))
    table["comment lines"] = f"{100 * sum(map(comment_lines, sources.values())) / total:.1f} %"
    below = [source for name, source in sources.items() if name.partition(".")[0] in BELOW_BUILD]
    table["`Any` below build"] = str(sum(source.count("Any") - source.count("import Any") for source in below))
    return table


def main(roots: list[Path]) -> None:
    tables = [measure(root) for root in roots]
    keys = dict.fromkeys(key for table in tables for key in table)
    for key in keys:
        print(f"{key:<36}", *(f"{table.get(key, '-'):>14}" for table in tables))


if __name__ == "__main__":
    main([Path(argument).resolve() for argument in sys.argv[1:]] or [Path(__file__).parents[1]])
