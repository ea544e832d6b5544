"""Every linear of a model: its name, its path in the library's model, its weight."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from taqdit.activations.layer_json import layers_of
from taqdit.backend import mx, nn
from taqdit.errors import ModelError
from taqdit.models.diffusionkit import MMDiT, MMDiTConfig, model_io
from taqdit.models.linears import linear_paths, linears
from taqdit.models.options import sd3_medium, sd35_large, tiny
from taqdit.models.sites import site_paths

LINEARS = (nn.Linear, nn.QuantizedLinear, nn.Conv1d, nn.Conv2d)
INNER = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "adaln")
LAST_TEXT = ("q_proj", "k_proj", "v_proj", "adaln")


def walked(mmdit):
    """Paths of all linears, as the module tree has them."""
    return [path for path, module in mmdit.named_modules() if isinstance(module, LINEARS)]


def library(spec):
    """DiffusionKit's own module of a model; its lazy arrays are never computed."""
    return MMDiT(model_io._CONFIG[spec.source.repo])


@pytest.fixture
def mmdit():
    return tiny().load().mmdit


def test_every_linear_of_the_embedded_model_is_named_once(mmdit):
    assert Counter(linear_paths(tiny()).values()) == Counter(walked(mmdit))


@pytest.mark.parametrize(
    ("option", "blocks", "adaln"), [(sd3_medium, 285, 49), (sd35_large, 453, 77)]
)
def test_every_linear_of_the_real_models_is_named_once(option, blocks, adaln):
    spec = option()
    paths = linear_paths(spec)
    assert Counter(paths.values()) == Counter(walked(library(spec)))
    assert sum(name.endswith(".adaln") for name in paths) == adaln
    inside = [n for n in paths if n.startswith("mm_") and not n.endswith(".adaln")]
    assert len(inside) == blocks
    assert len(paths) == blocks + adaln + 7  # six embedders and the final linear


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("parallel", [True, False])
def test_unified_blocks_are_named_too(parallel, blocks):
    spec = replace(tiny(), name="flux", blocks=blocks, unified_blocks=3, hidden=32, mlp_ratio=2)
    config = MMDiTConfig(
        num_heads=2,
        depth_multimodal=blocks,
        depth_unified=3,
        hidden_size_override=32,
        mlp_ratio=2,
        parallel_mlp_for_unified_blocks=parallel,
    )
    paths = linear_paths(spec)
    assert Counter(paths.values()) == Counter(walked(MMDiT(config)))
    assert list(paths)[-9:] == [*(f"uni_02.{x}" for x in INNER), "final.linear", "final.adaln"]
    assert ("mm_01_txt.fc2" in paths) == bool(blocks)  # it feeds the unified blocks


def test_the_order_is_that_of_the_data_flow():
    expected = [f"embed.{name}" for name in ("context", "x", "y_0", "y_2", "t_0", "t_2")]
    for block in range(6):
        expected += [f"mm_{block:02d}_img.{x}" for x in INNER]
        expected += [f"mm_{block:02d}_txt.{x}" for x in (INNER if block < 5 else LAST_TEXT)]
    assert list(linear_paths(tiny())) == [*expected, "final.linear", "final.adaln"]


@pytest.mark.parametrize("option", [tiny, sd3_medium])
def test_the_readers_of_every_site_are_among_them(option):
    """Under the same names and, where the site is read, at the same path."""
    spec = option()
    paths = linear_paths(spec)
    for each in site_paths(spec):
        readers = layers_of(each.site)
        assert paths[readers[0]] == each.path
        assert paths.keys() >= set(readers)


def test_an_unknown_structure_has_no_linears():
    assert linear_paths(replace(tiny(), blocks=0)) == {}


def test_paths_need_no_mlx():
    code = (
        "import sys; from taqdit.models.linears import linear_paths as p;"
        "from taqdit.models.options import sd3_medium; assert len(p(sd3_medium())) == 341;"
        "print(sorted({'mlx', 'diffusionkit', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- weights --------------------------------------------------------------------------------


def test_weights_are_those_of_the_modules(mmdit):
    modules = dict(mmdit.named_modules())
    found = list(linears(mmdit, tiny()))
    assert [layer for layer, _ in found] == list(linear_paths(tiny()))
    for layer, weight in found:
        own = np.array(modules[linear_paths(tiny())[layer]].weight)
        assert weight.dtype == np.float32
        assert np.array_equal(weight, own.reshape(len(own), -1))


def test_a_kernel_gives_what_its_flattened_weight_gives(mmdit):
    """The patch projection is a linear of the patch (2, 2, 16)."""
    weight = dict(linears(mmdit, tiny()))["embed.x"]
    patch = np.random.default_rng(0).normal(size=(1, 2, 2, 16)).astype(np.float32)
    bias = np.array(mmdit.x_embedder.proj.bias)
    expected = np.array(mmdit.x_embedder.proj(mx.array(patch))).reshape(-1)
    np.testing.assert_allclose(weight @ patch.reshape(-1) + bias, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_a_half_precision_weight_is_exact_in_float32(mmdit, dtype):
    mmdit.set_dtype(dtype)
    weight = dict(linears(mmdit, tiny()))["final.linear"]
    assert weight.dtype == np.float32
    assert np.array_equal(weight, np.array(mmdit.final_layer.linear.weight.astype(mx.float32)))


@pytest.mark.parametrize("how", [{"bits": 8}, {"bits": 4, "group_size": 32}, {"mode": "mxfp4"}])
def test_a_quantized_linear_is_read_back(mmdit, how):
    before = dict(linears(mmdit, tiny()))
    nn.quantize(mmdit, **how, class_predicate=lambda path, _: path == "final_layer.linear")
    linear = mmdit.final_layer.linear
    assert isinstance(linear, nn.QuantizedLinear)
    assert Counter(linear_paths(tiny()).values()) == Counter(walked(mmdit))
    after = dict(linears(mmdit, tiny()))
    changed = [layer for layer in before if not np.array_equal(before[layer], after[layer])]
    assert changed == ["final.linear"]
    x = np.random.default_rng(0).normal(size=(3, 128)).astype(np.float32)
    expected = np.array(linear(mx.array(x))) - np.array(linear.bias)
    np.testing.assert_allclose(x @ after["final.linear"].T, expected, atol=1e-4)


def test_one_at_a_time(mmdit):
    """The weight after a bad one is never touched."""
    rows = linears(mmdit, tiny())
    assert next(rows)[0] == "embed.context"
    mmdit.x_embedder.proj.weight = mx.array([])
    with pytest.raises(
        ModelError, match=r"embed\.x at x_embedder\.proj: its weight \(0,\) is away"
    ):
        next(rows)


def test_a_transformer_of_another_structure_is_refused(mmdit):
    with pytest.raises(ModelError, match=r"layer uni_00\.q_proj at unified_transformer_blocks\.0"):
        list(linears(mmdit, replace(tiny(), blocks=5, unified_blocks=1)))


def test_a_module_without_a_weight_is_no_linear(mmdit):
    """The last text block's o_proj is an identity there."""
    with pytest.raises(ModelError, match=r"mm_05_txt\.o_proj.* has no such linear"):
        list(linears(mmdit, replace(tiny(), unified_blocks=1)))
