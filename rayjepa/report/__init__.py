"""The run's page and the table of runs, read from run folders alone."""

from rayjepa.report.page import write_report
from rayjepa.report.runs import RunSummary, list_runs, runs_table

__all__ = ["RunSummary", "list_runs", "runs_table", "write_report"]
