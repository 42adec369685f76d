"""One step and its bookkeeping: loop, schedules, engines, checkpoints, history."""
