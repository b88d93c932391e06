"""Hostile requests to a real `cnnlab serve`: python tests/stress/hostile_requests.py [COUNT]

Each must be answered with a status of 4xx, or its connection closed where HTTP has no answer, within its time; a good
request after each kind must be answered with 200; the server's memory stays bounded. Prints a table, and ends with 1
where something else happened.
"""

import functools
import gzip
import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SIDE = 32  # pixels of the model, of the set "digits"
TIME, SLOW = 30, 100  # seconds for an answer, and for those that take their time
MEMORY = 3000  # MB that the server may need


def post(path, body=b"", *headers, kind="application/json", length=True):
    """A request as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *([f"Content-Type: {kind}"] if kind else []), *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


def get(path, *headers, host="localhost", method="GET"):
    lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), *headers]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"


def noise(chance, most=200):
    return chance.randbytes(chance.randrange(1, most))


def lines(chance):
    """What is no request at all, or of no kind that there is."""
    return chance.choice(
        (
            *(noise(chance) + b"\r\n\r\n", b"GET\r\n\r\n", b"\r\n" * 50 + b"x\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n"),
            *(b"POST /classify HTTP/9.9\r\n\r\n", b"GET /ping\r\n\r\n", b"GET  /ping  HTTP/1.1\r\n\r\n"),
            *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise(chance)),
            *(b"get /ping HTTP/1.1\nHost: localhost\n\n" + noise(chance) + b"\r\n\r\n", b"A" * 70_000),
            *(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"GET /p\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        )
    )


def headers(chance):
    """Headers by the thousand, of any length, in no form, or of somebody else."""
    return chance.choice(
        (
            get("/nowhere", *(f"X-{i}: {i}" for i in range(chance.randrange(100, 20_000)))),
            get("/nowhere", "X: " + "y" * chance.randrange(1000, 200_000)),
            *(
                get("/nowhere", "no colon"),
                get("/nowhere", "X : y"),
                get("/nowhere", " folded: x"),
                get("/nowhere", "X: \x00"),
            ),
            *(
                get("/ping", host=None),
                get("/ping", host="evil.example"),
                get("/ping", host="localhost/x?y"),
                get("/ping", host=""),
            ),
            *(
                get("/ping", "Host: evil.example"),
                post("/classify", b"x", "Origin: http://["),
                post("/classify", b"x", "Origin: null"),
            ),
            *(
                post("/classify", b"x", "Origin: http://localhost@evil.example"),
                post("/classify", b"x", "Sec-Fetch-Site: x"),
            ),
            *(post("/classify", b"x", "Authorization: Bearer é"), post("/classify", b"x", "Content-Encoding: br")),
            *(get("/nowhere", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"),),
            *(post("/classify", b"x", "Expect: 200-ok"), get("/nowhere", "Range: bytes=" + "0-1," * 5000)),
        )
    )


def lengths(chance):
    """Bodies of another length than is said."""
    said = chance.choice(
        ("-1", "1e3", "0x10", "+5", "5 5", "9" * 30, "99999999999", "٣", "²", "", "NaN", "5, 6", "67108865")
    )
    return chance.choice(
        (
            post("/classify", b"x" * 5, f"Content-Length: {said}", length=False),
            post("/invocations", b"x" * 5, f"Content-Length: {said}", "Content-Length: 5", length=False),
            post("/classify", b"", length=False),
            get("/nowhere", "Content-Length: 99999999999"),
        )
    )


def chunks(chance):
    """Transfer encodings, which a server that wants a length has no use for."""
    chunk = chance.choice(
        (b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\nhello\r\n", b"-5\r\n", b"ffffffffffffffff\r\nx", b"5;" + b"x" * 70_000)
    )
    how = chance.choice(("chunked", "gzip, chunked", "identity", "chunked, chunked", "CHUNKED", "xchunked"))
    return chance.choice(
        (
            post("/classify", chunk, f"Transfer-Encoding: {how}", length=False),
            post("/classify", chunk, f"Transfer-Encoding: {how}"),
            post(
                "/invocations",
                b"100000\r\n" + b"x" * 2**20 + b"\r\n" * 1,
                "Transfer-Encoding: chunked",
                "Content-Length: 3",
                length=False,
            ),
        )
    )


def paths(chance):
    """Ways out of the few paths that there are, and methods that they do not have."""
    path = chance.choice(
        (
            *(
                "/../../../etc/passwd",
                "/%2e%2e/%2e%2e/etc/passwd",
                "/..%2f..%2fetc/passwd",
                "//evil.example/ping",
                "/ping/../x",
            ),
            *(
                "/%00",
                "/classify%00.png",
                "/classify/",
                "/\\..\\x",
                "*",
                "http://evil.example/x",
                "/?" + "a=b&" * 10_000,
                "/;x",
            ),
            *("/" + "x/" * 20_000, "/%ff%fe", "/%", "/static/../../x", "/.env", "/.git/config", "file:///etc/passwd"),
        )
    )
    method = chance.choice(("GET", "PUT", "DELETE", "TRACE", "OPTIONS", "PATCH", "FOO", "HEAD", "CONNECT"))
    return chance.choice(
        (get(path, method=method), get("/classify", method=method), get("/invocations", method=method))
    )


def png(width, height, data):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@functools.cache
def bombs():
    sizes = ((65_535, 65_535), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (100_000, 10_000), (0, 0), (60_000, 900))
    packed = zlib.compress(bytes(10**6))
    return (
        *(b"", b"{}", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.7"),
        *(png(*size, data) for size in sizes for data in (packed, b"")),
        *(png(7000, 8000, zlib.compress(bytes(21_001 * 8000))), gzip.compress(bytes(10**7))),
    )


def pictures(chance):
    """Bodies that are no picture, or one that is larger than it looks."""
    body = chance.choice(
        (
            *bombs(),
            *(noise(chance, 5000), b"II*\x00\x08\x00\x00\x00\xff\xff" + noise(chance, 500) * 20),
            b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\x80\x00\x00" + bytes(6) + b"," + noise(chance),
            b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + noise(chance),
        )
    )
    return post("/classify", body, *chance.choice(((), ("Content-Encoding: gzip",))), kind="image/png")


@functools.cache
def values():
    wrong = [json.dumps([[[[value] * 3] * SIDE] * SIDE]) for value in (0.5, 256, "1", 10**30, None)]
    return (
        *(
            "NaN",
            "Infinity",
            "-Infinity",
            "1e400",
            "9" * 400,
            "null",
            "true",
            '"x"',
            "{}",
            "[]",
            "[[]]",
            "[1, [2]]",
            "-0",
        ),
        *(
            '"\\ud800"',
            "[" * 100_000,
            "[" * 500 + "]" * 500,
            '{"a":' * 50_000,
            "[[[[0,0,0]]]]",
            "1" * 5000,
            '[{"b64": "x"}]',
        ),
        *("[" + "0," * 10**6 + "0]", *wrong),
    )


def arrays(chance):
    """JSON of the wrong kind, depth, size, type or encoding."""
    value = chance.choice(values())
    key = chance.choice(
        ("inputs", "instances", "dataframe_split", "dataframe_records", "x", "params", "messages", "input")
    )
    body = chance.choice(
        (f'{{"{key}": {value}}}', f'{{"{key}": {{"x": {value}}}}}', f'{{"{key}": {value}, "inputs": 1}}', value)
    )
    body = chance.choice(
        (
            body.encode(),
            body.encode(),
            body.encode(),
            body.encode("utf-16"),
            b"\xef\xbb\xbf" + body.encode(),
            b"\xff" + body.encode(),
        )
    )
    kinds = (
        "application/json",
        "application/json",
        "application/json",
        "text/csv",
        "text/plain",
        "application/xml",
        None,
        "",
    )
    kinds += (
        "application/json; charset=utf-7",
        "application/json; x=y",
        "multipart/form-data",
        ";",
        "application/json;charset",
    )
    return post("/invocations", body, kind=chance.choice(kinds))


def pipelines(chance):
    """Several requests at once, of which the last is none."""
    return get("/nowhere") * chance.randrange(1, 100) + noise(chance) + b"\r\n\r\n"


def broken_off(chance):
    """A body that ends before its length, with the connection."""
    return post("/classify", b"x" * 10, "Content-Length: 100000", length=False), "close"


def large(chance):
    """As much as is let in, and a little more."""
    start, more = chance.choice(((b"[", 2**25 - 10), (b'{"inputs": [', 2**24), (b"", 2**25), (b"[", 2**25)))
    return post(chance.choice(("/classify", "/invocations")), start + b"0," * more + b"0]")


def trickled(chance):
    """A header or a body that comes a byte a second."""
    return chance.choice((get("/ping"), post("/classify", b"x" * 1000))), "slowly"


# Of 1,000, so many.
SHARES = {lines: 120, headers: 140, lengths: 100, chunks: 100, paths: 120, pictures: 120, arrays: 180, pipelines: 50}
SHARES |= {broken_off: 40, large: 6, trickled: 24}


def ask(port, request, how="at once"):
    """The statuses that come back, "closed" where none does, and the seconds that it took."""
    began, received = time.perf_counter(), b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=SLOW if how == "slowly" else TIME) as connection:
            try:
                if how == "slowly":
                    connection.settimeout(1)
                    for byte in request:
                        connection.sendall(bytes([byte]))
                        try:
                            if not (part := connection.recv(65_536)):
                                break
                            received += part
                        except TimeoutError:
                            if time.perf_counter() - began > SLOW:
                                return ["no answer"], SLOW
                else:
                    connection.sendall(request)
                    connection.shutdown(socket.SHUT_WR) if how == "close" else None
                connection.settimeout(TIME)
                while part := connection.recv(65_536):
                    received += part
                    connection.settimeout(0.5)  # a kept connection stays open for what may come
            except (ConnectionError, BrokenPipeError):
                pass
    except TimeoutError:
        if not received:
            return ["no answer"], time.perf_counter() - began
    return statuses(received), time.perf_counter() - began


def statuses(received):
    found = [part[:3].decode("latin-1") for part in received.split(b"HTTP/1.1 ")[1:]]
    return found or ["closed"]


def good(port):
    """The status of a good picture."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "png")
    return ask(port, post("/classify", file.getvalue(), "Connection: close", kind="image/png"))


def peak(pid):
    """MB that a process had at most since the last time."""
    text = Path(f"/proc/{pid}/status").read_text()
    size = int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return size


def attack(port, pid, count, say=print):
    """Send `count` requests, and return what went wrong."""
    wrong, chance = [], random.Random(0)
    say(f"{'kind':12} {'sent':>5}  {'slowest':>8}  {'memory':>8}  answers")
    for kind, share in SHARES.items():
        number = max(1, round(share * count / 1000))
        made = [kind(chance) for _ in range(number)]
        made = [one if isinstance(one, tuple) else (one, "at once") for one in made]
        with ThreadPoolExecutor(24 if kind is trickled else 4) as pool:
            answers = list(pool.map(lambda one: ask(port, *one), made))
        counted = Counter(status for found, _ in answers for status in found)
        slowest = max(seconds for _, seconds in answers)
        size = peak(pid)
        say(
            f"{kind.__name__:12} {number:>5}  {slowest:>6.1f} s  {size:>5.0f} MB  "
            + ", ".join(f"{a} {n}" for a, n in sorted(counted.items()))
        )
        for (found, _), (request, _) in zip(answers, made, strict=True):
            if any(status != "closed" and not status.startswith("4") for status in found):
                wrong.append(f"{kind.__name__}: {found} to {request[:300]!r}")
        if size > MEMORY:
            wrong.append(f"{kind.__name__}: {size:.0f} MB")
        found, seconds = good(port)
        if found != ["200"] or seconds > 5:
            wrong.append(f"{kind.__name__}: then a good request got {found} after {seconds:.1f} s")
    return wrong


def serve_digits(folder):
    """A small model, trained and served there: `(process, port)`."""
    import cnnlab
    from cnnlab.tracking import model_registry, promotion

    os.chdir(folder)
    recipe = cnnlab.Recipe(model="cnn", dataset="digits", filters=(8,), dense_units=8, epochs=1, limit=150)
    result = cnnlab.compare_models([recipe]).results[0]
    promotion.promote(model_registry.register_run(result.run_id)[0])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "cnnlab", "serve", "--port", str(port)])
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, port
        except OSError:
            if process.poll() is not None:
                raise
            time.sleep(0.5)


def main(count):
    with tempfile.TemporaryDirectory() as folder:
        process, port = serve_digits(folder)
        try:
            good(port)
            peak(process.pid)
            wrong = attack(port, process.pid, count)
        finally:
            process.terminate()
            process.wait()
            os.chdir("/")
    print("\n".join(wrong) or "Nothing else happened.")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
