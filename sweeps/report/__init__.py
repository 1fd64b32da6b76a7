"""What a person sees of a sweep: a live table, a summary in the terminal, a page that opens offline."""

from sweeps.report.live import LiveTable
from sweeps.report.page import write_report
from sweeps.report.summary import summary

__all__ = ["LiveTable", "summary", "write_report"]
