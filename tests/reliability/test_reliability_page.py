"""The page of what happens to runs has a line for each scenario, in their order, and no other."""

from reliability.rows import PAGE, SCENARIOS, line_of, rendered


def test_the_page_is_what_would_be_written():
    page = PAGE.read_text()
    assert rendered(page, {}) == page


def test_every_scenario_has_been_played():
    page = PAGE.read_text()
    rendered(page, {})  # knows all of them then
    assert [each.fault for each in SCENARIOS.values() if not line_of(each, page)] == []
