"""How a table is divided among what stands on the page and what is shown on demand."""

import pytest

from llm_unlearn.reporting.fitting import PAGE, fitted, titles
from llm_unlearn.reporting.tables import Cell, Table


def table(count, width=6, first=None, name="npo", look=""):
    columns = [(f"c{i}", "even" if i % 2 == 0 else "odd") for i in range(count)]
    return Table(columns, [(name, [Cell("0" * width, look=look) for _ in range(count)])], first=first)


def test_a_table_that_fits_stays_as_it_is():
    small = table(5)
    assert fitted(small) == [small] and fitted(Table([], []))[0].columns == []


def test_what_comes_first_stands_before_the_rest_and_nothing_is_lost_or_there_twice():
    whole = table(7, first=[True, False, True, False, False, True, False])
    shown, rest = fitted(whole)
    assert [title for title, _ in shown.columns] == ["c0", "c2", "c5"]
    assert [title for title, _ in rest.columns] == ["c1", "c3", "c4", "c6"]
    assert all([name for name, _ in part.rows] == ["npo"] for part in (shown, rest))
    assert titles([rest]) == "odd: c1, c3; even: c4, c6"


@pytest.mark.parametrize("name", ["npo", "a_method_with_a_name_of_very_many_letters@0.025"])
@pytest.mark.parametrize("width", [4, 20, 60])
def test_wide_tables_become_parts_that_fit(name, width):
    whole = table(25, width, [i < 18 for i in range(25)], name)
    parts = fitted(whole)
    assert [column for part in parts for column in part.columns] == whole.columns
    letters = 8 * width
    assert all(len(part.columns) * letters <= PAGE - 8 * len(name) for part in parts)
    assert len(parts) <= 2 + 25 * (letters + 14) / (PAGE - 9 * len(name) - letters)  # and are not thrown away


def test_a_column_of_texts_that_wrap_counts_no_more_than_it_takes():
    assert len(fitted(table(4, 5000, look="words"))) == 1
    assert len(fitted(table(4, 5000))) == 4  # each by itself, for want of anything better
