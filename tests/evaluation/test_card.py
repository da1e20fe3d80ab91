"""The model-card section: its tables from known figures, and what it says plainly."""

from __future__ import annotations

import re

import pytest

from engine.evaluation.card import BEGIN, END, card_section, inserted
from support.evaluations import evaluation

PICTURES = {"quality": "quality.png", "acceptance": "acceptance.png", "time": "time.png"}


def tables(section: str) -> list[list[list[str]]]:
    """Every table as rows of cells, the head first; all rows must be equally long."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE):
        rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()]
        assert len({len(row) for row in rows}) == 1, block
        assert all(re.fullmatch("---:?", cell) for cell in rows[1])
        found.append([rows[0], *rows[2:]])
    return found


def test_a_24_layer_model_gets_the_cards_own_table() -> None:
    section = card_section(evaluation(), PICTURES)
    assert (
        "| layers | perplexity | tok/s |\n"
        "| --- | ---: | ---: |\n"
        "| all (24) | 10.00 | 100 |\n"
        "| 18 | 16.00 | 133 |\n"
        "| 12 | 22.00 | 200 |\n"
        "| 6 | 28.00 | 400 |\n"
    ) in section


def test_the_structure_of_a_section() -> None:
    section = card_section(evaluation(), PICTURES)
    assert re.findall("^### (.*)$", section, re.MULTILINE) == [
        "Quality and speed by exit",
        "Drafting",
        "Where the time goes",
        "How this was measured",
    ]
    assert re.findall(r"^!\[.+\]\((.*)\)$", section, re.MULTILINE) == list(PICTURES.values())
    _, exits, drafting, time = tables(section)
    assert exits[0] == [
        "exit", "perplexity", "without exit norm", "bits per byte", "agreement with 24 layers",
        "tok/s, 1 sequence", "tok/s, 8 sequences", "times full depth", "first token, ms",
    ]  # fmt: skip
    assert exits[1] == [
        "6", "28.00", "50.00", "1.000", "25.0%", "400", "3,200", "4.00", "12.5",
    ]  # fmt: skip
    assert exits[-1][:3] == ["24", "10.00", ""]
    assert [row[0] for row in drafting] == ["draft exit", "6", "12", "18"]
    assert drafting[2] == ["12", "50.0%", "23.4%", "1.94", "1.40 (4)", "1.35", "1.40 (4)", "1.35"]
    assert [row[0] for row in time[1:]] == [
        "24 layers", "18 layers", "12 layers", "6 layers",
        "exit 6 drafts 4", "exit 12 drafts 4", "exit 18 drafts 4",
    ]  # fmt: skip
    assert time[1] == ["24 layers", "0.000", "0.000", "7.000", "2.000", "1.000", "10.000", "15.000"]
    assert "All 1,000 tokens that it gave were those that come without drafts." in section
    assert "Best draft exit: **6**, with 4 drafts per round: 1.40 times as fast" in section
    for fact in ("Abacus", "2 cores, 2 GiB", "head in int8, K/V in fp16", "`stories.txt`"):
        assert fact in section
    assert "n-gram drafts" in section.partition("Not measured: ")[2]


def test_other_depths_get_their_quarters() -> None:
    section = card_section(evaluation(10, (2, 5, 7, 10)), {})
    assert [row[0] for row in tables(section)[0]] == ["layers", "all (10)", "7", "5", "2"]
    section = card_section(evaluation(1, (1,)), {})
    assert [row[0] for row in tables(section)[0]] == ["layers", "all (1)"]
    assert "acceptance is not measured" in section


def test_what_was_not_measured_is_said() -> None:
    section = card_section(evaluation(exits=(12, 24), batch_sizes=()), {})
    card, exits, drafting = tables(section)
    assert card[1:] == [
        ["all (24)", "10.00", "not measured"],
        ["18", "not measured", "not measured"],
        ["12", "22.00", "not measured"],
        ["6", "not measured", "not measured"],
    ]
    assert exits[0][-1] == "agreement with 24 layers" and drafting[0][-1] == "tokens per round"
    assert "Not measured: speed, drafting's included" in section
    assert "was not checked here" in section
    assert "predicted from acceptance, not measured" in section
    assert "Where the time goes" not in section and "![" not in section


def test_doubts_come_first() -> None:
    result = evaluation(quick=True, num_changed_tokens=3, warnings=("first doubt", "second"))
    section = card_section(result, {})
    assert section.startswith("> **These numbers are not credible as they stand:**\n")
    assert section.index("> - first doubt\n> - second") < section.index("###")
    assert "A quick look" in section.partition("###")[0]
    assert "**3 of 1,000 tokens were others than without drafts.**" in section
    assert ">" not in card_section(evaluation(), {}).partition("###")[0]


def test_an_infinite_perplexity_is_written_as_such() -> None:
    (card, exits, *_) = tables(card_section(evaluation(infinite=(6,)), {}))
    assert card[-1][1] == exits[1][1] == "∞"


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("", "{block}\n"),
        ("# Model\n\nText.\n", "# Model\n\nText.\n\n{block}\n"),
        (f"a\n{BEGIN}\nold\n{END}\nz\n", "a\n{block}\nz\n"),
    ],
)
def test_a_section_goes_into_a_page(page: str, expected: str) -> None:
    block = f"{BEGIN}\n\nnew\n\n{END}"
    once = inserted(page, "new\n")
    assert once == expected.format(block=block)
    assert inserted(once, "new\n") == once, "a second time changes nothing"
