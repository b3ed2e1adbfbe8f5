"""A fake W&B server on loopback that records all requests.

It supports the requests of the wandb 0.31 client: GraphQL at ``/graphql``, the stream of a run's rows, and uploads by
PUT to addresses that it returned before.
"""

# ruff: noqa: N802 (methods have the names of GraphQL operations)

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

ENTITY = "someone"
API_KEY = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Run:
    """State of a run on the server."""

    name: str
    project: str
    inserts: int = 0
    variables: dict[str, Any] = field(default_factory=dict)  # latest value of each GraphQL variable
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history_lines: dict[int, dict[str, Any]] = field(default_factory=dict)  # indexed by line number
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """Returns the rows in order."""
        return [self.history_lines[offset] for offset in sorted(self.history_lines)]

    def values(self, name: str) -> dict[int, Any]:
        """Returns the value of a metric at each step that has it."""
        return {row["_step"]: row[name] for row in self.history if name in row}


@dataclass
class Artifact:
    """A version of an artifact."""

    id: str
    type: str
    collection: str
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: bytes = b""
    committed: bool = False
    deleted: bool = False


class WandbServer:
    """Serves in a thread inside a ``with`` block.

    Attributes:
        runs: Runs by ID.
        alerts: GraphQL variables of each alert.
        artifacts: All artifact versions, in order.
        views: GraphQL variables of each saved workspace.
        unknown_operations: Names of unsupported operations.
        requests: All bytes of all requests, decompressed, without authorization headers.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.alerts: list[dict[str, Any]] = []
        self.artifacts: list[Artifact] = []
        self.views: list[dict[str, Any]] = []
        self.unknown_operations: list[str] = []
        self.requests: list[bytes] = []
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_of": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def environ(self) -> dict[str, str]:
        """Returns the environment variables that make a process log to this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def respond(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Returns the data of a GraphQL response."""
        method = getattr(self, f"_{operation}", None)
        if method is None:
            self.unknown_operations.append(operation)
            return {}
        return method(variables)

    def append_stream(self, name: str, content: dict[str, Any]) -> None:
        """Appends rows, summary and output of a run."""
        run = self.runs[name]
        for file, chunk in content.get("files", {}).items():
            if file == "wandb-history.jsonl":
                for offset, line in enumerate(chunk["content"], start=chunk["offset"]):
                    run.history_lines[offset] = json.loads(line)
            elif file == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        if content.get("complete"):
            run.exit_code = content.get("exitcode")

    def upload(self, path: str, content: bytes) -> None:
        """Stores a file at an upload address."""
        kind, number, name = path.removeprefix("/upload/").split("/", 2)
        if kind == "run":
            self.runs[number].files[name] = content
        elif kind == "manifest":
            self._artifact(number).manifest = content
        else:
            self._artifact(number).files[name] = content

    def _artifact(self, number: str) -> Artifact:
        return next(artifact for artifact in self.artifacts if artifact.id == number)

    def _Viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {
            "id": "VXNlcjox", "entity": ENTITY, "username": ENTITY, "email": "someone@example.org", "name": ENTITY,
            "flags": "{}", "admin": False, "teams": teams, "apiKeys": {"edges": []},
        }}  # fmt: skip

    _GetDefaultEntity = _Viewer

    def _ServerFeaturesQuery(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        project = {"id": "UHJvamVjdDox", "name": variables["project"], "entity": {"id": "RW50aXR5OjE=", "name": ENTITY}}
        return {"model": {**project, "bucket": None if run is None else self._run_bucket(run)}}

    def _run_bucket(self, run: Run) -> dict[str, Any]:
        tail = [json.dumps(row) for row in run.history[-1:]]
        return {
            "id": run.name, "name": run.name, "displayName": run.variables.get("displayName"), "notes": None,
            "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary), "logLineCount": 0,
            "historyLineCount": len(run.history_lines), "eventsLineCount": 0, "historyTail": json.dumps(tail),
            "eventsTail": "[]", "tags": run.variables.get("tags") or [], "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip

    def _UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or variables.get("id")
        assert name is not None
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run(name, variables.get("project") or ""))
        run.inserts += inserted
        run.variables |= {key: value for key, value in variables.items() if value is not None}
        run.config = json.loads(variables["config"]) if variables.get("config") else run.config
        project = {"id": "UHJvamVjdDox", "name": run.project, "entity": {"id": "RW50aXR5OjE=", "name": ENTITY}}
        bucket = {
            "id": name, "name": name, "displayName": run.variables.get("displayName") or name, "description": None,
            "config": json.dumps(run.config), "sweepName": None, "project": project,
            "historyLineCount": len(run.history_lines),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/run/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _MarkRunFilesUploaded(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"markRunFilesUploaded": {"success": True}}

    def _NotifyScriptableRunAlert(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append(variables)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact_input = variables["input"]
        number = base64.b64encode(f"Artifact:{len(self.artifacts)}".encode()).decode().rstrip("=")
        collection = artifact_input[
            "artifactCollectionName" if "artifactCollectionName" in artifact_input else "artifactCollectionNames"
        ]
        collection = collection if isinstance(collection, str) else collection[0]
        self.artifacts.append(Artifact(number, artifact_input["artifactTypeName"], collection))
        return {"createArtifact": {"artifact": {
            "id": number, "state": "PENDING", "artifactSequence": {"latestArtifact": None},
        }}}  # fmt: skip

    def _CreateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        number = variables["artifactID"]
        file = {"id": number, "uploadUrl": f"{self.url}/upload/manifest/{number}/manifest.json", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": number, "file": file}}}

    def _UpdateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        number = variables["artifactManifestID"]
        file = {"id": number, "uploadUrl": f"{self.url}/upload/manifest/{number}/manifest.json", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": number, "file": file}}}

    def _CreateArtifactFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        artifact_input = variables["input"]
        nodes = [
            {
                "storagePath": f"stored/{file['artifactID']}/{file['name']}", "uploadHeaders": [],
                "uploadUrl": f"{self.url}/upload/artifact/{file['artifactID']}/{file['name']}",
                "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]},
            }
            for file in artifact_input["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        self._artifact(variables["artifactID"]).committed = True
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "0" * 32}}}

    def _ArtifactType(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _OrganizationCoreWeaveOrganizationID(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": None}}

    def _ArtifactByID(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"artifact": self._artifact_node(self._artifact(variables["id"]))}

    def _ProjectArtifacts(self, variables: dict[str, Any]) -> dict[str, Any]:
        versions = [
            artifact
            for artifact in self.artifacts
            if artifact.collection == variables["collection"] and not artifact.deleted
        ]
        edges = [
            {"version": f"v{index}", "node": self._artifact_node(artifact)} for index, artifact in enumerate(versions)
        ]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        artifacts = {"totalCount": len(versions), "pageInfo": page, "edges": edges}
        collection = {"__typename": "ArtifactSequence", "artifacts": artifacts}
        return {"project": {"artifactType": {"artifactCollection": collection}}}

    def _artifact_node(self, artifact: Artifact) -> dict[str, Any]:
        project = {"id": "UHJvamVjdDox", "internalId": "UHJvamVjdDox", "name": "p", "entity": {"name": ENTITY}}
        sequence = {"__typename": "ArtifactSequence", "name": artifact.collection, "project": project}
        return {
            "__typename": "Artifact", "id": artifact.id, "artifactSequence": sequence, "versionIndex": 0,
            "artifactType": {"name": artifact.type}, "description": None, "metadata": "{}", "ttlDurationSeconds": -1,
            "ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED", "size": 1,
            "digest": "0" * 32, "digestAlgorithm": None, "commitHash": None, "fileCount": len(artifact.files),
            "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None, "aliases": [],
        }  # fmt: skip

    def _UseArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"useArtifact": {"artifact": {"id": variables["input"]["artifactID"]}}}

    def _DeleteArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        number = variables["input"]["artifactID"]
        self._artifact(number).deleted = True
        return {"result": {"artifact": {"id": number}}}

    def _XXHashDigestsEnabled(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _FetchArtifactDigestAlgorithm(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifactType": None}}

    def _UpsertView2(self, variables: dict[str, Any]) -> dict[str, Any]:
        self.views.append(variables)
        return {"upsertView": {"view": {"id": "Vmlldzox", "name": variables["name"]}, "inserted": True}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    server_of: WandbServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # clients reset connections when they exit
            super().handle()

    def do_GET(self) -> None:
        self._read()
        self._send({})

    def do_POST(self) -> None:
        body = self._read()
        if self.path.endswith("/file_stream"):
            with self.server_of.lock:
                self.server_of.append_stream(self.path.split("/")[-2], json.loads(body))
            self._send({"limits": {}})
            return
        if self.path.startswith("/sdk/otel/"):  # telemetry of the client
            self._send({})
            return
        request = json.loads(body)
        operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        assert operation is not None
        with self.server_of.lock:
            response = self.server_of.respond(operation.group(1), request.get("variables") or {})
        self._send({"data": response})

    def do_PUT(self) -> None:
        body = self._read()
        with self.server_of.lock:
            self.server_of.upload(self.path, body)
        self._send({})

    def _read(self) -> bytes:
        body = (
            self._read_chunks()
            if "chunked" in self.headers.get("Transfer-Encoding", "")
            else self.rfile.read(int(self.headers.get("Content-Length") or 0))
        )
        body = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        headers = b"\n".join(
            f"{name}: {value}".encode() for name, value in self.headers.items() if name.lower() != "authorization"
        )  # the API key is expected there
        self.server_of.requests.append(b"\n".join([self.requestline.encode(), headers, body]))
        return body

    def _read_chunks(self) -> bytes:
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (name in the standard library)
        pass
