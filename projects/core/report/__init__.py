"""One HTML file that shows what was found."""

from projects.core.report.page import write_object_report

__all__ = ['write_object_report']
