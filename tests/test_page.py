"""What the page of a run says that it leaves out."""

from taqdit.report import run_page as page


def test_what_is_left_out_is_said():
    assert page._left_out(page.MOST_PICTURES, page.EMBEDDED) == []
    pictures, figures = page._left_out(page.MOST_PICTURES + 1, page.EMBEDDED + 2)
    assert pictures.startswith(f"{page.MOST_PICTURES} of {page.MOST_PICTURES + 1} pictures")
    assert figures.startswith(f"{page.EMBEDDED} of {page.EMBEDDED + 2} figures")
