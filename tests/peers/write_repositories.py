#!/usr/bin/env python3
# Writes TUF repositories of many kinds with python-tuf, for another client to follow.
#
#   write_repositories.py FOLDER
#
# FOLDER/<name>/ has root.json (the root that a client pins), metadata/, targets/ and ask.json: the target paths to ask for.
# What a client should find is not in there: python-tuf's own client says that (follow.py).
import hashlib
import json
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

BASE = Path(sys.argv[1])
EXPIRES = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=1)
TOP = ("root", "targets", "snapshot", "timestamp")


def signers(count):
    return [CryptoSigner.generate_ed25519() for _ in range(count)]


class Repository:
    def __init__(self, name, keys=1, threshold=1, consistent=True, hashes=("sha256",)):
        self.dir, self.consistent, self.hashes, self.threshold = BASE / name, consistent, list(hashes), threshold
        self.signers = {role: signers(keys) for role in TOP}
        self.targets = Targets(expires=EXPIRES)
        self.delegated, self.delegated_signers, self.asked = {}, {}, []
        self.root_version, self.last_root_signers = 0, []
        self.new_root()
        (self.dir / "root.json").write_bytes((self.dir / "metadata/1.root.json").read_bytes())

    def write(self, path, data):
        (self.dir / path).parent.mkdir(parents=True, exist_ok=True)
        (self.dir / path).write_bytes(data)

    def sign(self, payload, by, name):
        metadata = Metadata(payload)
        for signer in by:
            metadata.sign(signer, append=True)
        self.write(f"metadata/{name}", metadata.to_bytes())

    def new_root(self):
        """The next root, signed by as many of the keys before and of its own as each needs."""
        self.root_version += 1
        root = Root(version=self.root_version, expires=EXPIRES, consistent_snapshot=self.consistent)
        for role in TOP:
            for signer in self.signers[role]:
                root.add_key(signer.public_key, role)
            root.roles[role].threshold = self.threshold
        own = self.signers["root"][-self.threshold :]
        old = [signer for signer in self.last_root_signers if signer not in own]
        self.sign(root, old + own, f"{self.root_version}.root.json")
        self.last_root_signers = own

    def rotate(self, *roles):
        for role in roles:
            self.signers[role] = signers(len(self.signers[role]))
        self.new_root()

    def add(self, path, text=None, role=None, wrong_bytes=None):
        """Lists a file in a role, and has the server keep it."""
        data = (text or f"{role or 'targets'} has {path}\n").encode()
        payload = self.delegated[role] if role else self.targets
        payload.targets[path] = TargetFile.from_data(path, data, self.hashes)
        folder, _, file = path.rpartition("/")
        names = [f"{digest}.{file}" for digest in payload.targets[path].hashes.values()] if self.consistent else [file]
        for name in names:
            self.write(f"targets/{folder}/{name}" if folder else f"targets/{name}", wrong_bytes or data)
        self.ask(path)

    def ask(self, *paths):
        self.asked += [path for path in paths if path not in self.asked]

    def delegate(self, name, parent=None, keys=1, threshold=1, terminating=False, **what):
        payload = self.delegated[parent] if parent else self.targets
        if payload.delegations is None:
            payload.delegations = Delegations({}, roles={})
        self.delegated_signers[name] = signers(keys)
        ids = [signer.public_key.keyid for signer in self.delegated_signers[name]]
        payload.delegations.roles[name] = DelegatedRole(name, ids, threshold, terminating, **what)
        for signer in self.delegated_signers[name]:
            payload.delegations.keys[signer.public_key.keyid] = signer.public_key
        self.delegated[name] = Targets(expires=EXPIRES)

    def publish(self):
        named = {"targets": self.targets, **self.delegated}
        name = lambda role, version: f"{version}.{role}.json" if self.consistent else f"{role}.json"
        for role, payload in named.items():
            by = self.signers["targets"][: self.threshold] if role == "targets" else self.delegated_signers[role]
            self.sign(payload, by, name(role, payload.version))
        meta = {f"{role}.json": MetaFile(payload.version) for role, payload in named.items()}
        snapshot = Snapshot(version=1, expires=EXPIRES, meta=meta)
        self.sign(snapshot, self.signers["snapshot"][: self.threshold], name("snapshot", 1))
        timestamp = Timestamp(version=1, expires=EXPIRES, snapshot_meta=MetaFile(1))
        self.sign(timestamp, self.signers["timestamp"][: self.threshold], "timestamp.json")
        self.write("ask.json", json.dumps(self.asked).encode())


def plain():
    for consistent in (True, False):
        for hashes in (["sha256"], ["sha512"], ["sha256", "sha512"]):
            name = f"{'consistent' if consistent else 'plain'}-{'-'.join(hashes)}"
            repository = Repository(name, consistent=consistent, hashes=hashes)
            repository.add("file")
            repository.add("folder/deep/file-1.txt")
            repository.add("altered", "as signed\n", wrong_bytes=b"as served\n")
            repository.add("longer", "as signed\n", wrong_bytes=b"as signed\nand more\n")
            repository.ask("nowhere")
            repository.publish()


def thresholds():
    repository = Repository("threshold-2-of-3", keys=3, threshold=2)
    repository.add("file")
    repository.publish()
    repository = Repository("threshold-2-of-3-short-of-one", keys=3, threshold=2)
    repository.add("file")
    repository.signers["targets"] = repository.signers["targets"][:1]
    repository.publish()


def rotations():
    repository = Repository("rotated", keys=3, threshold=2)
    for roles in [TOP, ("root",), ("targets", "snapshot"), ("timestamp",), TOP]:
        repository.rotate(*roles)
    repository.add("file")
    repository.publish()
    repository = Repository("rotated-by-strangers", keys=3, threshold=2)
    repository.last_root_signers = signers(2)
    repository.rotate(*TOP)
    repository.add("file")
    repository.publish()


def delegations():
    repository = Repository("delegations")
    repository.delegate("team", paths=["team/*", "team/*/*"])
    repository.delegate("linux", "team", paths=["team/linux/*"], keys=3, threshold=2)
    repository.delegate("arm", "linux", paths=["team/linux/arm-?", "team/linux/[mn]*.bin"])
    repository.delegate("other", paths=["other/*"])
    repository.add("top")
    repository.add("team/file", role="team")
    repository.add("team/linux/file", role="linux")
    repository.add("team/linux/arm-7", role="arm")
    repository.add("team/linux/main.bin", role="arm")
    # Outside of what was handed over.
    repository.add("team/linux/arm-64", role="arm")
    repository.add("team/a/b/file", role="team")
    repository.add("other/deep/file", role="other")
    # Listed by two: the first that is asked counts.
    repository.add("team/linux/both", "linux has it\n", role="linux")
    repository.add("team/linux/both", "team has it\n", role="team")
    repository.publish()

    repository = Repository("delegation-terminates")
    repository.delegate("first", paths=["files/*"], terminating=True)
    repository.delegate("second", paths=["files/*", "more/*"])
    repository.add("files/of-first", role="first")
    repository.add("files/of-second", role="second")
    repository.add("more/of-second", role="second")
    repository.publish()

    repository = Repository("delegation-goes-on")
    repository.delegate("first", paths=["files/*"])
    repository.delegate("second", paths=["files/*"])
    repository.add("files/of-second", role="second")
    repository.publish()

    repository = Repository("delegation-short-of-one")
    repository.delegate("team", keys=3, threshold=2, paths=["team/*"])
    repository.delegated_signers["team"] = repository.delegated_signers["team"][:1]
    repository.add("team/file", role="team")
    repository.add("top")
    repository.publish()


def hash_bins():
    for consistent in (True, False):
        repository = Repository(f"hash-bins-{'consistent' if consistent else 'plain'}", consistent=consistent)
        for digit in "0123456789abcdef":
            repository.delegate(f"bin-{digit}", path_hash_prefixes=[digit])
        for number in range(40):
            path = f"packages/package-{number}"
            repository.add(path, role=f"bin-{hashlib.sha256(path.encode()).hexdigest()[0]}")
        # In a bin that it does not belong to.
        path = "packages/lost"
        wrong = f"{(int(hashlib.sha256(path.encode()).hexdigest()[0], 16) + 1) % 16:x}"
        repository.add(path, role=f"bin-{wrong}")
        repository.publish()


def succinct():
    """TAP 15: 16 bins named by one entry."""
    repository = Repository("succinct-bins")
    by = signers(1)
    roles = SuccinctRoles([by[0].public_key.keyid], 1, 4, "bin")
    repository.targets.delegations = Delegations({by[0].public_key.keyid: by[0].public_key}, succinct_roles=roles)
    for name in roles.get_roles():
        repository.delegated[name], repository.delegated_signers[name] = Targets(expires=EXPIRES), by
    repository.add("packages/package", role=roles.get_role_for_target("packages/package"))
    repository.add("top")
    repository.publish()


for write in (plain, thresholds, rotations, delegations, hash_bins, succinct):
    write()
