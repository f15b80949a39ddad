"""What autoquant decided, as people read it."""

from __future__ import annotations

from rich.console import Console

from tuner.report.html import layers_html
from tuner.report.layers import layer_rows, layers_table

SUMMARY = {
    "records": 1,
    "autoquant": [
        {
            "layers": ["transformer_blocks.*.attn.to_q"],
            "scheme": "float8_dynamic_row",
            "ms": {"none": 2.5, "float8_dynamic_row": 1.25},
        },
        {
            "layers": ["transformer_blocks.*.attn.<b>add_q_proj</b>"],
            "scheme": "none",
            "ms": {"none": 0.1, "float8_dynamic_row": 0.1234},
        },
    ],
}


def test_each_group_says_its_scheme_and_what_decided() -> None:
    first, second = layer_rows(SUMMARY)
    assert first == ("transformer_blocks.*.attn.to_q", "fp8-row", "unquantized 2.5 · fp8-row 1.25")
    assert second[1:] == ("unquantized", "unquantized 0.1 · fp8-row 0.123")


def test_on_a_terminal_and_on_a_page() -> None:
    table = layers_table(SUMMARY)
    assert table is not None
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table)
    assert "fp8-row 1.25" in capture.get()
    title, page = layers_html(SUMMARY)
    assert title == "<h2>Layer by layer</h2>"
    assert "&lt;b&gt;add_q_proj" in page


def test_a_study_that_decided_nothing_shows_nothing() -> None:
    assert layers_table({"records": 1}) is None
    assert layers_html({"records": 1}) == ()
    assert layers_html({"autoquant": ["of another release"]}) == ()
