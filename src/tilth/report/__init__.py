"""The report room: tables, charts, the page of a run, comparison of runs. Reads the files of a run, nothing else."""

from tilth.report.compare import CompareRow, compare_html, compare_runs, compare_text
from tilth.report.masking import mask_personal
from tilth.report.page import write_report
from tilth.report.tables import text_table

__all__ = ["CompareRow", "compare_html", "compare_runs", "compare_text", "mask_personal", "text_table", "write_report"]
