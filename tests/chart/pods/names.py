"""A DNS server for a cluster's names: A records over UDP."""

import socket
import struct
import threading

TYPE_A = 1
TTL_S = 5  # as CoreDNS's for a cluster's names
QUERY_BYTES_MIN = 17
ANSWERED, NO_SUCH_NAME = 0, 3


class NameServer(threading.Thread):
    """Answers at `address` until it is closed. `lookup(name)` returns the addresses of a name, or
    None where there is no such name.
    """

    def __init__(self, address, lookup):
        super().__init__(daemon=True)
        self.lookup = lookup
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 53))
        self.start()

    def run(self):
        while True:
            query, sender = self.socket.recvfrom(4096)
            if len(query) < QUERY_BYTES_MIN:
                return
            self.socket.sendto(self.answer(query), sender)

    def close(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self.socket.getsockname())
        self.join()
        self.socket.close()

    def answer(self, query):
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
            at += 1 + query[at]
        (kind,) = struct.unpack_from(">H", query, at + 1)
        question = query[12 : at + 5]
        addresses = self.lookup(".".join(labels).lower())
        code = NO_SUCH_NAME if addresses is None else ANSWERED
        records = [
            struct.pack(">HHHIH4s", 0xC00C, TYPE_A, 1, TTL_S, 4, socket.inet_aton(address))
            for address in (addresses or [] if kind == TYPE_A else [])
        ]
        # An authoritative answer; recursion is had, as programs ask for it.
        flags = 0x8580 | code
        header = query[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0)
        return header + question + b"".join(records)
