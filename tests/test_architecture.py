"""The house: who may import whom, how long a file may be, what the public functions say."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "taqdit"
LEVELS = {
    -1: ("errors",),  # open to all
    0: ("backend", "store", "quantizer", "words"),
    1: ("schedule", "sampler", "prompts", "timestep_selection", "tracking"),
    2: ("activations",),
    3: ("models", "tracer", "trajectories", "calibration", "analysis"),
    4: ("plots",),
    5: ("stages",),
    6: ("config",),
    7: ("report",),
    8: ("runs",),
    9: ("run",),
    10: ("store_tools",),
    11: ("cli",),
    12: ("__main__",),
}
LEVEL = {module: level for level, modules in LEVELS.items() for module in modules}
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


def module_of(path: Path) -> str:
    """The top-level module of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "taqdit":
                found |= {f"taqdit.{alias.name}" for alias in node.names}
    return found


def type_checking_imports(path: Path) -> set[str]:
    """What a file imports for annotations only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            found |= {each.module for each in node.body if isinstance(each, ast.ImportFrom)}
    return found


def own_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, without those of its own module."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("taqdit.")}
    return (names & set(LEVEL)) - {module_of(path)}


def test_every_module_has_a_level():
    assert {module_of(path) for path in FILES} - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_lower_levels_only(path):
    if module_of(path) == "__init__":
        return  # the package's lazy names
    own = LEVEL[module_of(path)]
    upwards = {name for name in own_imports(path) if LEVEL[name] >= own}
    assert not upwards, f"level {own} imports {upwards}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_foreign_libraries_stay_behind_one_module(path):
    loaded = imports(path) - type_checking_imports(path)
    foreign = {name.split(".")[0] for name in loaded} & set(ONLY)
    strays = {name for name in foreign if module_of(path) not in ONLY[name]}
    assert not strays


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 310


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
        if module_of(path) == "store" or "train" in path.parts:
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
