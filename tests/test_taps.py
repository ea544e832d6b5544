"""Taps read what the linears are given; the forward and the model never notice."""

import gc
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import erf

from taqdit.backend import mx, nn, tree_flatten
from taqdit.errors import ModelError
from taqdit.models.diffusionkit import MMDiT, MMDiTConfig
from taqdit.models.modulation import Modulation
from taqdit.models.options import tiny
from taqdit.models.sites import site_paths
from taqdit.tracer.taps import Taps

ROTARY = type(MMDiTConfig.pos_embed_type).PreSDPARope
SIGMAS = mx.array(np.array([1.0, 0.75, 0.4, 0.0], np.float32))


@pytest.fixture(scope="module")
def model():
    return tiny().load()


@pytest.fixture(scope="module")
def rows(model):
    """Conditioning of one prompt with its negative: tokens (2, n, 4096), pooled (2, d)."""
    both = [model.encode("a red circle on a white background"), model.encode("")]
    return tuple(mx.array(np.stack([row[part] for row in both])) for part in (0, 1))


def taps_of(mmdit, spec, only=""):
    found = [each for each in site_paths(spec) if only in each.site.name]
    widths = {each.site.name: each.site.width for each in found}
    return Taps(mmdit, {each.site.name: each.path for each in found}, widths=widths)


def identities(mmdit):
    """What must not change: modules by name with class and attributes, and parameters."""
    modules = [(name, id(m), type(m), set(vars(m))) for name, m in mmdit.named_modules()]
    parameters = {name: id(value) for name, value in tree_flatten(mmdit.parameters())}
    # DiffusionKit's own unified block assigns this one in every forward.
    moving = [n for n in parameters if n.startswith("unified") and n.endswith("fc2.bias")]
    return modules, {name: at for name, at in parameters.items() if name not in moving}


class Flux:
    """A transformer of FLUX's kind, small and untrained: multimodal, then unified blocks."""

    def __init__(self, *, parallel=True):
        mx.random.seed(3)
        self.mmdit = MMDiT(
            MMDiTConfig(
                num_heads=2,
                depth_multimodal=2,
                depth_unified=2,
                parallel_mlp_for_unified_blocks=parallel,
                hidden_size_override=64,
                mlp_ratio=2,
                patchify_via_reshape=True,
                pos_embed_type=ROTARY,
                rope_axes_dim=(8, 12, 12),
                use_qk_norm=True,
                pooled_text_embed_dim=32,
                token_level_text_embed_dim=96,
                low_memory_mode=False,
                dtype=mx.float32,
            )
        )
        self.spec = replace(
            tiny(latent_size=(4, 6)),
            num_text_tokens=5,
            token_width=96,
            hidden=64,
            mlp_ratio=2,
            blocks=2,
            unified_blocks=2,
        )
        normal = [mx.random.normal(shape) for shape in ((2, 4, 6, 16), (2, 5, 1, 96), (2, 32))]
        self.latent, self.tokens, pooled = normal
        self.time = mx.array([500.0])
        mx.eval(self.mmdit.parameters(), normal)
        self._modulation = Modulation(self.mmdit, pooled, self.time)
        self.forward()  # rotary embeddings are kept from the first forward on

    def forward(self):
        with self._modulation.installed():
            return self.mmdit(self.latent, self.tokens, self.time)


@pytest.fixture(scope="module")
def flux():
    return Flux()


def inputs(taps, forward):
    """(what the sites read: name -> arrays, the forward's output)."""
    seen = {}
    with taps.reading(lambda name, array: seen.setdefault(name, []).append(array)):
        output = forward()
    return seen, output


# --- what is read ---------------------------------------------------------------------------


def test_the_embedded_model_is_read_at_every_site_and_samples_the_same_bits(model, rows):
    taps, paths = taps_of(model.mmdit, model.spec), site_paths(model.spec)
    before, (tokens, pooled) = identities(model.mmdit), rows
    latent = model.first_latent([0], SIGMAS[0])
    with model.denoiser(tokens=tokens, pooled=pooled, sigmas=SIGMAS, cfg_scale=2.0) as denoise:
        for step in range(3):
            plain = denoise(latent, step)
            seen, output = inputs(taps, lambda step=step: denoise(latent, step))
            assert mx.array_equal(output, plain)
            assert seen.keys() == {each.site.name for each in paths}
            for each in paths:
                (array,) = seen[each.site.name]
                assert array.shape[0] == 2
                assert array.size == 2 * each.tokens * each.site.width
                assert array.shape[-1] == each.site.width
    assert identities(model.mmdit) == before


@pytest.mark.parametrize("parallel", [True, False])
def test_unified_blocks_are_read_too(parallel):
    flux = Flux(parallel=parallel)
    before, plain = identities(flux.mmdit), flux.forward()
    seen, output = inputs(taps_of(flux.mmdit, flux.spec), flux.forward)
    assert mx.array_equal(output, plain)
    assert {name: [a.size for a in arrays] for name, arrays in seen.items()} == {
        each.site.name: [2 * each.tokens * each.site.width] for each in site_paths(flux.spec)
    }
    for block in ("uni_00", "uni_01"):
        same = seen[f"{block}.fc1_in"][0] is seen[f"{block}.qkv_in"][0]
        assert same is parallel
    assert identities(flux.mmdit) == before
    fc2 = flux.mmdit.unified_transformer_blocks[0].transformer_block.mlp.fc2
    assert not fc2.bias.any()  # what the forward assigned has stayed


@pytest.mark.parametrize(
    "block",
    [
        "multimodal_transformer_blocks.0.image_transformer_block",
        "multimodal_transformer_blocks.1.text_transformer_block",
        "unified_transformer_blocks.0.transformer_block",
    ],
)
def test_q_k_and_v_read_the_very_same_array(flux, block):
    taps = Taps(flux.mmdit, {name: f"{block}.attn.{name}_proj" for name in "qkv"})
    seen, _ = inputs(taps, flux.forward)
    (q,), (k,), (v,) = (seen[name] for name in "qkv")
    assert q is k is v


def test_the_values_are_inputs_of_the_linears(flux):
    """Each place against float64 arithmetic on the place before it."""
    seen, output = inputs(taps_of(flux.mmdit, flux.spec), flux.forward)
    modules = dict(flux.mmdit.named_modules())

    def value(name):
        return np.array(seen[name][0], np.float64)

    def applied(path, x):
        weight, bias = (np.array(modules[path][part], np.float64) for part in ("weight", "bias"))
        return x @ weight.T + bias

    assert mx.array_equal(seen["embed.context_in"][0], flux.tokens)
    for name, path in (
        ("mm_01_txt", "multimodal_transformer_blocks.1.text_transformer_block"),
        ("uni_01", "unified_transformer_blocks.1.transformer_block"),
    ):
        before = applied(f"{path}.mlp.fc1", value(f"{name}.fc1_in"))
        gelu = before * (1 + erf(before / np.sqrt(2))) / 2
        assert np.allclose(value(f"{name}.post_gelu"), gelu, atol=1e-5)
    patches = applied("final_layer.linear", value("final.linear_in"))
    assert np.allclose(np.sort(patches, axis=None), np.sort(np.array(output), axis=None), atol=1e-5)


@pytest.mark.parametrize("how", [{"bits": 8}, {"bits": 3}, {"bits": 6}, {"mode": "mxfp8"}], ids=str)
def test_quantized_linears_are_read_too(how):
    flux = Flux()
    nn.quantize(flux.mmdit, group_size=32, **how)
    flux.forward()
    before, plain = identities(flux.mmdit), flux.forward()
    taps = taps_of(flux.mmdit, flux.spec)  # the widths are those of the packed weights
    assert {type(module) for module in taps._modules} == {nn.QuantizedLinear}
    seen, output = inputs(taps, flux.forward)
    assert mx.array_equal(output, plain)
    assert {n: a[0].shape[-1] for n, a in seen.items()} == {
        each.site.name: each.site.width for each in site_paths(flux.spec)
    }
    assert identities(flux.mmdit) == before


def test_a_module_called_twice_is_read_twice(flux):
    taps = taps_of(flux.mmdit, flux.spec, "uni_00.qkv_in")

    def twice():
        flux.forward()
        return flux.forward()

    assert [len(arrays) for arrays in inputs(taps, twice)[0].values()] == [2]


def test_no_taps_read_nothing(flux):
    seen, output = inputs(Taps(flux.mmdit, {}), flux.forward)
    assert seen == {}
    assert mx.array_equal(output, flux.forward())


# --- the model stays what it is -------------------------------------------------------------


def test_while_reading_paths_parameters_and_modules_stay(flux):
    modules, parameters = identities(flux.mmdit)
    weights = dict(tree_flatten(flux.mmdit.parameters())).keys()
    with taps_of(flux.mmdit, flux.spec).reading(lambda *_: None):
        during = identities(flux.mmdit)
        assert [each[:2] for each in during[0]] == [each[:2] for each in modules]
        assert all(issubclass(a[2], b[2]) for a, b in zip(during[0], modules, strict=True))
        assert during[1] == parameters
        assert dict(tree_flatten(flux.mmdit.parameters())).keys() == weights
        flux.forward()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("site", ["embed.context_in", "mm_01_img.fc1_in", "final.linear_in"])
def test_an_exception_while_reading_leaves_the_model_as_it_was(flux, site, error):
    taps, before = taps_of(flux.mmdit, flux.spec), identities(flux.mmdit)

    def fail(name, _array):
        if name == site:
            raise error("stop here")

    with pytest.raises(error, match="stop here") as caught, taps.reading(fail):
        flux.forward()
    assert identities(flux.mmdit) == before
    assert caught.traceback  # still alive: the model did not wait for its end
    assert len(inputs(taps, flux.forward)[0]) == len(site_paths(flux.spec))


def test_an_exception_inside_a_tapped_module_leaves_the_model_as_it_was(flux):
    taps, before = taps_of(flux.mmdit, flux.spec, "embed"), identities(flux.mmdit)
    read = []
    tokens, flux.tokens = flux.tokens, mx.zeros((2, 5, 1, 7))
    try:
        with (
            pytest.raises(ValueError, match="dimension"),
            taps.reading(lambda *seen: read.append(seen)),
        ):
            flux.forward()
    finally:
        flux.tokens = tokens
    assert [(name, array.shape) for name, array in read] == [("embed.context_in", (2, 5, 1, 7))]
    assert identities(flux.mmdit) == before


def interrupted(run, *, at, event="line", files=("/tracer/taps.py",)):
    """Run it, raising KeyboardInterrupt before the n-th line or opcode of the files.

    Returns how many there were until then. No `with` here: its own exit is among what is cut.
    """
    seen = 0

    def trace(frame, what, _argument):
        nonlocal seen
        if not frame.f_code.co_filename.endswith(files):
            return None
        frame.f_trace_opcodes = True
        if what == event:
            seen += 1
            if seen == at:
                raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(previous)
    return seen


@pytest.mark.parametrize(("event", "only"), [("line", ""), ("opcode", "mm_01_img.post_gelu")])
def test_an_interrupt_anywhere_leaves_the_model_as_it_was(flux, event, only):
    def taps():  # new ones each time: their first reading does the most
        return taps_of(flux.mmdit, flux.spec, only)

    before, first = identities(flux.mmdit), taps()
    count = interrupted(lambda: inputs(first, flux.forward), at=None, event=event)
    assert count > 150
    for number in range(1, count + 1):
        cut = taps()
        with pytest.raises(KeyboardInterrupt) as caught:
            interrupted(lambda cut=cut: inputs(cut, flux.forward), at=number, event=event)
        assert identities(flux.mmdit) == before, number
        assert caught.traceback  # still alive: the model did not wait for its end
    assert inputs(taps(), flux.forward)[0].keys() == inputs(first, flux.forward)[0].keys()


@pytest.mark.slow
def test_an_interrupt_in_the_with_statement_itself_is_mended_by_restore(flux):
    taps, before = taps_of(flux.mmdit, flux.spec), identities(flux.mmdit)
    files, gaps = ("/tracer/taps.py", "/contextlib.py"), 0

    def forward():
        inputs(taps, flux.forward)

    def guarded():
        try:
            inputs(taps, flux.forward)
        finally:
            taps.restore()

    forward()  # the first reading runs more lines than the others
    count = interrupted(forward, at=None, files=files)
    for number in range(1, count + 1):
        with pytest.raises(KeyboardInterrupt) as caught:
            interrupted(forward, at=number, files=files)
        gaps += identities(flux.mmdit) != before
        del caught  # lets the exception go, and with it what it held
        assert identities(flux.mmdit) == before
        with pytest.raises(KeyboardInterrupt) as caught:
            interrupted(guarded, at=number, files=files)
        assert identities(flux.mmdit) == before, number
        assert caught.traceback
    assert gaps > 0  # or this test would show nothing
    forward()


def test_who_reads_is_let_go_at_once(flux):
    """What a reader has collected may be large: nothing may wait for the garbage collector."""

    class Reader:
        def read(self, name, array):
            pass

    taps, reader = taps_of(flux.mmdit, flux.spec), Reader()
    gone = weakref.ref(reader)
    gc.disable()
    try:
        with taps.reading(reader.read):
            flux.forward()
        del reader
        assert gone() is None
    finally:
        gc.enable()


# --- refusals -------------------------------------------------------------------------------


def test_a_site_that_was_not_called_is_an_error_and_the_model_is_as_it_was(flux):
    taps, before = taps_of(flux.mmdit, flux.spec), identities(flux.mmdit)
    with (
        pytest.raises(ModelError, match=r"at embed\.context_in, mm_00_img\.qkv_in, .* 23 more"),
        taps.reading(lambda *_: None),
    ):
        pass
    assert identities(flux.mmdit) == before


def test_replaced_modules_are_noticed():
    flux = Flux()
    taps = taps_of(flux.mmdit, flux.spec, "uni_01.o_in")
    nn.quantize(flux.mmdit, group_size=32, bits=8)
    with pytest.raises(ModelError, match=r"uni_01\.o_in: the forward did not call"):
        inputs(taps, flux.forward)


def test_an_exception_is_not_hidden_by_sites_that_were_not_called(flux):
    with (
        pytest.raises(ZeroDivisionError),
        taps_of(flux.mmdit, flux.spec).reading(lambda *_: None),
    ):
        raise ZeroDivisionError


def test_a_module_is_read_by_one_at_a_time(flux):
    taps, other = taps_of(flux.mmdit, flux.spec), taps_of(flux.mmdit, flux.spec, "mm_01_txt")
    before, seen = identities(flux.mmdit), []
    with taps.reading(lambda name, _: seen.append(name)):
        for inner in (taps, other):
            with pytest.raises(ModelError, match="read already"), inner.reading(print):
                pass
        with pytest.raises(ModelError, match="read already"):
            taps_of(flux.mmdit, flux.spec, "final")
        flux.forward()
    assert len(seen) == len(site_paths(flux.spec))  # the outer reading went on
    assert identities(flux.mmdit) == before


def test_readings_of_different_modules_may_overlap(flux):
    some, others = (taps_of(flux.mmdit, flux.spec, only) for only in ("post_gelu", "o_in"))
    before = identities(flux.mmdit)
    with some.reading(lambda *_: None):
        seen, _ = inputs(others, flux.forward)
    assert set(map(lambda name: name.rpartition(".")[2], seen)) == {"o_in"}
    assert identities(flux.mmdit) == before


LAST_TEXT = "multimodal_transformer_blocks.5.text_transformer_block"
BAD_PATHS = [
    ("multimodal_transformer_blocks.6.image_transformer_block.mlp.fc1", "no such module"),
    ("", "a MMDiT, where a linear"),
    ("final_layer", "a FinalLayer, where a linear"),
    ("x_embedder.proj", "a Conv2d, where a linear"),
    (f"{LAST_TEXT}.attn.o_proj", "a Identity, where a linear"),
    (f"{LAST_TEXT}.mlp.fc1", "no such module"),
    ("final_layer.linear", "128 input channels, not 512"),
]


@pytest.mark.parametrize(("path", "why"), BAD_PATHS)
def test_a_path_that_is_no_linear_of_the_width_is_refused(model, path, why):
    with pytest.raises(ModelError, match=f"site there at {path}: .*{why}"):
        Taps(model.mmdit, {"there": path}, widths={"there": 512})


def test_a_packed_width_is_checked():
    flux = Flux()
    nn.quantize(flux.mmdit, group_size=32, bits=4)
    with pytest.raises(ModelError, match="64 input channels, not 8"):
        Taps(flux.mmdit, {"there": "final_layer.linear"}, widths={"there": 8})


def test_two_sites_at_one_module_are_refused(flux):
    paths = {"one": "final_layer.linear", "two": "context_embedder", "three": "final_layer.linear"}
    with pytest.raises(ModelError, match="module of one already"):
        Taps(flux.mmdit, paths)
