"""As much of a W&B server as an online run asks for, on this machine; it keeps what it was sent."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StandIn(ThreadingHTTPServer):
    """`operations`: (name, variables) of each GraphQL call; `history`: (run id, offset, rows) of each upload."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.operations: list[tuple[str, dict[str, Any]]] = []
        self.history: list[tuple[str, int, list[dict[str, Any]]]] = []
        self.files: dict[str, bytes] = {}
        self.reports: dict[str, dict[str, Any]] = {}  # saved ones by id
        self.refuses = False  # to create runs
        self.away = False  # answers nothing of use
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """wandb hangs up whenever it likes."""

    def sent(self, operation: str) -> list[dict[str, Any]]:
        """The variables of every call of an operation."""
        return [variables for name, variables in self.operations if name == operation]

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What wandb needs to go on; an unknown operation gets nothing."""
        entity = {"id": "E", "name": "me"}
        project = {"id": "P", "name": variables.get("project"), "entity": entity}
        bucket = {"id": "B", "name": variables.get("name"), "displayName": variables.get("displayName")}
        bucket |= {"description": "", "config": "{}", "sweepName": None, "historyLineCount": 0, "project": project}
        names = variables.get("files", [])
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in names]
        sequence = {"id": "S", "latestArtifact": None}
        viewer = {"id": "U", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        pages = {"pageInfo": {"endCursor": None, "hasNextPage": False}}
        reports = [{"cursor": key, "node": node} for key, node in self.reports.items()]
        answers: dict[str, Any] = {
            "Viewer": {"viewer": viewer},
            "RunResumeStatus": {"model": self._status(variables.get("name"))},
            "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
            "ArtifactType": {"project": None},
            "GetDefaultEntity": {"viewer": viewer},
            "ProjectInternalId": {"project": {"id": "P", "internalId": "1"}},
            "GetProjects": {"models": {"edges": [], **pages}},
            "ProjectViews": {"project": {"allViews": {"edges": reports, **pages}}},
            "CreateArtifact": {
                "createArtifact": {"artifact": {"id": "A", "state": "COMMITTED", "artifactSequence": sequence}}
            },
            "CreateRunFiles": {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}},
        }
        if operation == "upsertView":
            return {"data": {"upsertView": {"view": self._saved(variables), "inserted": True}}}
        return {"data": answers.get(operation, {})}

    def _status(self, run: str | None) -> dict[str, Any] | None:
        """What is known of a run that is gone on with; None for a new one."""
        rows = [row for name, _, sent in self.history if name == run for row in sent]
        if not rows:
            return None
        counts = {"logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(rows[-1])]), "eventsTail": json.dumps(["{}"])}
        texts = {
            "summaryMetrics": json.dumps(rows[-1]),
            "config": "{}",
            "wandbConfig": json.dumps({"t": 1}),
            "displayName": run,
        }
        return {"bucket": {"name": run, "notes": "", "tags": [], **counts, **tails, **texts}}

    def _saved(self, report: dict[str, Any]) -> dict[str, Any]:
        key = report["id"] or f"report{len(self.reports)}"
        now = {"updatedAt": "2026-01-01T00:00:00", "createdAt": "2026-01-01T00:00:00"}
        kept = {word: report[word] for word in ("type", "name", "displayName", "description", "spec")}
        project = {"id": "P", "name": report["projectName"], "entityName": report["entityName"]}
        user = {"username": "me", "photoUrl": None, "email": "me"}
        self.reports[key] = {"id": key, **kept, **now, "project": project, "user": user}
        return self.reports[key]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def do_POST(self) -> None:
        body, answer = self._body(), {}
        if self.server.away or (self.server.refuses and self.path == "/graphql"):
            self._reply(503 if self.server.away else 403, {})
            return
        if self.path == "/graphql":
            call = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", call["query"])
            assert operation is not None
            self.server.operations.append((operation[1], call.get("variables") or {}))
            answer = self.server.answer(*self.server.operations[-1])
        elif self.path.endswith("/file_stream"):
            sent = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            rows = [json.loads(line) for line in sent.get("content", [])]
            if rows:
                self.server.history.append((self.path.split("/")[-2], sent["offset"], rows))
        elif self.path.startswith("/upload/"):
            self.server.files[self.path.removeprefix("/upload/")] = body
        self._reply(200, answer)

    do_GET = do_PUT = do_POST  # noqa: N815

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def log_message(self, *_: object) -> None:
        """Silence."""


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A running one."""
    server = StandIn()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
