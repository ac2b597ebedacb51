#!/usr/bin/env python3
"""A client of nlbus's queues in Python 3, written from proto-spec/ alone, with nothing but the standard library.

As a program:

    nlbus_queue.py -u unix:///run/nlbus.sock serve foo &       # answers with what it was sent
    nlbus_queue.py -u unix:///run/nlbus.sock call foo hello

As a module:

    with Client("unix:///run/nlbus.sock") as client:
        client.create("jobs")
        client.send("jobs", b"build it")
        for message in client.receive("jobs", wait=10):
            client.ack(message)

A client is for one thread, and its requests wait for their answers. It connects once: whoever wants to
outlive the broker makes another one.
"""

import argparse
import os
import secrets
import socket
import struct
import sys
import time
from urllib.parse import urlsplit

# proto-spec/envelope.md
TRANSPORT = 15
CONTROL, EXCEPTION, ASK, LAST = 0x1, 0x10, 0x20, 0x40
FRAME_MAX = 65_560
PAYLOAD_MAX = 65_531
BROKER = 0x0001_0003
# proto-spec/control.md
HELLO, DISCOVER, CONTROL_ERR = 32, 15, 3
HOST, ADDR, ERROR, ERRNO, VERSION, LONGEST = 9, 13, 14, 64, 65, 66
# netlink(7), proto-spec/data.md
NLMSG_ERROR, NLMSG_DONE, DATA, MULTI = 2, 3, 16, 0x2
BODY_MAX = 16 << 20
# proto-spec/queue.yaml
QUEUE_TYPE, QUEUE_VERSION = 32, 1
COMMANDS = {
    "create": 1, "destroy": 2, "list": 3, "send": 4, "receive": 5, "ack": 6, "nack": 7, "extend": 8,
    "purge": 13, "created": 32, "sent": 33, "message": 34, "purged": 36, "queue": 37,
}
ATTRIBUTES = {
    "queue": (1, "text"), "id": (2, "u64"), "sender": (3, "bytes"), "sequence": (4, "u64"),
    "ttl": (5, "u64"), "correlation": (6, "bytes"), "reply_to": (7, "text"), "header": (8, "bytes"),
    "payload": (9, "bytes"), "attempt": (10, "u32"), "arrived": (11, "u64"), "kind": (12, "u32"),
    "flags": (22, "u32"), "count": (23, "u32"), "timeout": (25, "u64"), "prefix": (27, "text"),
    "ready": (39, "u64"), "leased": (40, "u64"), "messages": (41, "u64"), "errno": (54, "u32"),
    "text": (55, "text"),
}
NAMES = {number: (name, kind) for name, (number, kind) in ATTRIBUTES.items()}
FLAG_CREATE, FLAG_EXCLUSIVE, FLAG_FORCE, FLAG_IF_EMPTY, FLAG_ALIVE = 0x1, 0x2, 0x4, 0x10, 0x20
TRANSIENT = 1


class BusError(Exception):
    """The broker, or whoever was asked, said no. `errno` is the error number."""

    def __init__(self, errno, text):
        super().__init__(text or os.strerror(errno))
        self.errno = errno


class Lost(ConnectionError):
    """The connection ended, or what came over it made no sense."""


def padded(data):
    return data + bytes(-len(data) % 4)


def attribute(kind, value):
    return padded(struct.pack("<HH", 4 + len(value), kind) + value)


def attributes(region):
    """Kinds and values, one after the other."""
    at = 0
    while at < len(region):
        if len(region) - at < 4:
            raise Lost("bytes behind the last attribute")
        length, kind = struct.unpack_from("<HH", region, at)
        if length < 4 or at + length > len(region):
            raise Lost("an attribute that does not fit")
        yield kind, region[at + 4 : at + length]
        at += (length + 3) & ~3


def messages(body):
    """Netlink messages: type, flags, sequence number, what stands behind the header."""
    at = 0
    while at < len(body):
        if len(body) - at < 16:
            raise Lost("bytes behind the last message")
        length, kind, flags, sequence, _ = struct.unpack_from("<IHHII", body, at)
        if length < 16 or at + length > len(body):
            raise Lost("a message that does not fit")
        yield kind, flags, sequence, body[at + 16 : at + length]
        at += (length + 3) & ~3


def message(kind, flags, sequence, body):
    return struct.pack("<IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def error_of(body):
    """The error number and the text in an NLMSG_ERROR, and the sequence number that it is about."""
    code, _, _, _, sequence, _ = struct.unpack_from("<iIHHII", body)
    text = ""
    for kind, value in attributes(body[20:]):
        if kind == 1:
            text = value.rstrip(b"\0").decode(errors="replace")
    return -code, text, sequence


class Bus:
    """A link to a broker: unix://PATH, unix://@NAME or tcp://HOST[:PORT]."""

    def __init__(self, url):
        parts = urlsplit(url)
        if parts.scheme == "unix":
            path = url.removeprefix("unix://")
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.connect("\0" + path[1:] if path.startswith("@") else path)
        elif parts.scheme == "tcp":
            self.socket = socket.create_connection((parts.hostname, parts.port or 9824), timeout=5)
            self.socket.settimeout(None)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            raise ValueError(f"{url}: unix:// or tcp://, please")
        self.sequence = 0
        answer = self.control(HELLO, attribute(VERSION, struct.pack("<I", 1))
                              + attribute(LONGEST, struct.pack("<I", FRAME_MAX)))
        self.frame_max = min(FRAME_MAX, struct.unpack("<I", answer[LONGEST])[0])

    def close(self):
        self.socket.close()

    def control(self, command, region):
        """Asks the broker itself: the attributes of its answer."""
        body = struct.pack("<BBH", command, 0, 0) + region
        self.sequence += 1
        self.write(CONTROL, self.sequence, BROKER, message(14, 0, self.sequence, body))
        while True:
            flags, sequence, payload = self.read()
            if flags & CONTROL and sequence == self.sequence:
                break
        found = dict(attributes(payload[20:]))
        if payload[16] == CONTROL_ERR:
            errno = struct.unpack("<I", found.get(ERRNO, struct.pack("<I", 5)))[0]
            raise BusError(errno, found.get(ERROR, b"").rstrip(b"\0").decode(errors="replace"))
        return found

    def discover(self, name):
        """The address of a subsystem."""
        answer = self.control(DISCOVER, attribute(HOST, name.encode() + b"\0"))
        return struct.unpack("<I", answer[ADDR])[0]

    def ask(self, address, body):
        """Asks a subsystem: the bodies of its answer, as they come (proto-spec/data.md)."""
        self.sequence += 1
        ours = self.sequence
        for inner in self.parts(ours, body):
            self.write(ASK, ours, address, inner)
        joined = bytearray()
        while True:
            flags, sequence, payload = self.read()
            if sequence != ours or flags & CONTROL:
                continue
            for kind, inner_flags, _, body in messages(payload):
                if kind == NLMSG_ERROR:
                    errno, text, _ = error_of(body)
                    if errno:
                        raise BusError(errno, text)
                elif kind == DATA and inner_flags & MULTI:
                    joined += body
                    if len(joined) > BODY_MAX:
                        raise Lost("the answer is too long")
                elif kind == NLMSG_DONE:
                    if len(body) >= 8 and struct.unpack_from("<I", body, 4)[0] != len(joined):
                        raise Lost("parts of the answer are missing")
                    yield bytes(joined)
                    joined.clear()
                elif kind == DATA:
                    yield body
            if flags & (LAST | EXCEPTION):
                return

    def parts(self, sequence, body):
        """One frame's payload after the other."""
        # the envelope, the header of CDATA and that of the message stand before it
        room = min(self.frame_max - 28, PAYLOAD_MAX) - 16 & ~3
        if len(body) <= room:
            yield message(DATA, 0, sequence, body)
            return
        for at in range(0, len(body), room):
            yield message(DATA, MULTI, sequence, body[at : at + room])
        yield message(NLMSG_DONE, MULTI, sequence, struct.pack("<iI", 0, len(body)))

    def write(self, flags, sequence, address, payload):
        inside = attribute(0, payload)
        head = struct.pack("<IHHIIII", 24 + len(inside), TRANSPORT, flags, sequence, 0, address, 0)
        self.socket.sendall(head + inside)

    def read(self):
        """The next frame: flags, sequence number, payload."""
        length = struct.unpack("<I", self.exactly(4))[0]
        if not 28 <= length <= FRAME_MAX or length % 4:
            raise Lost("a frame of no possible length")
        kind, flags, sequence, _, _, _ = struct.unpack_from("<HHIIII", rest := self.exactly(length - 4))
        if kind != TRANSPORT:
            raise Lost("no frame of nlbus")
        for kind, value in attributes(rest[20:]):
            if kind == 0:
                return flags, sequence, value
        return flags, sequence, b""

    def exactly(self, count):
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise Lost("the broker has closed the connection")
            data += piece
        return bytes(data)


class Message(dict):
    """A message that was received: `queue`, `id`, `attempt`, `payload`, and what else it says."""

    __getattr__ = dict.get


class Client:
    """The queues of one broker."""

    def __init__(self, url, subsystem="queue"):
        self.bus = Bus(url)
        self.address = self.bus.discover(subsystem)
        self.sender = secrets.token_bytes(16)
        self.sent = 0
        self.replies = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bus.close()

    def create(self, queue, transient=False, exclusive=False):
        """Makes a queue, or sees that it is there: its name. A transient one may be left unnamed."""
        named = {} if queue is None else {"queue": queue}
        flags = FLAG_EXCLUSIVE if exclusive else 0
        return self.one("create", **named, kind=TRANSIENT if transient else 0, flags=flags).queue

    def destroy(self, queue, if_empty=False):
        self.all("destroy", queue=queue, flags=FLAG_IF_EMPTY if if_empty else 0)

    def list(self, prefix="", alive=False):
        return self.all("list", prefix=prefix, flags=FLAG_ALIVE if alive else 0)

    def send(self, queue, payload, create=False, **more):
        """Appends a message: its id, once it is stored. `more`: ttl in ms, correlation, reply_to."""
        self.sent += 1
        sent = self.one(
            "send", queue=queue, flags=FLAG_CREATE if create else 0, sender=self.sender,
            sequence=self.sent, **more, payload=payload,
        )
        return sent.id

    def receive(self, *queues, count=1, wait=0.0):
        """Takes up to `count` messages of the first queue that has some, waiting up to `wait` seconds."""
        found = self.all("receive", queue=list(queues), count=count, timeout=int(wait * 1000))
        for message in found:
            message.setdefault("payload", b"")
        return found

    def ack(self, message):
        self.all("ack", queue=message.queue, id=message.id)

    def nack(self, message):
        self.all("nack", queue=message.queue, id=message.id)

    def acknowledge(self, queue, number):
        """Removes a message, whoever holds it."""
        self.all("ack", queue=queue, id=number, flags=FLAG_FORCE)

    def purge(self, queue):
        return self.one("purge", queue=queue).messages

    def call(self, queue, payload, timeout=None):
        """Asks through a queue: the answer of whoever serves it. `timeout` in seconds; None waits for ever."""
        if self.replies is None:
            name = f"python:{os.getpid()}-{self.sender[:8].hex()}"
            self.replies = self.create(name, transient=True, exclusive=True)
        correlation = secrets.token_bytes(16)
        more = {} if timeout is None else {"ttl": max(1, int(timeout * 1000))}
        deadline = None if timeout is None else time.monotonic() + timeout
        self.send(queue, payload, create=True, correlation=correlation, reply_to=self.replies, **more)
        while True:
            left = 60.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no answer within {timeout} s")
            for answer in self.receive(self.replies, wait=left):
                self.ack(answer)
                # an earlier call that was given up may be answered late
                if answer.correlation == correlation:
                    if answer.errno:
                        raise BusError(answer.errno, answer.text or "")
                    return answer.payload

    def serve(self, queue, handler, count=None):
        """Answers the requests in a queue with what `handler` makes of their payloads; `count` of them."""
        self.create(queue)
        while count is None or count > 0:
            for request in self.receive(queue, wait=60.0):
                try:
                    answer = {"payload": handler(request.payload)}
                except Exception as failure:  # whatever it is, the caller gets it
                    answer = {"errno": 5, "text": str(failure), "payload": b""}
                if request.reply_to:
                    self.answer(request, answer)
                self.ack(request)
                count = None if count is None else count - 1

    def answer(self, request, answer):
        try:
            self.send(request.reply_to, correlation=request.correlation or b"", **answer)
        except BusError as gone:
            if gone.errno != 2:  # the caller waits no more
                raise

    def one(self, command, **values):
        found = self.all(command, **values)
        if len(found) != 1:
            raise Lost("the answer makes no sense")
        return found[0]

    def all(self, command, **values):
        """Sends a message with these attributes: what it is answered with."""
        body = struct.pack("<BBH", COMMANDS[command], QUEUE_VERSION, 0)
        for name, value in values.items():
            for one in value if isinstance(value, list) else [value]:
                body += self.emit(name, one)
        request = padded(message(QUEUE_TYPE, 0, 1, body))
        found, refusal = [], None
        for answer in self.bus.ask(self.address, request):
            for kind, _, _, body in messages(answer):
                if kind == NLMSG_ERROR:
                    errno, text, _ = error_of(body)
                    refusal = BusError(errno, text) if errno else refusal
                elif kind == QUEUE_TYPE:
                    found.append(self.parse(body[4:]))
        if refusal:
            raise refusal
        return found

    @staticmethod
    def emit(name, value):
        number, kind = ATTRIBUTES[name]
        if kind == "u32":
            return attribute(number, struct.pack("<I", value))
        if kind == "u64":
            return attribute(number, struct.pack("<Q", value))
        value = value.encode() if isinstance(value, str) else bytes(value)
        if name != "payload":
            return attribute(number, value)
        pieces = [value[at : at + PAYLOAD_MAX] for at in range(0, len(value), PAYLOAD_MAX)] or [b""]
        return b"".join(attribute(number, piece) for piece in pieces)

    @staticmethod
    def parse(region):
        found = Message()
        for number, value in attributes(region):
            name, kind = NAMES.get(number, (None, None))
            if name is None:
                continue
            if kind in ("u32", "u64"):
                found[name] = int.from_bytes(value, "little")
            elif kind == "text":
                found[name] = value.rstrip(b"\0").decode(errors="replace")
            elif name == "header":
                key, _, content = value.partition(b"\0")
                found.setdefault("headers", []).append((key.decode(errors="replace"), content))
            else:
                found[name] = found.get(name, b"") + value
        return found


def main():
    parser = argparse.ArgumentParser(description="Queues of a broker of nlbus.")
    parser.add_argument("-u", "--url", default=os.environ.get("NLBUS_URL", "tcp://127.0.0.1:9824"))
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("create", "destroy", "purge"):
        commands.add_parser(name).add_argument("queue")
    listing = commands.add_parser("list")
    listing.add_argument("--all", action="store_true")
    listing.add_argument("--prefix", default="")
    for name in ("send", "call"):
        command = commands.add_parser(name)
        command.add_argument("queue")
        command.add_argument("body", help="- reads it from standard input")
    commands.choices["call"].add_argument("--timeout", type=float)
    receiving = commands.add_parser("recv")
    receiving.add_argument("queue")
    receiving.add_argument("--wait", type=float, default=0.0)
    acknowledging = commands.add_parser("ack")
    acknowledging.add_argument("queue")
    acknowledging.add_argument("id", type=int)
    serving = commands.add_parser("serve", help="answers each request with what it was sent")
    serving.add_argument("queue")
    serving.add_argument("--count", type=int)
    args = parser.parse_args()
    try:
        with Client(args.url) as client:
            return run(client, args)
    except (BusError, OSError) as error:
        print(f"nlbus_queue.py: {error}", file=sys.stderr)
        return 1


def run(client, args):
    if args.command == "create":
        client.create(args.queue)
    elif args.command == "destroy":
        client.destroy(args.queue)
    elif args.command == "purge":
        print(client.purge(args.queue))
    elif args.command == "list":
        for queue in client.list(args.prefix, alive=not args.all):
            print(queue.queue)
    elif args.command in ("send", "call"):
        body = sys.stdin.buffer.read() if args.body == "-" else os.fsencode(args.body)
        if args.command == "send":
            print(client.send(args.queue, body))
        else:
            sys.stdout.buffer.write(client.call(args.queue, body, args.timeout))
    elif args.command == "recv":
        found = client.receive(args.queue, wait=args.wait)
        for message in found:
            sys.stdout.buffer.write(message.payload or b"")
            client.ack(message)
        return 0 if found else 4
    elif args.command == "ack":
        client.acknowledge(args.queue, args.id)
    elif args.command == "serve":
        print(f"serving the queue {args.queue}", flush=True)
        client.serve(args.queue, lambda payload: payload, args.count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
