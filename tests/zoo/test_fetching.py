"""Downloads, from a server on this machine that counts what it is asked for."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fperr import data, zoo
from fperr.cli import app
from fperr.errors import MissingDataError
from fperr.zoo import fetching

CONTENT = b"weights"


@pytest.fixture
def server():
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path == "/file" else 404)
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}", asked
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The data folder."""
    monkeypatch.setenv("FPERR_DATA", str(tmp_path))
    return tmp_path


def file_at(address, content=CONTENT):
    return data.Download("some/file", address, hashlib.sha256(content).hexdigest())


def test_a_file_is_fetched_once(server, folder):
    address, asked = server
    for _ in range(2):
        assert data.downloaded(file_at(f"{address}/file")) == folder / "some" / "file"
    assert (folder / "some" / "file").read_bytes() == CONTENT
    assert asked == ["/file"]


def test_a_damaged_file_is_fetched_again(server, folder):
    address, asked = server
    (folder / "some").mkdir()
    (folder / "some" / "file").write_bytes(b"weight5")
    assert data.downloaded(file_at(f"{address}/file")).read_bytes() == CONTENT
    assert asked == ["/file"]


def test_another_file_is_not_kept(server, folder):
    address, _ = server
    with pytest.raises(MissingDataError, match="no longer holds the published file: its SHA-256"):
        data.downloaded(file_at(f"{address}/file", b"what was published"))
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_an_address_that_is_gone(server, folder):
    address, _ = server
    remedy = f"Get it by hand, and put it at {folder / 'some' / 'file'}"
    with pytest.raises(MissingDataError, match=r"could not be fetched \(HTTPError") as gone:
        data.downloaded(file_at(f"{address}/gone"))
    with pytest.raises(
        MissingDataError, match=r"could not be fetched \(ConnectionError"
    ) as nowhere:
        data.downloaded(file_at("http://127.0.0.1:9/file"))
    for told in (gone, nowhere):
        assert str(told.value).endswith(remedy)
    (folder / "some").mkdir(exist_ok=True)
    (folder / "some" / "file").write_bytes(CONTENT)  # by hand
    assert data.downloaded(file_at("http://127.0.0.1:9/file")).read_bytes() == CONTENT


def test_the_command_fetches_weights_and_images(server, monkeypatch, capsys, folder):
    address, asked = server
    monkeypatch.setattr(fetching.data, "downloads_of", lambda name: (file_at(f"{address}/file"),))
    monkeypatch.setattr("sys.argv", ["fperr", "fetch", "fashion_standard"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == [str(folder / "some" / "file")]
    assert asked == ["/file"]


def test_a_wrong_name_is_told_before_anything_is_fetched(server, monkeypatch, capsys):
    _, asked = server
    monkeypatch.setattr("sys.argv", ["fperr", "fetch", "mnist_test", "mnist"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 2
    assert "unknown network or data set 'mnist': expected one of" in capsys.readouterr().err
    assert asked == []


def test_what_is_missing_and_has_an_address_says_how_to_fetch_it():
    for entry in zoo.REGISTRY.values():
        if entry.checkpoint is not None:
            assert entry.url.startswith("https://raw.githubusercontent.com/")
            with pytest.raises(MissingDataError, match=f"`fperr fetch {entry.name}` gets it; or"):
                zoo.load(entry.name)
            assert not zoo.is_at_hand(entry.name)
    with pytest.raises(MissingDataError, match="`fperr fetch mnist_test` gets it; or set the env"):
        data.mnist_test()
    with pytest.raises(MissingDataError, match=r"cifar10_test_800 has no address: .* with --data"):
        zoo.fetch("cifar_wong_kolter_small_8px")


def test_published_digests_are_those_of_real_files(fperr_data):
    for name in (*zoo.REGISTRY, "mnist_test"):
        if name != "cifar_wong_kolter_small_8px":
            for file in zoo.downloads(name):
                content = (fperr_data / file.relative).read_bytes()
                assert hashlib.sha256(content).hexdigest() == file.sha256
