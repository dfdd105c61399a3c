"""Two processes meet twice, and then one of them (its rank is given) waits for the other in vain."""

import sys

from accelerate import PartialState
from leaving import leave_together

from vog_hf.errors import ProcessError
from vog_hf.runtime.processes import meet


def main():
    """Meet twice, then wait alone."""
    processes = PartialState(cpu=True)
    for _ in range(2):  # as often as there are trainings
        meet(processes, "VoGCallback", 60)
    if processes.process_index == int(sys.argv[1]):
        try:
            meet(processes, "VoGCallback", 0.5)
        except ProcessError as error:
            print(f"process {processes.process_index}: {error}", flush=True)
    leave_together()


if __name__ == "__main__":
    main()
