# A vendor, as the attacks in make.py need one: keys from fixed seeds, releases, and TUF metadata signed by python-tuf.
#
# None of it is the code under test: python-tuf writes and signs the metadata, `cryptography` signs the artifacts.
import base64
import copy
import hashlib
import io
import json
import zipfile
from datetime import datetime, timedelta, timezone

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

TRIPLE = "x86_64-unknown-linux-musl"
OTHER_TRIPLE = "aarch64-unknown-linux-musl"
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
# The highest version that every TUF client can count to.
HIGHEST = 2**31 - 1


def day(number):
    return START + timedelta(days=number)


def private(name):
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"picket fixtures: {name}".encode()).digest())


def raw(name):
    return private(name).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def public(name):
    return SSlibKey.from_crypto(private(name).public_key())


def signer(name):
    return CryptoSigner(private(name), public(name))


def minisign_id(name):
    return hashlib.sha256(f"picket fixtures, minisign: {name}".encode()).digest()[:8]


def minisign_line(name):
    return base64.b64encode(b"Ed" + minisign_id(name) + raw(name)).decode()


def minisign(name, data, comment):
    """A .minisig file: prehashed, as `minisign -S` writes it."""
    signature = private(name).sign(hashlib.blake2b(data, digest_size=64).digest())
    whole = private(name).sign(signature + comment.encode())
    first = base64.b64encode(b"ED" + minisign_id(name) + signature).decode()
    second = base64.b64encode(whole).decode()
    return f"untrusted comment: signature of a fixture\n{first}\ntrusted comment: {comment}\n{second}\n".encode()


def artifact(version, triple=TRIPLE, product="picket"):
    """A release's archive: a zip of one file, stored."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        info = zipfile.ZipInfo("picket", (2026, 1, 1, 0, 0, 0))
        info.create_system, info.external_attr = 3, 0o100755 << 16
        archive.writestr(info, f"#!/bin/sh\necho {product} {version} {triple}\n")
    return out.getvalue()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Repository:
    """A release repository: what the vendor has, or what somebody with other keys made of a copy of it."""

    def __init__(self, root=("root-1", "root-2", "root-3"), targets=("targets-1",), threshold=1):
        self.root_keys, self.root_threshold = list(root), 2
        self.targets_keys, self.targets_threshold = list(targets), threshold
        self.online_keys = ["online-1"]
        self.minisign = "minisign-1"
        # Who signs, where that differs from who should.
        self.signers = {}
        self.versions = {"root": 0, "targets": 0, "snapshot": 0, "timestamp": 0}
        self.releases = {}
        self.targets = {}
        self.files = {}
        self.new_root(day(0))

    def copy(self):
        return copy.deepcopy(self)

    # Roots

    def root_payload(self, now, days=365):
        root = Root(version=self.versions["root"], expires=now + timedelta(days=days), consistent_snapshot=True)
        roles = {
            "root": (self.root_keys, self.root_threshold),
            "targets": (self.targets_keys, self.targets_threshold),
            "snapshot": (self.online_keys, 1),
            "timestamp": (self.online_keys, 1),
        }
        for role, (names, threshold) in roles.items():
            for name in names:
                root.add_key(public(name), role)
            root.roles[role].threshold = threshold
        root.unrecognized_fields["x-picket-minisign"] = [minisign_line(self.minisign)]
        return root

    def new_root(self, now, by=None, days=365, change=None):
        """The next root, signed by two of the keys that the old one names and two of its own."""
        self.versions["root"] += 1
        old = getattr(self, "last_root_keys", self.root_keys)
        by = by if by is not None else list(dict.fromkeys(old[:2] + self.root_keys[:2]))
        payload = self.root_payload(now, days)
        if change:
            change(payload)
        self.put("root", payload, by)
        self.last_root_keys = list(self.root_keys)

    # Releases

    def release(self, version, now, data=None, comment=None, triple=TRIPLE, minisign_by=None, product="picket"):
        """Lists a release, and makes it the head of the channel."""
        data = data if data is not None else artifact(version)
        path = f"{version}/picket-{version}-{triple}.zip"
        self.put_target(path, data)
        comment = comment or f"picket {version} {triple} {sha256(data)}"
        by = minisign_by or self.minisign
        self.files[self.place(path, data) + ".minisig"] = minisign(by, data, comment)
        self.releases[version] = {
            "notes": f"What is new in {version}",
            "critical": False,
            "published": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "state_format": 1,
            "artifacts": {triple: {"path": path, "unpacked": 4096}},
        }
        self.channel(version, product)

    def channel(self, head, product="picket", name="stable"):
        document = {"schema": 1, "product": product, "channel": name, "head": head, "releases": self.releases}
        self.put_target("channel/stable.json", json.dumps(document, indent=1, sort_keys=True).encode())

    def place(self, path, data):
        folder, file = path.rsplit("/", 1)
        return f"targets/{folder}/{sha256(data)}.{file}"

    def put_target(self, path, data):
        self.targets[path] = TargetFile(len(data), {"sha256": sha256(data)}, path)
        self.files[self.place(path, data)] = data

    # Metadata

    def put(self, role, payload, by):
        metadata = Metadata(payload)
        for name in by:
            metadata.sign(signer(name), append=True)
        name = "timestamp.json" if role == "timestamp" else f"{payload.version}.{role}.json"
        self.files[f"metadata/{name}"] = metadata.to_bytes()
        return self.files[f"metadata/{name}"]

    def publish(self, now, days=None, **versions):
        """Signs targets, snapshot and timestamp anew. `days`: how long each lives, where not as usual."""
        days = {"targets": 180, "snapshot": 30, "timestamp": 14, **(days or {})}
        for role in ("targets", "snapshot", "timestamp"):
            self.versions[role] = versions.get(role, self.versions[role] + 1)
        expires = {role: now + timedelta(days=lifetime) for role, lifetime in days.items()}
        targets = Targets(version=self.versions["targets"], expires=expires["targets"], targets=self.targets)
        by = self.signers.get("targets", self.targets_keys[: self.targets_threshold])
        self.put("targets", targets, by)
        self.publish_online(expires)

    def publish_online(self, expires):
        meta = {"targets.json": MetaFile(self.versions["targets"])}
        snapshot = Snapshot(version=self.versions["snapshot"], expires=expires["snapshot"], meta=meta)
        data = self.put("snapshot", snapshot, self.signers.get("snapshot", self.online_keys[:1]))
        self.publish_timestamp(expires["timestamp"], data)

    def publish_timestamp(self, expires, snapshot):
        pin = MetaFile(self.versions["snapshot"], len(snapshot), {"sha256": sha256(snapshot)})
        timestamp = Timestamp(version=self.versions["timestamp"], expires=expires, snapshot_meta=pin)
        self.put("timestamp", timestamp, self.signers.get("timestamp", self.online_keys[:1]))

    def snapshot(self):
        return self.files[f"metadata/{self.versions['snapshot']}.snapshot.json"]

    def refresh(self, now):
        """Signs the timestamp anew, and nothing else."""
        self.versions["timestamp"] += 1
        self.publish_timestamp(now + timedelta(days=14), self.snapshot())


class Attack:
    """One folder of fixtures."""

    def __init__(self, base, name, story):
        self.dir = base / name
        self.layers = {}
        self.document = {"story": story, "target": TRIPLE, "root": None, "steps": []}

    def show(self, name, what, over=()):
        """Keeps what `what` (a repository, or its files) has and the layers in `over` have not."""
        files = what.files if isinstance(what, Repository) else what
        below = {}
        for layer in over:
            below.update(self.layers[layer])
        new = {path: data for path, data in files.items() if below.get(path) != data}
        self.layers[name] = new
        for path, data in new.items():
            place = self.dir / name / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        if not self.document["root"]:
            self.document["root"] = f"{name}/metadata/1.root.json"

    def step(self, what, at, show, expect, **more):
        step = {"what": what, "at": at.strftime("%Y-%m-%dT%H:%M:%SZ"), "show": show, **more, "expect": expect}
        self.document["steps"].append(step)

    def takes(self, what, at, show, head, **more):
        self.step(what, at, show, {"head": head}, **more)

    def refuses(self, what, at, show, words, hint, trouble="untrusted", **more):
        self.step(what, at, show, {"refused": words, "hint": hint, "trouble": trouble}, **more)

    def write(self):
        text = json.dumps(self.document, indent=2, ensure_ascii=False) + "\n"
        (self.dir / "attack.json").write_text(text)


def vendor(**options):
    """A vendor who has released 1.0.0."""
    repository = Repository(**options)
    repository.release("1.0.0", day(0))
    repository.publish(day(0))
    return repository


def second(repository, now=day(2)):
    """The same, who has released 1.1.0 since."""
    newer = repository.copy()
    newer.release("1.1.0", now)
    newer.publish(now)
    return newer


