"""The house: who may import whom, how long a file may be, what the public functions say."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "taqdit"
LEVELS = (  # a room imports rooms of lower levels only; those of one level meet above
    {"errors"},
    {"backend", "store", "quantizer", "words"},
    {"schedule", "sampler", "prompts", "timestep_selection", "tracking"},
    {"activations"},
    {"models", "tracer", "trajectories", "calibration", "analysis"},
    {"plots", "sensitivity"},
    {"stages"},
    {"config"},
    {"report"},
    {"runs"},
    {"run"},
    {"store_tools"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
DOORS = {"__init__", "__main__"}  # the package's lazy names; `python -m taqdit`
MOST_ROOMS, MOST_LINES = 28, 300
ONLY = {  # a foreign library and the one module that may import it
    "mlx": {"backend"},
    "diffusionkit": {"models"},
    "transformers": {"models"},
    "torch": {"models"},
    "wandb": {"tracking"},
    "wandb_workspaces": {"tracking"},
    "matplotlib": {"plots"},
    "jinja2": {"report"},
    "scipy": {"analysis"},
    "safetensors": {"store", "models"},
    "hydra": {"config", "run", "runs"},
    "omegaconf": {"config", "run", "runs", "report", "cli"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room that a file belongs to: a package or a single file below taqdit/."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    """'taqdit.store.disk'; of a package's face the package's name."""
    parts = ("taqdit", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Every module, or name of a module, that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def type_checking_imports(path: Path) -> set[str]:
    """What a file imports for annotations only."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            names |= {each.module for each in node.body if isinstance(each, ast.ImportFrom)}
    return names


def rooms_imported(path: Path) -> set[str]:
    """The rooms that a file imports from, without its own."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("taqdit.")}
    return (names & set(LEVEL)) - {room_of(path)}


def files_imported(path: Path) -> set[str]:
    """The modules of the package that a file imports; of `from taqdit.store import disk, Stage`
    both the file `disk` and the face of the room."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name if name in MODULES else node.module for name in deeper}
    return names & set(MODULES)


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """The sets of two or more nodes that reach one another."""
    reach = {node: set(targets) for node, targets in arrows.items()}
    for middle in reach:
        for node, targets in reach.items():
            if middle in targets:
                reach[node] = targets | reach[middle]
    both = {node: {o for o in reach[node] if node in reach.get(o, ())} for node in reach}
    return [set(group) for group in {frozenset(group | {n}) for n, group in both.items() if group}]


def test_every_room_has_a_level():
    rooms = {room_of(path) for path in FILES} - DOORS
    assert rooms == set(LEVEL)
    assert len(rooms) <= MOST_ROOMS
    assert len(LEVELS) <= 13


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_lower_levels_only(path):
    if room_of(path) in DOORS:
        return
    own = LEVEL[room_of(path)]
    upwards = {name for name in rooms_imported(path) if LEVEL[name] >= own}
    assert not upwards, f"level {own} imports {upwards}"


def test_files_import_one_another_in_no_circle():
    """Imports for annotations and within functions are counted, too."""
    assert not circles({module: files_imported(path) for module, path in MODULES.items()})


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=module_of)
def test_a_face_only_hands_names_on(path):
    """And none with the name of one of its modules: it would hide that one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if room_of(path) in DOORS:
        return
    assert {type(node) for node in tree.body} <= {ast.Import, ast.ImportFrom, ast.Assign, ast.Expr}
    sources = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    handed = {
        (f"{node.module}.{a.name}", a.asname or a.name) for node in sources for a in node.names
    }
    hiding = {name for origin, name in handed if origin not in MODULES}
    assert not hiding & {p.stem for p in path.parent.iterdir() if p.suffix == ".py" or p.is_dir()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_foreign_libraries_stay_behind_one_module(path):
    loaded = imports(path) - type_checking_imports(path)
    foreign = {name.split(".")[0] for name in loaded} & set(ONLY)
    strays = {name for name in foreign if room_of(path) not in ONLY[name]}
    assert not strays


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or path.name == "__init__.py"
    nodes = (ast.FunctionDef, ast.ClassDef)
    public = [n for n in tree.body if isinstance(n, nodes) and not n.name.startswith("_")]
    for owner in [n for n in public if isinstance(n, ast.ClassDef)]:
        if any("Protocol" in ast.unparse(base) for base in owner.bases):
            continue
        members = [n for n in owner.body if isinstance(n, ast.FunctionDef)]
        public += [n for n in members if not n.name.startswith("_")]
    plain = {"forward", "close", "main"}  # the name says it all
    missing = [n.name for n in public if not ast.get_docstring(n) and n.name not in plain]
    assert not missing


def test_files_are_written_by_the_store_alone():
    """No other module opens a file for writing or renames one into place."""
    writers = ("write_text", "write_bytes", "savez", "save_safetensors", "save_file")
    for path in FILES:
        if room_of(path) == "store" or "train" in path.parts:
            continue  # npz opens members of the archive that publish hands it
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            assert name not in writers, f"{path}: {name}"
            if name == "open":
                modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
                modes += [k.value.value for k in node.keywords if k.arg == "mode"]
                assert not any(isinstance(m, str) and set(m) & set("wax+") for m in modes), path
