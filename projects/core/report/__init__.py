"""One HTML file that shows what a test found."""

from projects.core.report.page import write_report

__all__ = ['write_report']
