"""A server that hands the trials of a sweep to the agent of the real W&B client, and nothing else."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@contextmanager
def sweep_server(trials):
    """The address of a server on this machine; ``trials`` are values of hyper-parameters by name, one dict per run."""
    waiting = [
        {"type": "run", "run_id": f"trial{i}", "args": {name: {"value": value} for name, value in trial.items()}}
        for i, trial in enumerate(trials)
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = {"data": _answer(asked["query"], asked.get("variables"), waiting)}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(query, variables, waiting):
    """What GraphQL has to say: who the user is, that the agent is known, and the next trial once none is running."""
    if "viewer" in query:
        return {"viewer": {"id": "user", "username": "user", "entity": "user"}}
    if "createAgent" in query:
        return {"createAgent": {"agent": {"id": "agent"}}}
    is_idle = not json.loads(variables["runState"])
    commands = [waiting.pop(0)] if is_idle and waiting else []
    return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
