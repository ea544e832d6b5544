"""Sites by their names, and where their channels lie."""

import numpy as np
import pytest
from statistics_oracle import assert_equal

from taqdit.activations import Layout, Site


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mm_07_img.post_gelu", ("mm_07", "img", "post_gelu", "mm_07_img")),
        ("mm_23_txt.qkv_in", ("mm_23", "txt", "qkv_in", "mm_23_txt_qkv_in")),
        ("uni_03.o_in", ("uni_03", "joint", "o_in", "uni_03_o_in")),
        ("uni_12.post_gelu", ("uni_12", "joint", "post_gelu", "uni_12")),
        ("embed.context_in", ("embed", "txt", "context_in", "embed_context_in")),
        ("final.linear_in", ("final", "img", "linear_in", "final_linear_in")),
    ],
)
def test_a_site_is_known_by_its_name(name, parts):
    site = Site(name, 4)
    assert (site.block, site.stream, site.place, site.label) == parts


def test_a_layout_says_where_channels_lie():
    layout = Layout.of([["a.o_in", 3], ["b.o_in", 1], ["c.o_in", 2]], folds=2)
    assert layout.channels == 6
    assert [layout.span(site) for site in range(3)] == [slice(0, 3), slice(3, 4), slice(4, 6)]
    assert_equal(layout.spread(np.array([5, 6, 7])), [5, 5, 5, 6, 7, 7])
    assert (layout.index("c.o_in"), layout.sites[1]) == (2, Site("b.o_in", 1))
    with pytest.raises(KeyError):
        layout.index("d.o_in")
