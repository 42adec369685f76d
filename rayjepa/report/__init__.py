"""The run's page and the table of runs, read from run folders alone."""

from rayjepa.report.digest import read_digest
from rayjepa.report.page import write_report
from rayjepa.report.runs import RunSummary, list_runs, runs_table
from rayjepa.report.totals import printed

__all__ = ["RunSummary", "list_runs", "printed", "read_digest", "runs_table", "write_report"]
