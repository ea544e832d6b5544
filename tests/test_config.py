"""Configuration: options and functions match, presets check, YAML never selects code."""

import functools
import importlib
import inspect
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import slow_unless
from ledger import shows
from omegaconf import OmegaConf

from taqdit import config
from taqdit.config.refused import names
from taqdit.errors import ConfigError, InputError
from taqdit.stages import kinds
from taqdit.stages.fingerprints import (
    COSMETIC,
    NUMERIC,
    TRACED,
    conditioning_inputs,
    fingerprint,
    statistics_inputs,
    trajectory_inputs,
)

CONF = config.config_folder()
FUNCTIONLESS = ("experiment", "sweep")  # presets of the other groups
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in FUNCTIONLESS
)
PRESETS = sorted(
    (group, path.stem) for group in FUNCTIONLESS for path in CONF.glob(f"{group}/*.yaml")
)


def public_options():
    for name in config.OPTION_MODULES:
        module = importlib.import_module(name)
        for public in module.__all__:
            yield name, public


@functools.cache
def option_node(group, option):
    """What an option's file, and those it inherits from, say."""
    return config.compose_config([f"{group}={option}"])[group]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_file_names_its_option(group, option):
    assert option_node(group, option)._target_.rpartition(".")[2] == option
    config.resolve(option_node(group, option)._target_)


def test_every_public_option_has_its_file():
    targets = {option_node(group, option)._target_ for group, option in OPTIONS}
    assert {f"{module}.{name}" for module, name in public_options()} == targets


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_an_option_file_spells_out_every_argument_with_its_default(group, option):
    node = option_node(group, option)
    parameters = dict(inspect.signature(config.resolve(node._target_)).parameters)
    if "_partial_" in node:
        assert next(iter(parameters)) == "trajectory"
        del parameters["trajectory"]
    said = {key: value for key, value in node.items() if not key.startswith("_")}
    assert said == {
        name: said[name] if each.default is each.empty else plain_default(each.default)
        for name, each in parameters.items()
    }


def plain_default(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("option", OPTIONS + PRESETS)
def test_every_preset_composes_and_checks(option, tmp_path):
    group, name = option
    overrides = [f"{group}={name}"]
    if option == ("prompts", "file"):
        (tmp_path / "p.txt").write_text("a red circle\n")
        overrides += [f"prompts.path={tmp_path / 'p.txt'}", "prompts.allow_outside=true"]
    if option == ("timestep_selection", "explicit"):
        overrides.append("timestep_selection.steps=[0,5,-1]")
    assert config.check(config.compose_config(overrides)).problems == []


def test_the_closed_key_table():
    composed = config.compose_config()
    expected = {
        "model.local_ckpt": None,
        "model.low_memory": False,
        "model.use_t5": False,
        "model.latent_size": [8, 8],
        "prompts.num": None,
        "schedule.num_steps": 30,
        "schedule.shift": 3.0,
        "sampler.cfg_scale": 2.0,
        "sampler.seed": 0,
        "sampler.num_trajectories": 16,
        "sampler.batch_size": 8,
        "sampler.images": True,
        "timestep_selection.count": None,
        "tracer.num_trajectories": "all",
        "tracer.folds": 8,
        "calibration.export": True,
        "statistics.export": True,
        "statistics.npz": False,
        "analysis.rule": "sqnr",
        "plots.layers": None,
        "stages": "all",
        "refresh": [],
        "inputs.calibration": None,
        "inputs.statistics": None,
        "preflight": "on",
        "allow_backend_change": False,
        "output_dir": "outputs",
    }
    assert {key: OmegaConf.select(composed, key) for key in expected} == expected
    targets = {g: composed[g]._target_.rpartition(".")[2] for g in config.GROUPS}
    assert targets == {
        "model": "tiny",
        "prompts": "shapes",
        "schedule": "flow",
        "sampler": "euler",
        "timestep_selection": "paper_uniform",
        "tracer": "block_inputs",
        "analysis": "full",
        "plots": "paper",
        "tracking": "auto",
    }


def test_the_paper_recipe():
    composed = config.compose_config(["experiment=paper"])
    assert composed.model._target_ == "taqdit.models.options.sd3_medium"
    assert composed.prompts._target_ == "taqdit.prompts.paper_20"
    found = (
        composed.schedule.num_steps,
        composed.sampler.num_trajectories,
        composed.sampler.cfg_scale,
    )
    assert found == (100, 256, 1.5)
    assert composed.timestep_selection.count == 25
    small = config.compose_config(["experiment=paper", "model=tiny", "prompts=shapes"])
    assert small.model._target_ == "taqdit.models.options.tiny"


HOSTILE = [
    "os.system",
    "builtins.open",
    "builtins.eval",
    "subprocess.run",
    "subprocess.Popen",
    "code.InteractiveInterpreter",
    "numpy.load",
    "pathlib.Path.write_text",
    "shutil.rmtree",
    "pickle.loads",
    "importlib.import_module",
    "functools.partial",
    "taqdit.store.os.replace",
    "taqdit.store.publish",
    "taqdit.config.build",
    "taqdit.sampler.euler.__globals__",
    "taqdit.sampler.require",
    "taqdit.sampler.Sampler",
    "taqdit.sampler.euler_step",
    "taqdit.models.tiny.train.os.system",
    "hydra.utils.instantiate",
    "euler",
    "",
]


@pytest.mark.parametrize("target", HOSTILE)
@shows("P17", "targets with nothing but a name: refused", trials=1)
def test_a_target_outside_the_options_is_refused(target):
    with pytest.raises(ConfigError, match="_target_="):
        config.build({"_target_": target})


def test_a_name_that_a_module_only_imported_is_refused(monkeypatch):
    from taqdit import sampler

    monkeypatch.setattr(sampler, "__all__", [*sampler.__all__, "require"])
    with pytest.raises(ConfigError, match="not a public option"):
        config.build({"_target_": "taqdit.sampler.require"})


def test_a_plugin_module_is_allowed_by_the_environment_alone(monkeypatch):
    node = {"_target_": "analytic.gaussian"}
    assert config.build(node).name == "analytic"
    monkeypatch.delenv("TAQDIT_PLUGINS")
    with pytest.raises(ConfigError, match="TAQDIT_PLUGINS"):
        config.build(node)


def test_check_reports_everything_at_once():
    composed = config.compose_config(
        [
            "sampler.batch_size=0",
            "sampler.cfg_scale=0",
            "schedule.shift=0",
            "timestep_selection.count=99",
            "analysis.rule=taste",
            "stages=[sampling]",
            "inputs.statistics=x.npz",
        ]
    )
    texts = [problem.text for problem in config.check(composed).problems]
    starts = [
        "sampler.cfg_scale=0",
        "sampler.batch_size=0",
        "schedule.shift=0",
        "analysis.rule=taste",
    ]
    starts += ["stages=['sampling']", "inputs.statistics=x.npz"]
    for start in starts:
        assert any(text.startswith(start) for text in texts), (start, texts)


def refused(*overrides):
    """The lines that Hydra's refusals become."""
    with pytest.raises(ConfigError) as caught:
        config.compose_config(overrides)
    return caught.value.args


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("sampler.num_trajectory=4", "sampler.num_trajectories"),
        ("samplr.seed=4", "sampler.seed"),
        ("num_steps=4", "schedule.num_steps"),  # right, but under another group
        ("sampler.steps=4", "schedule.num_steps"),
        ("sampler.cfg=4", "sampler.cfg_scale"),
        ("~sampler.sed", "sampler.seed"),
        ("samplr=euler", "sampler"),
        ("experimnt=paper", "experiment"),  # a group that the configuration has no key of
        ("sampler=eulr", "sampler=euler"),
        ("experiment=papr", "experiment=paper"),
    ],
)
def test_what_may_have_been_meant_is_asked(override, meant):
    (text,) = refused(override)
    assert text.endswith(f"; did you mean {meant}?")


@pytest.mark.parametrize(
    "override",
    ["sampler.xyzzy=1", "sampler.nmu=1", "sampler=dpm", "schedule.num_steps=abc", "prompts=null"],
)
def test_nothing_is_asked_where_nothing_is_near(override):
    (text,) = refused(override)
    assert "did you mean" not in text


def test_the_key_that_was_typed_is_not_asked_after():
    (text,) = refused("sampler={sed:1}")
    assert text == "Could not override 'sampler'. Key 'sed' not in 'SamplerConfig'"


@pytest.mark.parametrize(
    ("text", "key", "named"),
    [
        ("no viable alternative at input '['", "a", False),
        ("Could not override 'a'.", "a", True),
        ("Key 'x' of sampler.seed, of a", "seed", False),
        ("Key 'x' of sampler.seed, of a", "sampler", False),
        ("item is already at sampler.seed. Either", "sampler.seed", True),
        ("Could not find 'tracer/block_input'", "tracer", True),
        ("must be a string", "", True),
    ],
)
def test_a_key_is_named_by_whole_words(text, key, named):
    assert names(text, key) is named


def test_the_key_of_what_cannot_be_parsed_is_named():
    assert refused("a=[") == ("a: no viable alternative at input '['",)


def test_every_override_that_is_refused_has_its_line():
    texts = refused(
        *("sampler.sede=3", "tracer=block_input", "tracer.foldz=3", "schedule.num_steps=abc"),
        *("stages=[a", "sampler.seed=7", "sampler.num_trajectory=4"),
    )
    begins = [
        "stages: no viable",
        "In 'config': Could not find 'tracer/block_input'",  # whose keys are not known then
        "Could not override 'sampler.sede'",
        "Error merging override schedule.num_steps=abc. Value 'abc'",
        "Could not override 'sampler.num_trajectory'",
    ]
    assert len(texts) == len(begins)
    for text, begin in zip(texts, begins, strict=True):
        assert text.startswith(begin)
    assert [text.count("did you mean") for text in texts] == [0, 1, 1, 0, 1]


def test_under_another_preset_the_other_overrides_might_be_right():
    (text,) = refused("experiment=papr", "sampler.sede=3")
    assert text.startswith("In 'config': Could not find 'experiment/papr'")


def test_wrong_arguments_and_types_name_the_parameter():
    with pytest.raises(ConfigError) as caught:
        config.build({"_target_": "taqdit.schedule.flow", "num_steps": 2.5, "steps": 3})
    assert len(caught.value.args) == 2
    assert "an integer" in caught.value.args[0]
    assert "num_steps, shift" in caught.value.args[1]


def test_config_problems_come_before_input_problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["prompts=file", f"prompts.path={tmp_path / 'none.txt'}"]
    with pytest.raises(InputError):
        config.plan(config.compose_config(overrides))
    with pytest.raises(ConfigError) as caught:
        config.plan(config.compose_config([*overrides, "sampler.batch_size=0"]))
    assert len(caught.value.args) == 2


def leaves(node, prefix=""):
    """Every key path of a plain mapping that holds no mapping."""
    for key, value in node.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{path}.")
        else:
            yield path


def side(path):
    tables = *(kind.keys for kind in kinds.KINDS), COSMETIC
    return [table for table in tables if any(_covers(k, path) for k in table)]


def _covers(key, path):
    return path == key or path.startswith(f"{key}.")


def every_key():
    """The path of every key, those of a prompt file included."""
    found = set()
    for preset in ([], ["prompts=file", "prompts.path=p.txt"]):
        found |= set(leaves(OmegaConf.to_container(config.compose_config(preset), resolve=True)))
    return sorted(found)


@shows("P6", "keys that are listed as one that counts, or as one that does not: all there are")
def test_every_key_is_on_one_side():
    keys = every_key()
    for key in keys:
        assert len(side(key)) == 1, key
    return len(keys)


def test_every_key_is_tried():
    """But for the path of a prompt file, which the test below changes, and what is no choice."""
    assert {*NUMERIC, *TRACED} <= set(CHANGES)
    groups = {key.removesuffix("=") for key in CHANGES if key.endswith("=")}
    tried = {*CHANGES, *(f"{group}._target_" for group in groups)}
    rest = {"prompts.path", "prompts.allow_outside", "timestep_selection._partial_"}
    assert set(every_key()) - tried == rest


CHANGES = {  # another value for every key; `group=` another option of a group
    "model._target_": "analytic.slow",
    "model.local_ckpt": "elsewhere.safetensors",
    "model.use_t5": True,
    "model.w16": True,
    "model.a16": True,
    "model.latent_size": [6, 8],
    "model.low_memory": True,
    "prompts._target_": "taqdit.prompts.paper_20",
    "prompts.num": 3,
    "prompts.store_conditioning": False,
    "schedule._target_": "analytic.straight",
    "schedule.num_steps": 31,
    "schedule.shift": 2.0,
    "sampler._target_": "taqdit.sampler.heun",
    "sampler.cfg_scale": 3.0,
    "sampler.seed": 1,
    "sampler.batch_size": 4,
    "sampler.latents": "final",
    "sampler.latents_dtype": "float16",
    "sampler.num_trajectories": 3,
    "sampler.images": False,
    "timestep_selection=": "midpoint",
    "timestep_selection.count": 3,
    "tracer._target_": "taqdit.tracer.post_gelu",
    "tracer.folds": 4,
    "tracer.blocks": ["mm_*"],
    "tracer.streams": ["img"],
    "tracer.sites": ["*.fc1_in"],
    "tracer.nonfinite": "count",
    "tracer.num_trajectories": 8,
    "tracking=": "local",
    "tracking.project": "other",
    "tracking.entity": "another",
    "tracking.init_timeout": 1.0,
    "tracking.call_timeout": 1.0,
    "tracking.finish_timeout": 1.0,
    "analysis=": "none",
    "analysis.rule": "seed",
    "analysis.target": 30.0,
    "analysis.group_size": 64,
    "analysis.weighting": "equal",
    "analysis.compare": ["midpoint"],
    "analysis.budget": 3,
    "analysis.budgets": [4, 8],
    "analysis.phases": "seed",
    "plots=": "minimal",
    "plots.figures": ["outliers"],
    "plots.layers": ["mm_00_img"],
    "stages": ["conditioning"],
    "refresh": ["conditioning"],
    "preflight": "off",
    "allow_backend_change": True,
    "output_dir": "elsewhere",
    "calibration.export": False,
    "statistics.export": False,
    "statistics.npz": True,
    "inputs.calibration": "set.npz",
    "inputs.statistics": __file__,
    "pair": [1, 2],
}


BASE = "model._target_=analytic.gaussian"  # the tiny model has no T5 to switch on


@pytest.fixture(scope="module")
def composed():
    return config.compose_config([BASE])


@pytest.fixture(autouse=True)
def _another_set(request, tmp_path, monkeypatch):
    """`set.npz`, where a key names it."""
    if "inputs.calibration" in request.node.name:
        save_calibration(tmp_path / "set.npz")
        monkeypatch.chdir(tmp_path)


def save_calibration(path):
    shapes = {"xs": (1, 4, 4, 16), "cs": (1, 2, 1, 4096), "cs_pooled": (1, 2, 8)}
    arrays = {
        name: np.zeros(shape, "f4" if name == "xs" else "f2") for name, shape in shapes.items()
    }
    scalars = {"ts": np.float16([500]), "prompt_indices": np.int32([0]), "prompts": np.array(["a"])}
    np.savez(path, **arrays, **scalars, cfg_scale=np.float32(2))


def marks(composed):
    """The fingerprints of trajectories and of statistics."""
    plan = config.plan(composed)
    return [fingerprint(inputs(plan)) for inputs in (trajectory_inputs, statistics_inputs)]


def with_another(composed, key):
    """A configuration with another value of a key."""
    if key.endswith("="):
        return config.compose_config([BASE, f"{key}{CHANGES[key]}"])
    changed = composed.copy()
    OmegaConf.set_struct(changed, False)
    OmegaConf.update(changed, key, CHANGES[key])
    if changed.tracer._target_.endswith("post_gelu"):
        del changed.tracer["sites"]
    return changed


@shows("P6", "a key changed, each in turn: other fingerprints exactly where it counts", trials=1)
@pytest.mark.parametrize("key", sorted(CHANGES))
def test_a_key_changes_the_fingerprints_exactly_where_it_counts(key, composed):
    numeric, traced = (any(_covers(k, key) for k in table) for table in (NUMERIC, TRACED))
    pairs = zip(marks(with_another(composed, key)), marks(composed), strict=True)
    changed = [one != other for one, other in pairs]
    assert changed == [numeric, numeric or traced]


def test_a_tracer_that_reads_nothing_is_refused():
    texts = "|".join(problems_of(["tracer.blocks=[mm_9*]", "tracer.streams=[im]"]))
    assert "tracer.blocks=['mm_9*']" in texts
    assert "tracer.streams=['im']" in texts
    (text,) = problems_of(["model._target_=analytic.poisoned"])
    assert "names no blocks to trace; set tracer=none" in text
    (text,) = problems_of(["sampler.num_trajectories=1000000", "tracer.folds=1"])
    assert "raise tracer.folds" in text


@pytest.mark.parametrize(
    "rule",
    slow_unless(["regret_optimal"], ["coverage_optimal", "regret_optimal", "drift_weighted"]),
)
def test_a_rule_that_needs_statistics_is_refused_where_none_are_made(rule, tmp_path):
    chosen = f"timestep_selection={rule}"
    (text,) = problems_of([chosen, "tracer=none"])
    assert text.startswith(f"timestep_selection._target_=taqdit.timestep_selection.{rule} selects")
    assert text.endswith("tracer reads nothing; set tracer=block_inputs, stages=all")
    (text,) = problems_of([chosen, "stages=[trajectories,calibration]"])
    assert "stages leaves out statistics; set tracer=block_inputs, stages=all" in text
    for stages in ("all", "[statistics,calibration]", "[figures]"):
        assert problems_of([chosen, f"stages={stages}"]) == []
    assert problems_of([chosen, "tracer=none", f"inputs.statistics={tmp_path}"]) == []


def test_the_arguments_of_a_data_driven_rule_are_checked_without_statistics():
    (text,) = problems_of(["timestep_selection=regret_optimal", "timestep_selection.bits=5"])
    assert text == "timestep_selection.bits=5 must be one of 8, 6, 4"
    (text,) = problems_of(["timestep_selection=drift_weighted", "timestep_selection.gamma=3"])
    assert text.startswith("timestep_selection.gamma=3 must lie in [0, 2]")
    (text,) = problems_of(["timestep_selection=coverage_optimal", "timestep_selection.count=31"])
    assert text.startswith("timestep_selection.count=31 must be an integer in [1, 30]")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rule=taste", "analysis.rule=taste must be one of sqnr, seed"),
        ("target=0", "analysis.target=0.0 must lie in (0, 100] dB"),
        ("target=high", "analysis.target='high' must be a number"),
        ("group_size=48", "analysis.group_size=48 must be null, 32, 64 or 128"),
        ("weighting=sigma", "analysis.weighting=sigma must be dt or equal"),
        ("phases=three", "analysis.phases=three must be data or seed"),
        ("compare=[]", "analysis.compare: []; name rules out of all, coverage_optimal,"),
        ("compare=[midpoint,explicit,x]", "analysis.compare: explicit, x; name rules out of"),
        ("budget=31", "analysis.budget=31 must lie in [1, 30]; schedule.num_steps is 30"),
        ("budgets=[4,0]", "analysis.budgets=0 must lie in [1, 30]; schedule.num_steps is 30"),
        ("budgets=[]", "analysis.budgets=[] must hold a budget; null takes a ladder of them"),
    ],
)
def test_what_is_wrong_with_the_analysis_is_said_by_its_key(override, words):
    (text,) = problems_of([f"analysis.{override}"])
    assert text.startswith(words)


def test_every_problem_of_the_analysis_is_said_at_once():
    texts = problems_of(["analysis.rule=taste", "analysis.target=-1", "analysis.phases=x"])
    assert [text.split("=")[0] for text in texts] == [
        "analysis.rule",
        "analysis.target",
        "analysis.phases",
    ]


def test_budgets_for_statistics_made_elsewhere_may_exceed_the_schedule(tmp_path):
    """Their number of steps is their own."""
    asked = ["analysis.budget=40", "analysis.budgets=[40,50]"]
    assert len(problems_of(asked)) == 3
    assert problems_of([*asked, f"inputs.statistics={tmp_path}"]) == []


def problems_of(overrides):
    """The texts of every problem of a configuration."""
    return [problem.text for problem in config.check(config.compose_config(overrides)).problems]


@shows("P6", "which latents are stored, and how: each combination is another stage")
def test_what_is_stored_of_a_trajectory_counts(composed):
    found = []
    for latents, dtype, count in product(
        ("all", "final", "selected"), ("float32", "float16"), (4, 3)
    ):
        changed = composed.copy()
        changed.sampler.update(latents=latents, latents_dtype=dtype)
        changed.timestep_selection.count = count
        if latents == "selected" or count == 4:  # elsewhere the selection is a view
            found.append(marks(changed)[0])
    assert len(set(found)) == len(found)
    return len(found)


@shows("P6", "a prompt file: its texts, their order and their seeds count, its path does not")
def test_the_content_of_a_prompt_file_counts_not_its_path(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    composed = config.compose_config([BASE, "prompts=file", "prompts.allow_outside=true"])

    def mark(content, path):
        Path(path).write_text(content)
        composed.prompts.path = str(path)
        return marks(composed)[0]

    first = mark("a cat\na dog\n", "a.txt")
    assert first == mark("a cat\r\n\na dog", "b.txt") == mark("a cat\na dog", tmp_path / "c.txt")
    others = ["a cat\na cow", "a dog\na cat", "a cat", "1\ta cat\na dog", "2\ta cat\na dog"]
    assert len({first, *(mark(other, "a.txt") for other in others)}) == 1 + len(others)
    return 2 + len(others)


def test_conditioning_does_not_depend_on_the_sampler():
    plans = [config.plan(config.compose_config(o)) for o in ([], ["sampler.seed=3"])]
    marks = [fingerprint(conditioning_inputs(plan)) for plan in plans]
    assert marks[0] == marks[1]


def test_yaml_files_open_with_a_comment_and_comment_their_knobs():
    for path in sorted(Path(CONF).glob("*/*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("#"), path


def test_a_budget_of_all_steps_is_said_once(caplog):
    overrides = ["schedule.num_steps=7", "timestep_selection.count=7"]
    config.plan(config.compose_config(overrides))
    assert caplog.messages == ["timestep_selection.count=7 selects all 7 steps"]
