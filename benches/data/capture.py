#!/usr/bin/env python3
"""Captures benches/data/newlink.bin, a dump of RTM_NEWLINK messages, from this machine's kernel.

    unshare --net python3 benches/data/capture.py

In a new network namespace (so that nothing of the machine gets into the file) it makes a bridge and
veth pairs, asks for all links, and stores what each recvmsg brought, one behind the other, NLMSG_DONE left out.
"""

import pathlib
import socket
import struct
import subprocess

LINKS = [
    "link set lo up",
    "link add br0 type bridge",
    *(f"link add name va{n} type veth peer name vb{n}" for n in range(4)),
    *(f"link set va{n} master br0" for n in range(4)),
]
RTM_GETLINK, NLM_F_REQUEST_DUMP, NLMSG_DONE = 18, 0x301, 3

for line in LINKS:
    subprocess.run(["ip", *line.split()], check=True)
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
    kernel.bind((0, 0))
    kernel.send(struct.pack("=IHHII16x", 32, RTM_GETLINK, NLM_F_REQUEST_DUMP, 1, 0))
    dump = b""
    while True:
        datagram = kernel.recv(1 << 16)
        if struct.unpack_from("=H", datagram, 4)[0] == NLMSG_DONE:
            break
        dump += datagram
target = pathlib.Path(__file__).with_name("newlink.bin")
target.write_bytes(dump)
print(f"{len(dump)} bytes in {target.name}")
