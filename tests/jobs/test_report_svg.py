from jobs.reports.number_formats import axis_seconds
from jobs.reports.report_svg import bar_chart


def test_seconds_are_told_in_the_unit_that_fits_the_label():
    assert [axis_seconds(seconds) for seconds in (0.0, 0.0125, 0.9994, 3.276, 66.6)] == [
        "0 ms",
        "12.5 ms",
        "999 ms",
        "3.28 s",
        "66.6 s",
    ]


def test_the_axis_of_a_slow_chart_is_in_seconds():
    chart = bar_chart(["stcm", "...m"], [3.4, 1.2])
    assert ">3.4 s<" in chart
    assert ">1.7 s<" in chart
    assert "e+03" not in chart
