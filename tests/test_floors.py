"""Imports point down only: config, then science, then training, then Ray, then the command line."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "rayjepa"
FLOOR = {
    "config": 0,
    **dict.fromkeys(("data", "masks", "views", "model", "objective", "health"), 1),
    **dict.fromkeys(("train", "interop", "report", "bench", "doctor"), 2),
    "on_ray": 3,
    "cli": 4,
}


def seen_by_the_child() -> set[str]:
    """Files that the decoder's child loads: it starts for every dead one, and must not wait for torch."""
    seen: set[str] = set()
    todo = ["__init__.py", "data/__init__.py", "data/child.py"]
    while todo:
        name = todo.pop()
        if name not in seen and (PACKAGE / name).is_file():
            seen.add(name)
            todo += [m.removeprefix("rayjepa.").replace(".", "/") + ".py" for m in imports(PACKAGE / name)]
    return seen


def imports(file: Path, *, inner: bool = True) -> set[str]:
    """Modules that a file imports; without `inner`, at its top level only."""
    names: set[str] = set()
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree) if inner else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def offences(file: Path) -> list[str]:
    room = file.relative_to(PACKAGE).with_suffix("").parts[0]
    name = file.relative_to(PACKAGE).as_posix()
    found = []
    for module in imports(file):
        top, *rest = module.split(".")
        if top == "ray" and room != "on_ray":
            found.append(f"{name} imports ray outside on_ray/")
        if top == "deepspeed" and name != "train/zero.py":
            found.append(f"{name} imports deepspeed outside train/zero.py")
        if top == "transformers" and (room not in ("interop", "bench") or module in imports(file, inner=False)):
            found.append(f"{name} imports transformers, no dependency, outside the functions of interop/ and bench/")
        if top == "rayjepa" and rest and room in FLOOR and FLOOR.get(rest[0], 0) > FLOOR[room]:
            found.append(f"{name} (floor {FLOOR[room]}) imports {module} (floor {FLOOR[rest[0]]})")
    return found


def test_imports_point_down_only() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 10
    assert [line for file in files for line in offences(file)] == []


def test_the_decoders_child_loads_neither_torch_nor_ray_nor_arrow() -> None:
    files = seen_by_the_child()
    assert "data/decode.py" in files
    heavy = {"torch", "ray", "pyarrow", "deepspeed", "pydantic", "jaxtyping"}
    found = {name: {m.split(".")[0] for m in imports(PACKAGE / name)} & heavy for name in files}
    assert {name: tops for name, tops in found.items() if tops} == {}


def test_every_room_has_a_floor() -> None:
    rooms = {p.relative_to(PACKAGE).with_suffix("").parts[0] for p in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms <= set(FLOOR)
