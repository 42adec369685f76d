"""All checks of this machine, in the order of the table."""

from rayjepa.config import RunConfig
from rayjepa.doctor.compute import compute_checks
from rayjepa.doctor.environment import environment_checks
from rayjepa.doctor.feeding import feeding_checks
from rayjepa.doctor.finding import Check
from rayjepa.doctor.packages import package_checks
from rayjepa.doctor.ports import port_checks
from rayjepa.doctor.room import room_checks


def machine_checks(run: RunConfig, *, alone: bool) -> list[Check]:
    """What to ask this machine; `alone`: the run has no other."""
    return [
        *package_checks(),
        *feeding_checks(run),
        *compute_checks(run, alone=alone),
        *room_checks(run, alone=alone),
        *environment_checks(run, alone=alone),
        *port_checks(),
    ]
