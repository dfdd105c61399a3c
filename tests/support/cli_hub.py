"""A Hub, and a command line that talks to it: a process of its own, because the client reads its settings once."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from cli_runs import Done
from hub_server import HubServer


@contextmanager
def hub_with_commands(home):
    """The Hub, and a function that runs a command; a token is given as `--token`, and printed nowhere.

    Args:
        home: Folder for the client's cache.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    with HubServer() as hub:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("cli_program.py"))],
            env={**clean, **hub.environment(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def command(*arguments, token=None):
            given = [*map(str, arguments), *(["--token", token] if token else [])]
            print(json.dumps(given), file=process.stdin, flush=True)
            done = Done(*json.loads(process.stdout.readline()))
            assert not token or token not in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
            return done

        yield hub, command
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
