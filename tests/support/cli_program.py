"""The command line, again and again in one process: a list of arguments as a line of JSON in, how it ended out."""

import contextlib
import io
import json
import os
import sys

from vog_hf.cli import main


def run(arguments):
    """Exit code, stdout and stderr of a command."""
    sys.argv = ["vog-hf", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
            code = 0
        except SystemExit as ending:
            code = ending.code or 0
    return code, out.getvalue(), err.getvalue()


def serve():
    """Answer line by line, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")  # whatever a library prints to stdout by itself is not an answer
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    serve()
