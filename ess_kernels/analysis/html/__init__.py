"""One self-contained HTML file of an analysis, with tables and an explorer of layers and positions."""

from .report import report_html, write_report

__all__ = ["report_html", "write_report"]
