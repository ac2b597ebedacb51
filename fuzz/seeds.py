#!/usr/bin/env python3
"""Makes fuzz/seeds/ from proto-spec/: `python3 fuzz/seeds.py` in the package's root.

The seeds are committed, so that fuzzing needs no Python. A seed is named by a digest of its bytes.
"""

import hashlib
import json
import pathlib
import shutil
import struct

ROOT = pathlib.Path(__file__).resolve().parent
VECTORS = json.loads((ROOT.parent / "proto-spec/vectors/original.json").read_text())
URLS = [
    "tcp://127.0.0.1:9824", "tcp://[::1]:9824", "tcp://localhost", "tls://bus.example:9825",
    "ssl://bus.example", "udp://0.0.0.0:9824", "unix:///run/nlbus.sock", "unix://nlbus.sock",
    "unix://@nlbus", "unix://\\x00nlbus", "unix+tls://@nlbus", "unix+ssl:///run/nlbus.sock", "mem://bus",
]


def seeds(target, contents):
    folder = ROOT / "seeds" / target
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for content in contents:
        (folder / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)


def queue_message(command, *attributes):
    """A message of proto-spec/queue.md."""
    body = bytes([command, 1, 0, 0])
    for kind, value in attributes:
        body += struct.pack("<HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    return struct.pack("<IHHII", 16 + len(body), 32, 0, 7, 0) + body


def queue_messages():
    queue, record = (1, b"jobs"), [(6, b"corr"), (7, b"back"), (8, b"name\0value"), (9, b"payload")]
    numbers = [(kind, struct.pack("<Q", 3)) for kind in (12, 13, 14, 15, 16, 17, 18, 19, 20)]
    yield queue_message(1, queue, *numbers, (21, b"dead"))
    yield queue_message(4, queue, (3, bytes(range(16))), (4, struct.pack("<Q", 9)), (5, b"\x64\0"), *record)
    yield queue_message(5, queue, (1, b"other"), (23, b"\5"), (25, b"\x64"), (19, b"\x64"), (22, b"\x08"))
    yield queue_message(6, queue, (2, struct.pack("<QQ", 1, 2)))
    yield queue_message(9, queue, (23, b"\x40"), (24, b"\0\0\x10"))
    yield queue_message(11, (27, b"jo"), (23, b"\5"), (28, b"\xff"))
    yield queue_message(34, queue, (2, struct.pack("<Q", 1)), (10, b"\1"), (11, struct.pack("<Q", 5)), *record)
    yield queue_message(37, queue, (44, bytes(64)), *numbers)


def queue_commands():
    """Of sends, receives, acknowledgements and ends, in the order of bytes that queue_machine reads."""
    send = [0, 9, 13, 0, 0, 1, 1, 5]
    receive = [1, 9, 2, 0, 0, 3, 5, 1, 1]
    create = [0, 9, 0, 0, 0, 4, 40, 0, 3, 1, 0, 1, 1, 0, 1, 1, 1]
    yield bytes([0, 200] + create + [0, 3] + send * 3 + [0, 3] + receive + [1, 9, 5, 0, 0, 1, 0, 7, 1, 1, 9])
    yield bytes([1, 50] + create + send * 9 + receive * 2 + [1, 0, 0, 7, 0, 1, 11, 0, 7])
    # sessions that go while one's message waits for room and others have sent it again
    yield bytes.fromhex(
        "01220000090003ff2e280101040001010100090d0001325e" + "ff" * 34 + "fc" + "4c" * 7 + "2afeffffff1affffffff"
        + "4c" * 20 + "c74c4c4c4cffffffffff29ffffff000000f8ffffff0900000004" + "ff" * 12 + "3e3e")


def main():
    frames = [bytes.fromhex(v["hex"]) for v in VECTORS if v["transport"] != "netlink" and v["hex"]]
    small = [frame for frame in frames if len(frame) <= 300]
    control = {frame[28:24 + frame[24]] for frame in small if len(frame) > 28 and frame[6] == 1}
    envelopes = {len(frame): frame for frame in small}.values()
    streams = [b"".join(small[at:at + 4]) for at in range(0, len(small), 16)]
    seeds("control_roundtrip", {len(message): message for message in sorted(control)}.values())
    seeds("envelope_roundtrip", envelopes)
    seeds("deframer", [bytes([3, piece]) + stream for piece, stream in zip((1, 7, 50, 255) * 9, streams)])
    seeds("url", [url.encode() for url in URLS])
    seeds("queue_protocol", queue_messages())
    seeds("queue_machine", queue_commands())


main()
