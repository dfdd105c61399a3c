"""A process whose Hub clients talk to a `HubServer`, and that does what it is asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

from hub_server import ACCEPTED

PROGRAM = Path(__file__).with_name("push_program.py")


class HubClient:
    """Calls the functions of `push_program` in a process of its own; everything that it says goes to a file.

    Args:
        hub: The server.
        folder: For the client's cache and for what it says.
    """

    def __init__(self, hub, folder):
        self.home, self.output = folder / "home", folder / "output.txt"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        with self.output.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(PROGRAM)],
                env={**clean, **hub.environment(self.home), "HF_DEBUG": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )

    def __call__(self, call, /, *given, token=ACCEPTED, **options):
        """What a function returns; for an error of ours, (its class, its message).

        Args:
            call: The function's name.
            given: Its arguments.
            token: Of the environment; None = there is none.
            options: Its keywords.
        """
        asked = {"call": call, "given": given, "options": options, "environment_token": token}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        line = next((line for line in self._process.stdout if line.startswith("answer ")), None)
        assert line is not None, self.output.read_text()[-5000:]
        answer = json.loads(line.removeprefix("answer "))
        assert "crash" not in answer, answer["crash"]
        return answer["result"] if "result" in answer else (answer["error"], answer["message"])

    def close(self):
        """End the process."""
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
