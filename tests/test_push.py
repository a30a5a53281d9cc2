"""Upload: the folder is what arrives, at a small server in the Hub's place, and what should not be sent is refused."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import save_file

from fsqcodec import CodecFeatureExtractor
from fsqcodec.hub.cards import model_card
from fsqcodec.hub.push import push
from small_configs import small_model

TOKEN = "hf_of_the_test"
REPOSITORY = "user/codec"


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "my-codec"
    small_model("l3ac-coarse").save_pretrained(folder)
    CodecFeatureExtractor(sampling_rate=16000).save_pretrained(folder)
    (folder / "README.md").write_text(model_card(folder).replace("---\n", "---\nlicense: cc0-1.0\n", 1))
    (folder / "samples").mkdir()
    (folder / "samples" / "first.txt").write_bytes(b"\r\nnot text\x00")
    (folder / ".env").write_text("SECRET=1")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "left over").write_text("")
    return folder


class Hub(BaseHTTPRequestHandler):
    """The endpoints that an upload of files small enough for a commit itself goes through."""

    def do_GET(self):
        kind, repo_id = self.path.removeprefix("/api/").split("/", 1)
        if (kind, repo_id) in self.server.repositories:
            self._answer({"id": repo_id, "private": self.server.repositories[kind, repo_id], "tags": []})
        else:
            self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer({"error": "You don't have the rights to write to this namespace"}, 403)
        elif self.path == "/api/repos/create":
            created = json.loads(body)
            repo_id = f"{created['organization']}/{created['name']}"
            self.server.repositories["models", repo_id] = created.get("visibility") == "private"
            self._answer({"url": f"{self.server.url}/{repo_id}"})
        elif self.path == "/api/validate-yaml" or "/branch/" in self.path:
            self._answer({})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._answer({"files": modes})
        elif "/commit/" in self.path:
            self.server.commits[self.path] = [json.loads(line) for line in body.splitlines()]
            self._answer(
                {"commitUrl": f"{self.server.url}/{REPOSITORY}/commit/1", "commitOid": "1", "pullRequestUrl": None}
            )
        else:
            self._answer({"error": f"no such endpoint: {self.path}"}, 500)

    def _answer(self, content: dict, status: int = 200, headers: dict | None = None):
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The server, to which huggingface_hub now speaks; `repositories` by kind and id: whether they are private."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.repositories, server.commits = {}, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def visible_files(folder: Path) -> dict[str, bytes]:
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith(".")}


@pytest.mark.parametrize("private", [False, True])
def test_what_arrives_is_the_folder(folder, hub, private):
    pushed = push(folder, REPOSITORY, private=private)
    ((url, (header, *operations)),) = hub.commits.items()
    assert url == f"/api/models/{REPOSITORY}/commit/main"
    assert header["value"]["summary"] == "Upload my-codec"
    received = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in operations}
    assert received == visible_files(folder)
    assert {"samples/first.txt", "modeling_codec.py", "model.safetensors"} <= received.keys()
    assert pushed.files == {name: len(content) for name, content in received.items()}
    assert pushed.commit_url == f"{hub.url}/{REPOSITORY}/commit/1"
    assert hub.repositories == {("models", REPOSITORY): private}


def test_a_revision_is_a_branch(folder, hub):
    push(folder, REPOSITORY, revision="v2/half")
    assert list(hub.commits) == [f"/api/models/{REPOSITORY}/commit/v2%2Fhalf"]


def test_a_dry_run_lists_the_same_files_and_sends_nothing(folder, hub):
    hub.shutdown()
    pushed = push(folder, REPOSITORY, dry_run=True)
    assert pushed.files == {name: len(content) for name, content in visible_files(folder).items()}
    assert pushed.commit_url is None and not hub.commits and not hub.repositories


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors", "README.md"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    hint = "fsqcodec card .* writes it" if name == "README.md" else ""
    with pytest.raises(FileNotFoundError, match=f"lacks {name}.*{hint}"):
        push(folder, REPOSITORY, dry_run=True)


def test_a_folder_that_would_not_load_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        push(tmp_path / "nowhere", REPOSITORY, dry_run=True)
    weights, path = small_model("l3ac-coarse").state_dict(), folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors can't be read"):
        push(folder, REPOSITORY, dry_run=True)
    save_file({name: tensor for name, tensor in weights.items() if name != "decoder.to_waveform.bias"}, path)
    with pytest.raises(ValueError, match=r"does not fit config.json: 1 tensors .* decoder.to_waveform.bias"):
        push(folder, REPOSITORY, dry_run=True)
    path.write_bytes(whole)
    CodecFeatureExtractor(sampling_rate=24000).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"preprocessor_config.json says 24000 Hz, config.json 16000 Hz"):
        push(folder, REPOSITORY, dry_run=True)


@pytest.mark.parametrize("card", ["# No front matter\n", "---\ntags: [a]\n---\n# No licence\n"])
def test_a_card_without_licence_is_refused(folder, card):
    (folder / "README.md").write_text(card)
    with pytest.raises(ValueError, match=r"README.md names no licence: add a line like `license: mit`"):
        push(folder, REPOSITORY, dry_run=True)


@pytest.mark.parametrize("repo_id", ["codec", "datasets/user/codec"])
def test_an_id_that_is_no_models_is_refused(folder, repo_id):
    with pytest.raises(ValueError, match="is no id of a model repository: user/name is wanted"):
        push(folder, repo_id, dry_run=True)


def test_a_repository_of_another_type_is_refused(folder, hub):
    hub.repositories["datasets", REPOSITORY] = False
    with pytest.raises(ValueError, match="user/codec is a dataset on the Hub"):
        push(folder, REPOSITORY)
    assert not hub.commits


def test_what_was_to_be_private_is_not_sent_to_a_public_repository(folder, hub):
    hub.repositories["models", REPOSITORY] = False
    with pytest.raises(ValueError, match="user/codec exists and is public"):
        push(folder, REPOSITORY, private=True)
    assert not hub.commits
    push(folder, REPOSITORY)
    assert hub.commits


def test_a_token_is_needed_that_may_write(folder, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    with pytest.raises(PermissionError, match="does not let this token write to user/codec: .*rights to write"):
        push(folder, REPOSITORY)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="there is no token for the Hub: run `hf auth login`"):
        push(folder, REPOSITORY)


def test_without_network_the_error_says_so(folder, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ConnectionError, match=r"the Hub at http://127.0.0.1:1 can't be reached"):
        push(folder, REPOSITORY)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="can't be reached, nothing was uploaded: .*offline"):
        push(folder, REPOSITORY)
