#!/usr/bin/env python3
"""Makes fuzz/seeds/ from proto-spec/vectors/original.json: `python3 fuzz/seeds.py` in the package's root.

The seeds are committed, so that fuzzing needs no Python. A seed is named by a digest of its bytes.
"""

import hashlib
import json
import pathlib
import shutil

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


main()
