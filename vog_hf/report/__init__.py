"""The report: one HTML file that loads nothing. May import `scores` and the rooms below it.

`write` writes the file from `page` (the template), with a `section` per split: `figures`, `galleries` of `cards`, and
`tables`, with the other columns of the data from `data_columns`.
"""

from vog_hf.report.write import write_report

__all__ = ["write_report"]
