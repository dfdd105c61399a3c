"""The report: one HTML file with everything a run of scores shows, which loads nothing from anywhere."""

from vog_hf.report.write import write_report

__all__ = ["write_report"]
