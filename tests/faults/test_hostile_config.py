"""Configuration from somebody else: it chooses no code, costs no time and shows no secret."""

import time

import pytest
from conftest import ANALYTIC, ROOT, slow_unless, tree
from ledger import shows

from taqdit import config
from taqdit.config.foreign import MAX_BYTES, refuse_code
from taqdit.errors import ConfigError

KEY = "0123456789abcdef" * 2 + "89abcdef"  # in the form of W&B's

# What Hydra's own blocklist is about, what got past it, and what lies behind an option module.
TARGETS = {
    "os.system": {"command": "touch {canary}"},
    "os.popen": {"cmd": "touch {canary}"},
    "os.mkdir": {"path": "{canary}"},
    "os.execv": {"path": "/bin/touch", "argv": ["touch", "{canary}"]},
    "posix.system": {"command": "touch {canary}"},
    "subprocess.Popen": {"args": ["touch", "{canary}"]},
    "subprocess.run": {"args": ["touch", "{canary}"]},
    "subprocess.check_output": {"args": ["touch", "{canary}"]},
    "builtins.eval": {"source": "open('{canary}', 'w')"},
    "builtins.exec": {"source": "open('{canary}', 'w')"},
    "builtins.open": {"file": "{canary}", "mode": "w"},
    "builtins.__import__": {"name": "antigravity"},
    "io.open": {"file": "{canary}", "mode": "w"},
    "code.InteractiveInterpreter": {},
    "code.interact": {},
    "runpy.run_path": {"path_name": "{canary}"},
    "numpy.load": {"file": "{canary}", "allow_pickle": True},
    "numpy.save": {"file": "{canary}", "arr": [1]},
    "pickle.loads": {"data": "x"},
    "pathlib.Path.write_text": {"self": "{canary}", "data": "x"},
    "pathlib.Path.touch": {"self": "{canary}"},
    "shutil.rmtree": {"path": "{folder}"},
    "functools.partial": {"func": "os.system"},
    "functools.reduce": {},
    "itertools.starmap": {},
    "builtins.map": {},
    "builtins.filter": {},
    "operator.methodcaller": {"name": "system"},
    "importlib.import_module": {"name": "antigravity"},
    "pydoc.locate": {"path": "os.system"},
    "hydra.utils.instantiate": {"config": {"_target_": "os.system", "command": "x"}},
    "hydra.utils.get_method": {"path": "os.system"},
    "hydra._internal.instantiate._instantiate2.instantiate": {},
    "hydra._internal.instantiate._instantiate2._BLOCKLIST.clear": {},
    "hydra.core.global_hydra.GlobalHydra.clear": {},
    "taqdit.store.os.replace": {"src": "{folder}/kept", "dst": "{canary}"},
    "taqdit.store.publish_bytes": {"path": "{canary}", "content": "x"},
    "taqdit.store.disk.os.mkdir": {"path": "{canary}"},
    "taqdit.stages.context.time.sleep": {"secs": 60},
    "taqdit.config.build": {"node": {}},
    "taqdit.config.building.build": {},
    "taqdit.config.building.importlib.import_module": {"name": "antigravity"},
    "taqdit.prompts.reading.Path": {},
    "taqdit.prompts.reading.Path.touch": {"self": "{canary}"},
    "taqdit.prompts.reading.csv.field_size_limit": {},
    "taqdit.prompts.reading.read_prompts": {"path": "{canary}"},
    "taqdit.prompts.options.require": {},
    "taqdit.prompts.Prompts": {"texts": ["a"], "seeds": [None]},
    "taqdit.prompts.file.__globals__": {},
    "taqdit.prompts.file.__call__": {"path": "x.txt"},
    "taqdit.prompts.__builtins__.eval": {"source": "1"},
    "taqdit.sampler.euler_step": {},
    "taqdit.models.options.Path.touch": {"self": "{canary}"},
    "taqdit.models.options.logging.FileHandler": {"filename": "{canary}"},
    "taqdit.tracking.local.__class__": {},
    "taqdit.runs.exits.exit_with": {},  # modules without __all__
    "taqdit.cli.verbs.main": {},
    "taqdit.run.application": {},
    ".os.system": {},
    "taqdit.prompts.": {},
    "taqdit..prompts.file": {},
    "taqdit.prompts:file": {},
    "file": {},
}


def filled(value, **places):
    """The arguments of a target with the places put in."""
    if isinstance(value, str):
        return value.format(**places)
    if isinstance(value, list):
        return [filled(each, **places) for each in value]
    return value


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that nobody may make; time, processes and the folder are watched too."""
    (tmp_path / "kept").write_text("x")
    yield tmp_path / "canary"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


@pytest.mark.parametrize("target", TARGETS)
@shows("P17", "hostile `_target_`s as an option, and below one: refused, nothing run", trials=2)
def test_no_target_outside_the_options_is_run(canary, target):
    places = {"canary": canary, "folder": canary.parent}
    arguments = {key: filled(value, **places) for key, value in TARGETS[target].items()}
    node = {"_target_": target, **arguments}
    with pytest.raises(ConfigError, match=r"_target_="):
        config.build(node)
    option = {"_target_": "taqdit.plots.paper", "layers": node}
    with pytest.raises(ConfigError, match=r"layers="):
        config.build(option)


@pytest.mark.parametrize("group", slow_unless(["model", "plots"], config.GROUPS))
@shows("P17", "`os.system` in each group of the command line and of a file: exit 2", trials=2)
def test_every_group_refuses_code(canary, group, tmp_path_factory):
    for how in ("line", "file"):
        if how == "line":
            asked = [f"{group}._target_=os.system", f"+{group}.command='touch {canary}'"]
        else:
            folder = tmp_path_factory.mktemp("theirs")
            content = f"{group}:\n  _target_: os.system\n  command: touch {canary}\n"
            asked = theirs(folder, content)
        try:
            problems = config.check(config.compose_config(asked)).problems
        except ConfigError as error:  # a typed group has no key `command`
            problems = [config.Problem(str(error), 2)]
        assert problems, group


def theirs(folder, content):
    """Overrides that take content as an experiment from a folder."""
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "theirs.yaml").write_text(f"# @package _global_\n{content}")
    return [f"hydra.searchpath=[file://{folder}]", "experiment=theirs"]


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{k}: &a{k} [{','.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 5)
)
FILES = {
    "alias bomb": (BOMB, "line 2: an anchor is not allowed"),
    "alias": ("sampler: &s {seed: 1}\npair: *s\n", "line 2: an anchor"),
    "merge": ("pair: {<<: *x}\n", "an alias"),
    "python tag": ("pair: !!python/object/apply:os.system [id]\n", "line 2: a tag"),
    "tag": ("pair: !!binary aGk=\n", "line 2: a tag"),
    "directive": ("%YAML 1.1\n---\npair: 1\n", "a directive|no YAML"),
    "too large": ("pair: " + "x" * MAX_BYTES, "at most 65,536 bytes"),
    "too deep": ("pair: " + "[" * 30_000, "nests more than 50 levels"),
    "too deep, about Hydra": ("hydra: " + "{a: " * 15_000, "nests more than 50 levels"),
    "too deep without brackets": ("pair:\n  " + "- " * 30_000, "nests more than 50 levels"),
    "too deep by indentation": (
        "".join(f"{' ' * k}a:\n" for k in range(300)),
        "nests more than 50 levels",
    ),
    "broken": ("hydra: [\n", "is no YAML"),
    "not text": ("pair: \udcff\n", "UTF-8"),
    "callback": (
        "hydra:\n  callbacks:\n    c:\n      _target_: code.InteractiveInterpreter\n",
        "sets hydra.callbacks",
    ),
    "launcher": ("hydra: {launcher: {_target_: os.system}}\n", "sets hydra.launcher"),
    "launcher's shell": ("hydra: {launcher: {setup: [touch x]}}\n", "sets hydra.launcher"),
    "sweeper": ("hydra: {sweeper: {_target_: os.system}}\n", "sets hydra, which"),
    "sweeper's parameter": (
        "hydra: {sweeper: {params: {a: {_target_: os.system}}}}\n",
        "sets hydra, which",
    ),
    "logger": (
        "hydra: {job_logging: {handlers: {h: {(): os.system, command: touch x}}}}\n",
        "sets hydra.job_logging",
    ),
    "hydra's logger": ("hydra: {hydra_logging: {root: {}}}\n", "sets hydra.hydra_logging"),
    "environment": ("hydra: {job: {env_set: {TAQDIT_PLUGINS: evil}}}\n", "sets hydra.job"),
    "whole": ("hydra: ${oc.create:x}\n", "sets hydra.hydra"),
    "moved": (
        "defaults:\n  - /plots@hydra.callbacks.c: paper\n",
        "sets hydra, which",
    ),
    "moved from the top": (
        "defaults:\n  - /plots@_global_.hydra.callbacks.c: paper\n",
        "sets hydra, which",
    ),
}


@pytest.mark.parametrize("name", FILES)
@shows("P17", "hostile YAML in an experiment file: refused in less than a second", trials=1)
def test_a_file_with_more_than_settings_is_refused(canary, tmp_path_factory, name):
    content, message = FILES[name]
    folder = tmp_path_factory.mktemp("theirs")
    asked = theirs(folder, "")
    path = folder / "experiment" / "theirs.yaml"
    text = content if name == "directive" else f"# @package _global_\n{content}"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    began = time.process_time()
    with pytest.raises(ConfigError, match=message) as caught:
        config.compose_config(asked)
    assert time.process_time() - began < 1
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "header", ["# @package hydra.callbacks", "#@package hydra", "# @package _global_.hydra"]
)
def test_a_file_cannot_say_that_it_belongs_to_hydra(tmp_path, header):
    asked = theirs(tmp_path, "")
    (tmp_path / "experiment" / "theirs.yaml").write_text(f"{header}\nc: {{_target_: os.system}}\n")
    with pytest.raises(ConfigError, match="sets hydra"):
        config.compose_config(asked)


def test_options_of_hydra_are_not_taken_from_another_folder(tmp_path):
    asked = theirs(tmp_path, "sampler: {seed: 1}\n")
    assert config.compose_config(asked).sampler.seed == 1
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "hydra" / "launcher" / "basic.yaml").write_text("_target_: os.system\n")
    with pytest.raises(ConfigError, match="options of Hydra's own"):
        config.compose_config(asked)


def test_settings_and_a_sweep_are_taken_from_another_folder(tmp_path):
    content = """
defaults:
  - override /schedule: flow
hydra:
  mode: MULTIRUN
  sweeper: {params: {sampler.seed: "1,2"}}
sampler: {seed: 3}
timestep_selection: {count: "${schedule.num_steps}"}
"""
    composed = config.compose_config(theirs(tmp_path, content))
    assert (composed.sampler.seed, composed.timestep_selection.count) == (3, 30)


def test_what_ships_is_accepted():
    refuse_code([], config.config_folder())


@pytest.mark.parametrize("group", ["experiment", "plots", "local"])
def test_files_dropped_into_the_packages_own_folder_are_looked_at(tmp_path, group):
    (tmp_path / group).mkdir()
    path = tmp_path / group / "default.yaml"
    path.write_text("hydra: {job: {env_set: {A: b}}}\n")
    if group == "local":  # settings of this machine
        refuse_code([], tmp_path)
    else:
        with pytest.raises(ConfigError, match=r"sets hydra\.job"):
            refuse_code([], tmp_path)
    path.write_text(BOMB)
    with pytest.raises(ConfigError, match="an anchor"):
        refuse_code([], tmp_path)


FLAGS = ("--config-dir", "-cd", "--config-dir=", "--config-path")


@pytest.mark.parametrize("flag", slow_unless(["--config-dir"], FLAGS))
@shows("P17", "a folder of hostile YAML given to the command by each flag: exit 2", trials=1)
def test_the_flags_of_the_command(taqdit, tmp_path, flag):
    (tmp_path / "theirs").mkdir()
    theirs(tmp_path / "theirs", FILES["callback"][0].replace("code.Inter", "canary.Inter"))
    (tmp_path / "canary.py").write_text("open('canary', 'w')\nclass InteractiveInterpreter: pass\n")
    given = [f"{flag}theirs"] if flag.endswith("=") else [flag, "theirs"]
    done = taqdit(*given, "experiment=theirs", *ANALYTIC, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert ("sets hydra.callbacks" if flag != "--config-path" else "--config-dir") in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary.py", "theirs"]


# --- secrets --------------------------------------------------------------------------------

REFERENCES = {
    "in a setting": "tracking: {project: '${oc.env:WANDB_API_KEY}'}",
    "with a default": "output_dir: '${oc.env:WANDB_API_KEY,x}'",
    "in a text": "output_dir: out_${oc.env:WANDB_API_KEY}",
    "by another name": "pair: {a: WANDB_API_KEY, b: '${oc.env:${pair.a}}'}",
    "of Hugging Face": "pair: '${oc.env:HF_TOKEN}'",
}


@pytest.mark.parametrize("name", REFERENCES)
@shows("P18", "a file that refers to an API key: refused, the key in no output", trials=1)
def test_a_file_does_not_read_a_key(tmp_path, monkeypatch, name):
    for variable in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(variable, KEY)
    composed_from = theirs(tmp_path / "theirs", REFERENCES[name])
    with pytest.raises(Exception, match="is not for a configuration") as caught:
        config.plan(config.compose_config(composed_from))
    assert config.hydra_complains(caught.value)
    assert KEY not in config.one_line(caught.value)


def test_other_variables_can_be_referred_to(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    content = "output_dir: ${oc.env:SCRATCH}\npair: ['${oc.env:NONE,b}', '${oc.env:NONE,null}']\n"
    composed = config.compose_config(theirs(tmp_path, content))
    assert composed.output_dir == "/scratch"
    assert list(composed.pair) == ["b", None]
    missing = config.compose_config(theirs(tmp_path / "more", "pair: ${oc.env:NONE}\n"))
    with pytest.raises(Exception, match="'NONE' not found"):
        _ = missing.pair


@shows("P18", "a whole run with API keys in its environment: no file and no line holds one")
@pytest.mark.slow
def test_a_planted_key_is_in_no_output(taqdit, tmp_path):
    keys = {"WANDB_API_KEY": KEY, "HF_TOKEN": "hf_" + "a1B2" * 9, "MY_PASSWORD": "correct horse ba"}
    done = taqdit(*ANALYTIC, "tracking=wandb", "tracking.mode=offline", **keys)
    assert done.returncode == 0, done.stderr
    files = tree(tmp_path)
    assert any(name.endswith(".wandb") for name in files)
    for secret in keys.values():
        assert secret not in done.stdout + done.stderr
        for name, content in files.items():
            assert secret.encode() not in content, name
    return len(files)


def test_no_reader_in_the_package_runs_what_it_reads():
    """Nothing is called anywhere that could run what it reads."""
    for path in sorted((ROOT / "taqdit").rglob("*.py")):
        text = path.read_text("utf-8")
        for word in ("allow_pickle=True", "UnsafeLoader", "FullLoader", "unsafe_load", "full_load"):
            assert word not in text, f"{path}: {word}"
        for word in ("instantiate(", "eval(", "exec(", "pickle.load"):
            found = [line for line in text.splitlines() if f" {word}" in line or f"={word}" in line]
            assert not found, f"{path}: {found}"
