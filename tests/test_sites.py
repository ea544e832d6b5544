"""Sites: names, order, paths and widths from a model's structure; which of them a tracer reads."""

import dataclasses
import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from taqdit import config
from taqdit.activations import Site
from taqdit.errors import ConfigError
from taqdit.models.diffusionkit import MMDiT, MMDiTConfig, model_io
from taqdit.models.options import sd3_medium, sd35_large, tiny
from taqdit.models.sites import site_paths
from taqdit.tracer import options as tracer

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("qkv_in", "o_in", "fc1_in", "post_gelu")


def names(spec):
    return [each.site.name for each in site_paths(spec)]


def sites(spec):
    return [each.site for each in site_paths(spec)]


def library(spec):
    """DiffusionKit's own module of a model; its lazy arrays are never computed."""
    if spec.name == "tiny":
        return tiny().load().mmdit
    return MMDiT(model_io._CONFIG[spec.source.repo])


@pytest.mark.parametrize(
    ("option", "everywhere", "post_gelu"),
    [(tiny, 47, 11), (sd3_medium, 191, 47), (sd35_large, 303, 75)],
)
def test_the_number_of_sites(option, everywhere, post_gelu):
    found = names(option())
    assert len(set(found)) == len(found) == everywhere
    assert sum(name.endswith(".post_gelu") for name in found) == post_gelu


@pytest.mark.parametrize("option", [tiny, sd3_medium, sd35_large])
def test_every_path_is_a_linear_of_the_librarys_model_with_the_stated_width(option):
    spec = option()
    modules = dict(library(spec).named_modules())
    for each in site_paths(spec):
        assert modules[each.path].weight.shape[1] == each.site.width, each


def test_no_linear_of_the_blocks_is_forgotten():
    """q, k and v share one site; adaLN and the embedders of time and pooled text have none."""
    spec = sd3_medium()
    modules = dict(library(spec).named_modules())
    read = {each.path for each in site_paths(spec)}
    shared = {p.replace("q_proj", f"{x}_proj") for p in read if "q_proj" in p for x in "kv"}
    outside = {p for p in modules if "adaLN" in p or p.startswith(("y_emb", "t_emb", "x_emb"))}
    linears = {path for path, module in modules.items() if "weight" in module}
    assert linears - outside - {"x_pos_embedder.pos_embed"} == read | shared


def test_the_order_is_that_of_the_data_flow():
    expected = ["embed.context_in"]
    for block in range(6):
        expected += [f"mm_{block:02d}_img.{place}" for place in PLACES]
        expected += [f"mm_{block:02d}_txt.{place}" for place in PLACES[: 4 if block < 5 else 1]]
    assert names(tiny()) == [*expected, "final.linear_in"]


def test_tokens_are_those_of_the_stream():
    tokens = {each.site.name: each.tokens for each in site_paths(sd3_medium(latent_size=(32, 48)))}
    assert tokens["mm_03_img.o_in"] == tokens["final.linear_in"] == 16 * 24
    assert tokens["mm_03_txt.o_in"] == tokens["embed.context_in"] == 77 + 512


FLUX = {"name": "flux", "blocks": 2, "unified_blocks": 3, "hidden": 32, "mlp_ratio": 2}


@pytest.mark.parametrize("parallel", [True, False])
def test_unified_blocks_follow_in_a_joint_stream(parallel):
    spec = replace(tiny(), **FLUX)
    found = {each.site.name: each for each in site_paths(spec)}
    last = [f"uni_{block:02d}.{place}" for block in range(3) for place in PLACES]
    assert list(found)[-13:] == [*last, "final.linear_in"]
    assert len(found) == 2 * 8 + 3 * 4 + 2  # the last text block is whole: it feeds unified ones
    one = found["uni_02.post_gelu"]
    assert (one.site.stream, one.site.block, one.site.width) == ("joint", "uni_02", 64)
    assert one.tokens == 4 * 4 + spec.num_text_tokens
    modules = dict(
        MMDiT(
            MMDiTConfig(
                num_heads=2,
                depth_multimodal=2,
                depth_unified=3,
                hidden_size_override=32,
                mlp_ratio=2,
                parallel_mlp_for_unified_blocks=parallel,
            )
        ).named_modules()
    )
    assert all(modules[e.path].weight.shape[1] == e.site.width for e in found.values())


def test_a_model_of_unified_blocks_alone():
    spec = replace(tiny(), blocks=0, unified_blocks=1)
    assert names(spec) == ["embed.context_in", *(f"uni_00.{p}" for p in PLACES), "final.linear_in"]


def test_an_unknown_structure_has_no_sites():
    assert site_paths(replace(tiny(), blocks=0)) == ()


def test_sites_and_options_import_no_mlx():
    code = (
        "import sys, taqdit.tracer, taqdit.models.sites as s, taqdit.models.options as o;"
        "assert len(s.site_paths(o.sd3_medium())) == 191;"
        "print(sorted({'mlx', 'diffusionkit', 'matplotlib', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- what a tracer reads --------------------------------------------------------------------


def picked(options, spec=None):
    return [site.name for site in options.chosen(sites(spec or tiny()))]


def test_without_patterns_everything_of_the_places_is_read():
    assert picked(tracer.block_inputs()) == names(tiny())
    assert len(picked(tracer.post_gelu(), sd3_medium())) == 47
    assert picked(tracer.none()) == []


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"blocks": ["embed", "final"]}, ["embed.context_in", "final.linear_in"]),
        ({"blocks": ["mm_05"], "streams": ["txt"]}, ["mm_05_txt.qkv_in"]),
        ({"sites": ["mm_0[01]_img.o_*"]}, ["mm_00_img.o_in", "mm_01_img.o_in"]),
        ({"blocks": ["mm_0?"], "streams": ["t*"], "sites": ["*.post_gelu", "embed.*"]}, 5),
        ({"streams": ["img"]}, 25),
        ({"sites": ["*.fc1_in", "*.FC1_in"]}, 11),
    ],
)
def test_patterns_narrow_the_choice(patterns, expected):
    found = picked(tracer.block_inputs(**patterns))
    assert (len(found) if isinstance(expected, int) else found) == expected


def test_patterns_tell_upper_from_lower_case():
    assert picked(tracer.post_gelu(blocks=["MM_00"])) == []


def test_the_order_of_the_sites_is_kept():
    found = picked(tracer.block_inputs(blocks=["final", "mm_01", "embed"]))
    assert found == [name for name in names(tiny()) if name in found]
    assert len(found) == 10


def test_a_pattern_that_matches_nothing_is_named_with_what_there_is():
    options = tracer.block_inputs(blocks=["mm_00", "mm_99"], streams=["image"])
    assert options.problems(sites(sd3_medium())) == (
        "blocks=['mm_00', 'mm_99']: 'mm_99' matches nothing;"
        " there are embed, mm_00, mm_01, mm_02, mm_03 ... final (26 in all)",
        "streams=['image']: 'image' matches nothing; there are txt, img",
    )


def test_patterns_that_exclude_each_other_are_named_together():
    options = tracer.block_inputs(blocks=["embed"], streams=["img"])
    assert options.problems(sites(tiny())) == (
        "blocks=['embed'] and streams=['img'] have no site in common; widen one, null = all",
    )


def test_a_place_that_is_not_read_is_not_offered():
    (text,) = tracer.post_gelu(blocks=["embed"]).problems(sites(tiny()))
    assert text.endswith("there are mm_00, mm_01, mm_02, mm_03, mm_04, mm_05")


@pytest.mark.parametrize(
    "options", [tracer.block_inputs(), tracer.post_gelu(blocks=["mm_*"]), tracer.none()]
)
def test_patterns_that_match_are_no_problem(options):
    assert options.problems(sites(tiny())) == ()


def test_where_there_are_no_sites_no_pattern_is_a_problem():
    assert tracer.post_gelu(blocks=["mm_00"]).problems([]) == ()


def test_a_site_of_another_place_never_passes():
    assert tracer.post_gelu().chosen([Site("mm_00_img.o_in", 4), Site("embed.context_in", 4)]) == ()


# --- options --------------------------------------------------------------------------------


def test_bad_options_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        tracer.block_inputs(
            num_trajectories=0, folds=0, blocks=[], streams=[""], sites="mm_*", nonfinite="skip"
        )
    starts = ["num_trajectories=0", "folds=0", "blocks=[]", "streams=['']", "sites=mm_*"]
    starts.append("nonfinite=skip must be one of stop, count")
    assert len(caught.value.args) == len(starts)
    for text, start in zip(caught.value.args, starts, strict=True):
        assert text.startswith(start)


def test_options_hold_what_was_given():
    options = tracer.block_inputs(
        num_trajectories=3, folds=2, blocks=["a"], streams=["b"], sites=["c"], nonfinite="count"
    )
    given = dataclasses.asdict(options)
    assert list(given.values()) == [3, 2, ("a",), ("b",), ("c",), "count"]
    assert options.places == tracer.PLACES
    assert {options, options} == {options}  # hashable: every list became a tuple


def test_patterns_pass_from_the_command_line():
    composed = config.compose_config(
        ["tracer.blocks=[mm_0*,final]", "tracer.sites=[mm_*.fc1_in,mm_0?_img.o_in]"]
    )
    options = config.plan(composed).tracer
    assert options.blocks == ("mm_0*", "final")
    assert options.sites == ("mm_*.fc1_in", "mm_0?_img.o_in")


OPTIONS = sorted((ROOT / "conf" / "tracer").glob("*.yaml"))


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.stem)
def test_every_yaml_states_its_functions_own_defaults_commented(path):
    text = path.read_text("utf-8")
    node = dict(config.compose_config([f"tracer={path.stem}"]).tracer)
    assert node.pop("_target_") == f"taqdit.tracer.{path.stem}"
    parameters = inspect.signature(getattr(tracer, path.stem)).parameters
    assert node == {name: each.default for name, each in parameters.items()}
    assert text.startswith("# ")
    own = [line for line in text.splitlines() if line[:1].isalpha()]
    knobs = [line for line in own if not line.startswith(("_target_", "defaults"))]
    assert all(" # " in line for line in knobs)
