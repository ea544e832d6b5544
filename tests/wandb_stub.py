"""Stand-ins for W&B: a server for the real client, and a client that fails as it is told.

    with Server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)

The server listens on the loopback interface and does just enough for real online runs. It keeps
what arrives: `history` rows (each run's at the offset that they are sent for: a run sent anew
replaces its rows), `config`, `artifacts`, which of them were `used`, uploaded `files`,
`exit_codes`, the `runs` with what they said of themselves and their `summaries`, and the `views`
of its one `project`. With `refuse=True` it knows no artifact that a run wants to use and takes no
view; with `stall=True` it accepts a run, then never answers its data: an outage in mid-run.
"""

import gzip
import json
import os
import re
import sys
import threading
import time
import types
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ENTITY = "tester"
SECRET = "0123456789abcdef" * 2 + "89abcdef"  # in the form of an API key


class Server:
    """The server; `url` is its address, `operations` the names of the queries it was asked."""

    def __init__(self, *, stall=False, refuse=False):
        self.rows, self.artifacts, self.operations = {}, [], []
        self.files, self.config, self.exit_codes = {}, {}, []
        self.used, self.refuse, self._lock = [], refuse, threading.Lock()
        self.runs, self.summaries, self.views, self.project = {}, {}, [], "taqdit"
        self.stall, self.released = stall, threading.Event()
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def history(self):
        """The rows of all runs, in the order of the runs."""
        return [row for rows in self.rows.values() for row in rows]

    def column(self, name):
        """Values of one metric over the history rows that have it."""
        return [row[name] for row in self.history if name in row]

    def answer(self, query, variables):
        """`data` of the GraphQL reply."""
        operation = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = operation.group(1) if operation else ""
        self.operations.append(name)
        given = {**variables, **(variables.get("input") or {})}
        with self._lock:
            return getattr(self, f"_{name}", lambda given: {})(given)

    def artifact(self, name):
        """What arrived of the artifact of this name, with its `entries` {path: reference}."""
        names = [made["artifactCollectionName"] for made in self.artifacts]
        place = names.index(name)
        contents = json.loads(self.files[f"manifest-a{place + 1}"])["contents"]
        entries = {path: entry["ref"] for path, entry in contents.items()}
        return self.artifacts[place] | {"entries": entries}

    def table(self, name):
        """The rows of the one table that was logged by this name."""
        (row,) = self.column(name)
        return json.loads(self.files[row["path"]])["data"]

    def _Viewer(self, given):
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        who = {"id": "u1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": teams}
        return {"viewer": who}

    def _GetDefaultEntity(self, given):
        return {"viewer": {"id": "u1", "entity": ENTITY}}

    def _ProjectViews(self, given):
        if (given["entity"], given["project"]) != (ENTITY, self.project):
            return {"project": None}
        edges = [{"node": {k: view[k] for k in view if k != "spec"}} for view in self.views]
        return {"project": {"allViews": {"edges": edges}}}

    def _UpsertView2(self, given):
        """As W&B does it: one with an id is replaced, any other is new."""
        if self.refuse:
            raise PermissionError("permission denied")
        if given.get("id"):
            (view,) = [view for view in self.views if view["id"] == given["id"]]
        else:
            view = {"id": f"v{len(self.views)}"}
            self.views.append(view)
        view |= {"name": given["name"], "displayName": given["displayName"]}
        view["spec"] = json.loads(given["spec"])
        made = {"id": view["id"], "name": view["name"]}
        return {"upsertView": {"view": made, "inserted": not given.get("id")}}

    def _UpsertBucket(self, given):
        if given.get("name"):
            said = {key: value for key, value in given.items() if value is not None}
            self.runs[given["name"]] = self.runs.get(given["name"], {}) | said
        if given.get("config"):
            self.config = json.loads(given["config"])
        project = {"name": given.get("project") or "p", "entity": {"name": ENTITY}}
        run = {"id": "b1", "name": given.get("name"), "displayName": given.get("displayName")}
        run |= {"project": project, "historyLineCount": 0, "config": "{}"}
        return {"upsertBucket": {"bucket": run, "inserted": True}}

    def _RunResumeStatus(self, given):
        return {"model": {"id": "m1", "name": "p", "entity": {"name": ENTITY}, "bucket": None}}

    def _CreateRunFiles(self, given):
        files = [{"name": f, "uploadUrl": f"{self.url}/storage/{f}"} for f in given["files"]]
        return {"createRunFiles": {"runID": "b1", "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, given):
        self.artifacts.append({k: given.get(k) for k in ("artifactCollectionName", "metadata")})
        self.artifacts[-1]["type"] = given.get("artifactTypeName")
        made = {"id": f"a{len(self.artifacts)}", "state": "PENDING"}
        return {
            "createArtifact": {"artifact": made | {"artifactSequence": {"latestArtifact": None}}}
        }

    def _CreateArtifactManifest(self, given):
        url = f"{self.url}/storage/manifest-{given['artifactID']}"
        file = {"id": "f1", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "am1", "file": file}}}

    def _CreateArtifactFiles(self, given):
        nodes = []
        for spec in given.get("artifactFiles", []):
            url = f"{self.url}/storage/{spec['name']}"
            node = {"id": "n1", "name": spec["name"], "storagePath": spec["name"], "uploadUrl": url}
            node |= {"displayName": spec["name"], "uploadHeaders": []}
            nodes.append({"node": node | {"uploadMultipartUrls": None, "artifact": {"id": "a1"}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _CommitArtifact(self, given):
        return {"commitArtifact": {"artifact": {"id": given.get("artifactID"), "digest": "d"}}}

    def _UseArtifact(self, given):
        artifact = self.artifacts[int(given["artifactID"][1:]) - 1]
        self.used.append(artifact["artifactCollectionName"])
        return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}

    def _ArtifactByID(self, given):
        if self.refuse:
            return {"artifact": None}
        made = self.artifacts[int(given["id"][1:]) - 1]
        project = {"id": "p1", "internalId": "p1", "name": "p", "entity": {"name": ENTITY}}
        sequence = {"__typename": "ArtifactSequence", "name": made["artifactCollectionName"]}
        nothing = ("description", "historyStep", "commitHash", "updatedAt", "digestAlgorithm")
        artifact = {**dict.fromkeys(nothing), "__typename": "Artifact", "id": given["id"]}
        artifact |= {"artifactSequence": sequence | {"project": project}, "versionIndex": 0}
        artifact |= {"artifactType": {"name": made["type"]}, "metadata": made["metadata"]}
        artifact |= {"ttlDurationSeconds": 0, "ttlIsInherited": True, "tags": [], "aliases": []}
        artifact |= {"state": "COMMITTED", "size": 1, "digest": "d", "fileCount": 1}
        return {"artifact": artifact | {"createdAt": "2026-01-01T00:00:00Z"}}

    def _ArtifactType(self, given):
        return {"project": {"artifact": None}}

    def stream(self, body, run=""):
        """One chunk of a run's file stream."""
        for name, part in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                rows, at = self.rows.setdefault(run, []), part["offset"]
                assert at <= len(rows), "a hole in the history"
                rows[at : at + len(part["content"])] = map(json.loads, part["content"])
            if name == "wandb-summary.json" and part["content"]:
                self.summaries[run] = json.loads(part["content"][-1])
        if body.get("complete"):
            self.exit_codes.append(body.get("exitcode"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def do_POST(self):
        body = self._body()
        if self.path.endswith("/graphql"):
            self._reply(self._answered(body["query"], body.get("variables") or {}))
        elif self.path.endswith("/file_stream"):
            if self.server_state.stall:
                self.server_state.released.wait(60)
            self.server_state.stream(body, self.path.split("/")[-2])
            self._reply({"exitcode": None, "limits": {}})
        else:
            self._reply({})

    def _answered(self, query, variables):
        try:
            return {"data": self.server_state.answer(query, variables)}
        except PermissionError as error:
            return {"data": None, "errors": [{"message": str(error)}]}

    def do_PUT(self):
        name = self.path.removeprefix("/storage/")
        self.server_state.files[name] = self._bytes()
        self._reply({})

    def do_GET(self):
        self._reply({})

    def _bytes(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def _body(self):
        try:
            return json.loads(self._bytes() or b"{}")
        except ValueError:
            return {}

    def _reply(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle(self):
        with suppress(ConnectionError):  # the client went away
            super().handle()

    def log_message(self, *_):
        pass


class _Config(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)


class FakeWandb(types.ModuleType):
    """A wandb that works, but for one call that raises or hangs; notes what it is told in a file.

    It is imported by a child process: `Fake` puts it there.
    """

    def __init__(self, folder, where, how):
        super().__init__("wandb")
        self.folder, self.where, self.how = Path(folder), where, how
        self.errors = types.SimpleNamespace(CommError=RuntimeError)
        self.plot = types.SimpleNamespace(line_series=lambda **_: "chart")
        self.dir, self.url = "run/files", "http://host/run"
        note = self._note
        self.config = types.SimpleNamespace(update=lambda values, **_: note(config=values))
        self.summary = types.SimpleNamespace(update=lambda values: note(summary=values))
        self._do("import")

    def _note(self, **what):
        with (self.folder / "calls.jsonl").open("a") as file:
            file.write(json.dumps(what, default=str) + "\n")

    def _do(self, name, **more):
        self._note(call=name, **more)
        if name != self.where:
            return
        if self.how == "raise":
            raise OSError(28, f"No space left on device, key {SECRET}\nsecond line")
        if self.how == "exit":
            sys.exit(1)
        if self.how == "crash":
            os._exit(3)
        if self.how == "hang":
            (self.folder / "hanging").touch()
            while not (self.folder / "release").exists():
                time.sleep(0.01)

    def setup(self, settings=None):
        pass

    def init(self, **options):
        self._do("init", options=options)
        return self

    def log(self, row):
        self._do("log", row=row)

    def log_artifact(self, artifact, aliases=()):
        self._do("log_artifact")

    def finish(self, exit_code=None):
        self._do("finish", exit_code=exit_code)

    def define_metric(self, name, **_):
        pass

    def use_artifact(self, artifact):
        self._do(f"use {artifact.name}")

    def Settings(self, **values):
        return values

    def Artifact(self, name, **_):
        return types.SimpleNamespace(name=name, add_reference=lambda *_, **__: None)

    Image = Histogram = Table = staticmethod(lambda *_, **__: "media")


class Fake:
    """A folder that holds a FakeWandb as the module wandb, and what it was told.

    With `patch`, a process that this one starts finds it instead of the real one.
    """

    def __init__(self, folder, where="", how="", *, patch=None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True)
        code = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import wandb_stub\n"
        code += f"made = wandb_stub.FakeWandb({str(folder)!r}, {where!r}, {how!r})\n"
        (self.folder / "wandb.py").write_text(code + "sys.modules['wandb'] = made\n")
        if patch:
            patch.syspath_prepend(str(folder))

    def _told(self, key):
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [told[key] for told in map(json.loads, lines) if key in told]

    @property
    def calls(self):
        return [call for call in self._told("call") if call != "import"]

    @property
    def rows(self):
        return self._told("row")

    @property
    def options(self):
        return self._told("options")[-1]

    @property
    def exit_codes(self):
        return self._told("exit_code")

    @property
    def config(self):
        return {key: value for told in self._told("config") for key, value in told.items()}

    @property
    def summary(self):
        return {key: value for told in self._told("summary") for key, value in told.items()}

    @property
    def hangs(self):
        return (self.folder / "hanging").exists()

    def wait(self, condition=lambda fake: fake.hangs, patience=60):
        """Until it hangs, or the condition holds."""
        deadline = time.monotonic() + patience
        while not condition(self):
            assert time.monotonic() < deadline, self.calls
            time.sleep(0.01)

    def release(self):
        (self.folder / "release").touch()
