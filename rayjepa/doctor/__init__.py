"""What hurts a run before it starts: checks of this machine and of its storage. Nothing here needs Ray."""

from rayjepa.doctor.finding import Check, Finding, State, carried_out, error, ok, warning, worst

__all__ = ["Check", "Finding", "State", "carried_out", "error", "ok", "warning", "worst"]
