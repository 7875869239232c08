#!/usr/bin/env python3
"""scripts/fetch against a local server that cuts off, stalls, corrupts, ignores Range or answers with errors.

    python3 tests/test_fetch.py
"""
import hashlib
import http.server
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import unittest

FETCH = pathlib.Path(__file__).resolve().parent.parent / "scripts" / "fetch"
FOLDER = "cifar-10-batches-bin"
NAMES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


def archive(members):
    """A .tar.gz of {name: content}; content None makes a symbolic link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def small_files():
    draw = random.Random(1)
    return {name: bytes(draw.randrange(256) for _ in range(20000)) for name in NAMES}


FILES = small_files()
GOOD = archive({f"{FOLDER}/{name}": content for name, content in FILES.items()})
CUT = len(GOOD) * 2 // 5


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behave, content=GOOD):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave, self.content = behave, content  # behave(handler, number of the request from 0)
        self.ranges = []                             # the Range header of each request
        self.stop = threading.Event()                # ends stalls
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.shutdown()
        self.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/archive.tar.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.ranges.append(self.headers.get("Range"))
        try:
            self.server.behave(self, len(self.server.ranges) - 1)
        except BrokenPipeError:
            pass

    def begin(self):
        """Status and headers for the range asked for; the bytes to send."""
        content, asked = self.server.content, self.headers.get("Range")
        start = int(asked.split("=")[1].rstrip("-")) if asked else 0
        if start >= len(content) > 0 and asked:
            self.send_error(416)
            return b""
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        return content[start:]


def serve(handler, _):
    handler.wfile.write(handler.begin())


def cut_first(handler, request):
    body = handler.begin()
    handler.wfile.write(body if request else body[:CUT])


def cut_always(handler, _):
    handler.wfile.write(handler.begin()[:CUT])


def stall_first(handler, request):
    body = handler.begin()
    if request == 0:
        handler.wfile.write(body[:CUT])
        handler.wfile.flush()
        handler.server.stop.wait(20)
    else:
        handler.wfile.write(body)


def corrupt(handler, _):
    body = bytearray(handler.begin())
    body[len(body) // 2] ^= 1
    handler.wfile.write(bytes(body))


def no_range(handler, request):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(GOOD)))
    handler.end_headers()
    handler.wfile.write(GOOD if request else GOOD[:CUT])


def answer(*codes):
    """These statuses, one a request, then the file."""
    def behave(handler, request):
        if request < len(codes):
            handler.send_error(codes[request])
        else:
            serve(handler, request)
    return behave


class Fetch(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.out = self.folder / "set"
        self.part = self.folder / "set.part"

    def command(self, url, *more, content=GOOD, out=True):
        command = [sys.executable, str(FETCH), "cifar10", "--url", url, "--md5", hashlib.md5(content).hexdigest(),
                   "--size", str(len(content)), "--timeout", "0.5", "--retries", "2", "--backoff", "0.01"]
        command += ["--out", str(self.out)] if out else []
        return [*command, *map(str, more)]

    def fetch(self, url, *more, content=GOOD, env=None, out=True):
        clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        return subprocess.run(self.command(url, *more, content=content, out=out), capture_output=True, text=True,
                              timeout=60, env={**clean, **(env or {})})

    def left(self):
        return sorted(entry.name for entry in self.folder.iterdir())

    def assert_fetched(self, result):
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout.splitlines(), [str(self.out)])
        self.assertEqual({name: (self.out / name).read_bytes() for name in NAMES}, FILES)
        self.assertEqual(self.left(), ["set"], "only the finished folder may be left")

    def assert_failed(self, result, status, *says, left=()):
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertEqual(result.stdout, "")
        last = result.stderr.splitlines()[-1]
        self.assertTrue(last.startswith("fetch: "), result.stderr)
        self.assertNotIn("Traceback", result.stderr)
        for text in says:
            self.assertIn(text, last)
        self.assertEqual(self.left(), sorted(left))

    def test_works_and_is_recognised(self):
        with Server(serve) as server:
            self.assert_fetched(self.fetch(server.url))
            self.assertEqual(server.ranges, [None])
            again = self.fetch(server.url)
            self.assert_fetched(again)
            self.assertIn("nothing to download", again.stderr)
            self.assertEqual(len(server.ranges), 1)
            # A file that is damaged or gone is noticed, and the set is made anew.
            (self.out / NAMES[2]).write_bytes(FILES[NAMES[2]][:-1] + b"?")
            damaged = self.fetch(server.url)
            self.assert_fetched(damaged)
            self.assertIn(f"{NAMES[2]} has the wrong MD5", damaged.stderr)
            (self.out / NAMES[5]).unlink()
            self.assert_fetched(self.fetch(server.url))
            self.assertEqual(len(server.ranges), 3)
        record = json.loads((self.out / "fetched.json").read_text())
        self.assertEqual(sorted(record["files"]), sorted(NAMES))

    def test_default_folder(self):
        with Server(serve) as server:
            result = self.fetch(server.url, out=False, env={"XDG_CACHE_HOME": str(self.folder / "cache")})
        folder = self.folder / "cache" / "kiln" / "cifar10"
        self.assertEqual((result.returncode, result.stdout), (0, f"{folder}\n"), result.stderr)
        self.assertTrue((folder / "test_batch.bin").is_file())

    def test_resumes_after_a_cut(self):
        with Server(cut_first) as server:
            result = self.fetch(server.url)
            self.assert_fetched(result)
            self.assertEqual(server.ranges, [None, f"bytes={CUT}-"])
            self.assertIn(f"ended after {CUT} of {len(GOOD)} bytes", result.stderr)

    def test_tries_that_bring_bytes_do_not_count(self):
        with Server(cut_always) as server:
            self.assert_fetched(self.fetch(server.url, "--retries", 0))
            self.assertEqual(server.ranges, [None, f"bytes={CUT}-", f"bytes={2 * CUT}-"])

    def test_resumes_a_file_of_an_earlier_run(self):
        self.part.write_bytes(GOOD[:1000])
        with Server(serve) as server:
            self.assert_fetched(self.fetch(server.url))
            self.assertEqual(server.ranges, ["bytes=1000-"])
        self.part.write_bytes(GOOD)
        (self.out / "test_batch.bin").unlink()
        self.assert_fetched(self.fetch("http://127.0.0.1:9/none"))  # all of it is here: no connection is made

    def test_stall(self):
        with Server(stall_first) as server:
            result = self.fetch(server.url)
            self.assert_fetched(result)
            self.assertIn("no byte for 0.5 s", result.stderr)
            self.assertEqual(server.ranges, [None, f"bytes={CUT}-"])

    def test_stalls_always(self):
        def stall(handler, request):
            handler.wfile.write(handler.begin()[:CUT] if request == 0 else b"")
            handler.wfile.flush()
            handler.server.stop.wait(20)
        with Server(stall) as server:
            result = self.fetch(server.url, "--timeout", "0.2")
            self.assert_failed(result, 1, "gave up after 3 tries", "are kept in", left=["set.part"])
            self.assertEqual(server.ranges, [None] + [f"bytes={CUT}-"] * 3)
        self.assertEqual(self.part.read_bytes(), GOOD[:CUT])

    def test_interrupt(self):
        with Server(stall_first) as server:
            process = subprocess.Popen(self.command(server.url, "--timeout", 20), stderr=subprocess.PIPE, text=True)
            deadline = time.monotonic() + 20
            while not (self.part.exists() and server.ranges) and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            self.assertIn("interrupted", process.communicate(timeout=20)[1])
            self.assertEqual((process.returncode, self.left()), (130, ["set.part"]))
            self.assert_fetched(self.fetch(server.url))

    def test_corrupt(self):
        with Server(corrupt) as server:
            damaged = bytearray(GOOD)
            damaged[len(GOOD) // 2] ^= 1
            self.assert_failed(self.fetch(server.url), 2, f"wanted {hashlib.md5(GOOD).hexdigest()}",
                               f"got {hashlib.md5(damaged).hexdigest()}", "was deleted")
            self.assertEqual(len(server.ranges), 1)

    def test_wrong_partial_file(self):
        self.part.write_bytes(b"x" * 500)
        with Server(serve) as server:
            self.assert_failed(self.fetch(server.url), 2, "wrong checksum")
            self.assert_fetched(self.fetch(server.url))

    def test_server_that_ignores_range(self):
        with Server(no_range) as server:
            self.assert_fetched(self.fetch(server.url))
            self.assertEqual(server.ranges, [None, f"bytes={CUT}-"])

    def test_wrong_size(self):
        with Server(serve, GOOD + b"more") as server:
            self.assert_failed(self.fetch(server.url), 2, f"{len(GOOD) + 4} bytes, wanted are {len(GOOD)}")

    def test_statuses(self):
        with Server(answer(404)) as server:
            self.assert_failed(self.fetch(server.url), 1, "404")
            self.assertEqual(len(server.ranges), 1, "404 is final")
        with Server(answer(500, 503)) as server:
            self.assert_fetched(self.fetch(server.url))
            self.assertEqual(len(server.ranges), 3)
        with Server(answer(*[500] * 9)) as server:
            self.out = self.folder / "other"
            self.assert_failed(self.fetch(server.url), 1, "500", "gave up after 3 tries", left=["set"])
            self.assertEqual(len(server.ranges), 3)

    def test_no_server(self):
        with Server(serve) as server:
            url = server.url
        self.assert_failed(self.fetch(url), 1, "no connection", "gave up")
        self.assert_failed(self.fetch("not an address"), 2, "unknown url type")

    def test_archives_that_do_not_belong(self):
        files = {f"{FOLDER}/{name}": content for name, content in FILES.items()}
        for what, members, says in [
                ("a path out of the folder", {**files, "../evil": b"x"}, "../evil"),
                ("an absolute path", {**files, str(self.folder / "evil"): b"x"}, "evil"),
                ("a link", {**files, f"{FOLDER}/readme.html": None}, "readme.html"),
                ("an unexpected name", {**files, f"{FOLDER}/run.sh": b"x"}, "run.sh"),
                ("a file that is missing", dict(list(files.items())[:-1]), "lacks test_batch.bin"),
                ("a file that is too long", {f"{FOLDER}/batches.meta.txt": bytes(2 << 20)}, "batches.meta.txt"),
                ("no archive", None, "not a readable archive")]:
            content = archive(members) if members else b"hello" * 10
            with self.subTest(what), Server(serve, content) as server:
                self.assert_failed(self.fetch(server.url, content=content), 2, says, "was deleted")

    def test_a_folder_with_other_files_is_left_alone(self):
        self.out.mkdir()
        (self.out / "thesis.txt").write_text("mine")
        with Server(serve) as server:
            self.assert_failed(self.fetch(server.url), 2, "holds other files", left=["set"])
            self.assertEqual(server.ranges, [])
        self.assertEqual([entry.name for entry in self.out.iterdir()], ["thesis.txt"])

    def test_help_and_arguments(self):
        def run(*more):
            return subprocess.run([sys.executable, str(FETCH), *more], capture_output=True, text=True, timeout=60)
        text = run("--help").stdout
        for part in ("cifar100", "--out", "--timeout", "--retries", "--data"):
            self.assertIn(part, text)
        self.assertEqual(run().returncode, 2)
        self.assertEqual(run("mnist").returncode, 2)
        self.assertEqual(run("cifar10", "--timeout", "soon").returncode, 2)


if __name__ == "__main__":
    unittest.main()
