#!/usr/bin/env python3
# Makes the fixtures beside it: for each attack a folder with attack.json and the files that a server shows meanwhile.
#
#   make.py [FOLDER]     writes every attack below FOLDER (this one, if none is given)
#
# Needs python-tuf and cryptography, which `scripts/setup test` installs: target/tools/bin/judges-python make.py.
# It gives the same bytes each time; the test suite checks that what is committed is what it makes.
import json
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import vendor as v
from vendor import HIGHEST, OTHER_TRIPLE, TRIPLE, Attack, Repository, artifact, day, minisign, second, sha256
from vendor import vendor as new_vendor

BASE = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent

# What an operator reads, whatever else is said: who it may be, and what to do.
NOT_THE_VENDORS = ["the signatures are not the vendor's", "may be compromised", "ask the vendor before you do anything"]
TOO_FEW = ["too few of the vendor's keys", "may be stolen", "ask the vendor before you do anything"]
OLDER = ["a mirror is out of date", "on purpose", "nothing was changed", "ask the vendor"]
EXPIRED = ["the vendor has not renewed it", "holds newer releases back", "check the clock", "goes on running"]
REPLACED = ["damaged or replaced on the way", "thrown away", "may be compromised", "tell the vendor"]
NOT_WRITTEN = ["did not write", "may be compromised", "nothing was changed", "ask the vendor"]
SECOND_LOCK = ["second lock", "may be stolen", "thrown away", "ask the vendor before you do anything"]
TOO_MUCH = ["more than", "may be compromised"]
TOO_SLOW = ["too slow", "keeps the line busy", "nothing was changed", "update.releases"]
WITHHELD = ["withholds", "update.releases", "nothing was changed"]
NOT_THIS_CHANNEL = ["not this channel's", "update.channel", "tell the vendor", "nothing was changed"]

ATTACKS = []


def attack(story):
    """Registers an attack: its folder is named as the function."""

    def register(function):
        ATTACKS.append((function.__name__.replace("_", "-"), story, function))
        return function

    return register


def two_releases(a):
    """The layers `vendor` (1.0.0) and `newer` (1.1.0), which every honest server shows."""
    first = new_vendor()
    newer = second(first)
    a.show("vendor", first)
    a.show("newer", newer, ["vendor"])
    a.takes("the machine is installed", day(1), ["vendor"], "1.0.0")
    return first, newer


HONEST = ["vendor", "newer"]


@attack("a mirror replaces the bytes of a release by its own")
def arbitrary_software_by_a_mirror(a):
    first, newer = two_releases(a)
    real = artifact("1.1.0")
    place = newer.place(f"1.1.0/picket-1.1.0-{TRIPLE}.zip", real)
    a.show("as-long", {place: real.replace(b"echo", b"evil")}, HONEST)
    a.show("longer", {place: real + b"and more"}, HONEST)
    a.show("shorter", {place: real[:100]}, HONEST)
    words = ["the bytes are not the ones that the vendor signed", "SHA-256"]
    a.refuses("other bytes of the same length", day(3), HONEST + ["as-long"], words, REPLACED)
    a.refuses("more bytes", day(3), HONEST + ["longer"], [f"more than the {len(real)} bytes allowed"], TOO_MUCH)
    words = ["the download broke off", f"after 100 of {len(real)} bytes"]
    a.refuses("fewer bytes", day(3), HONEST + ["shorter"], words, ["next attempt"], "network")
    a.takes("an honest server", day(3), HONEST, "1.1.0")


@attack("a hub serves a whole repository of its own, signed by its own keys")
def arbitrary_software_by_a_hub(a):
    first, newer = two_releases(a)
    keys = {"root": ("hub-1", "hub-2"), "targets": ("hub-3",)}
    hub = Repository(**keys)
    hub.online_keys, hub.minisign = ["hub-4"], "hub-5"
    hub.files, hub.versions["root"] = {}, 0
    hub.new_root(day(0))
    hub.release("9.9.9", day(2))
    hub.versions.update(targets=9, snapshot=9, timestamp=9)
    hub.publish(day(2))
    metadata = dict(hub.files)
    root = metadata.pop("metadata/1.root.json")
    a.show("hub", metadata, HONEST)
    words = ["timestamp metadata is refused", "threshold not met", "0/1"]
    a.refuses("the hub's releases under the vendor's root", day(3), HONEST + ["hub"], words, NOT_THE_VENDORS)
    # The hub's first root, as the vendor's second.
    hub.versions["root"] = 1
    hub.last_root_keys = ["hub-1", "hub-2"]
    hub.new_root(day(2))
    a.show("hub-root", {"metadata/2.root.json": hub.files["metadata/2.root.json"]}, HONEST + ["hub"])
    words = ["root metadata is refused", "threshold not met", "0/2"]
    a.refuses("and a root of its own", day(3), HONEST + ["hub", "hub-root"], words, NOT_THE_VENDORS)
    a.takes("an honest server", day(3), HONEST, "1.1.0")


@attack("a mirror shows an older timestamp, and with it an older release")
def rollback_of_the_timestamp(a):
    two_releases(a)
    a.takes("the machine has seen 1.1.0", day(3), HONEST, "1.1.0")
    words = ["timestamp metadata is refused", "rollback detected for timestamp", "trusted version 2", "1"]
    a.refuses("the server as it was before", day(4), ["vendor"], words, OLDER)
    a.takes("an honest server", day(4), HONEST, "1.1.0")


@attack("whoever stole the online key signs a new timestamp for an old snapshot")
def rollback_of_the_snapshot(a):
    first, newer = two_releases(a)
    a.takes("the machine has seen 1.1.0", day(3), HONEST, "1.1.0")
    thief = first.copy()
    thief.versions["timestamp"] = 5
    thief.refresh(day(3))
    a.show("thief", {"metadata/timestamp.json": thief.files["metadata/timestamp.json"]}, HONEST)
    words = ["timestamp metadata is refused", "rollback detected for snapshot", "trusted version 2"]
    a.refuses("a newer timestamp for the first snapshot", day(4), HONEST + ["thief"], words, OLDER)
    a.takes("an honest server", day(4), HONEST, "1.1.0")


@attack("whoever stole the online key signs a new snapshot that lists old targets")
def rollback_of_the_targets(a):
    first, newer = two_releases(a)
    a.takes("the machine has seen 1.1.0", day(3), HONEST, "1.1.0")
    thief = newer.copy()
    thief.versions.update(targets=1, snapshot=3, timestamp=3)
    thief.publish_online({role: day(20) for role in ("snapshot", "timestamp")})
    a.show("thief", thief, HONEST)
    words = ["snapshot metadata is refused", "targets.json", "2", "1"]
    a.refuses("a newer snapshot of the first targets", day(4), HONEST + ["thief"], words, OLDER)
    vendor = newer.copy()
    vendor.versions.update(timestamp=3)
    vendor.publish(day(5))
    a.show("vendor-next", vendor, HONEST + ["thief"])
    a.takes("the vendor's next publication", day(5), HONEST + ["thief", "vendor-next"], "1.1.0")


@attack("a mirror shows the same old release for ever, while the vendor has newer ones")
def indefinite_freeze(a):
    two_releases(a)
    a.takes("nothing new is shown, which may be true", day(10), ["vendor"], "1.0.0")
    words = ["timestamp metadata is refused", "timestamp metadata expired at 2026-01-15T00:00:00Z"]
    a.refuses("still nothing new after two weeks", day(15), ["vendor"], words, EXPIRED)
    a.refuses("nor after a month", day(31), ["vendor"], words, EXPIRED)
    a.takes("an honest server", day(15), HONEST, "1.1.0")


@attack("whoever stole the online key runs the versions up, so that nothing of the vendor's is newer")
def fast_forward_and_recovery(a):
    first, newer = two_releases(a)
    thief = first.copy()
    thief.versions["timestamp"] = HIGHEST - 1
    thief.refresh(day(1))
    a.show("timestamp", {"metadata/timestamp.json": thief.files["metadata/timestamp.json"]}, ["vendor"])
    a.takes("a timestamp of the highest version", day(2), ["vendor", "timestamp"], "1.0.0")
    words = ["timestamp metadata is refused", "rollback detected", str(HIGHEST)]
    a.refuses("the vendor's next release", day(3), HONEST, words, [*OLDER, "a new root sets them right"])
    # The way out: the vendor's next root names another online key.
    healed = newer.copy()
    healed.online_keys = ["online-2"]
    healed.new_root(day(4))
    healed.publish(day(4))
    a.show("new-root", healed, HONEST)
    a.takes("a root with another online key", day(5), [*HONEST, "new-root"], "1.1.0")
    words = ["timestamp metadata is refused", "threshold not met", "0/1"]
    a.refuses("the thief again", day(6), [*HONEST, "new-root", "timestamp"], words, NOT_THE_VENDORS)


@attack("whoever stole the online key has a snapshot promise targets that nobody can ever sign")
def fast_forward_of_the_snapshot_and_recovery(a):
    first, newer = two_releases(a)
    thief = first.copy()
    thief.versions.update(targets=HIGHEST, snapshot=HIGHEST, timestamp=HIGHEST)
    thief.publish_online({role: day(20) for role in ("snapshot", "timestamp")})
    a.show("thief", thief, ["vendor"])
    words = [f"has no {HIGHEST}.targets.json"]
    a.refuses("a snapshot of targets that do not exist", day(2), ["vendor", "thief"], words, WITHHELD, "network")
    words = ["timestamp metadata is refused", "rollback detected", str(HIGHEST)]
    a.refuses("the vendor's next release", day(3), HONEST, words, [*OLDER, "a new root sets them right"])
    healed = newer.copy()
    healed.online_keys = ["online-2"]
    healed.new_root(day(4))
    healed.publish(day(4))
    a.show("new-root", healed, HONEST)
    a.takes("a root with another online key", day(5), [*HONEST, "new-root"], "1.1.0")


@attack("a mirror puts files together that the vendor never published together")
def mix_and_match(a):
    first, newer = two_releases(a)
    a.show("old-snapshot", {"metadata/2.snapshot.json": first.files["metadata/1.snapshot.json"]}, HONEST)
    words = ["snapshot metadata is refused", "integrity check failed", "snapshot.json"]
    a.refuses("an old snapshot under the new one's name", day(3), [*HONEST, "old-snapshot"], words, NOT_WRITTEN)
    old = first.files["metadata/1.targets.json"]
    a.show("old-targets", {"metadata/2.targets.json": old}, HONEST)
    words = ["targets metadata is refused", "targets.json version 1 does not match snapshot pin 2"]
    a.refuses("old targets under the new ones' name", day(3), [*HONEST, "old-targets"], words, NOT_WRITTEN)
    place = newer.place(f"1.1.0/picket-1.1.0-{TRIPLE}.zip", artifact("1.1.0"))
    a.show("old-release", {place: artifact("1.0.0")}, HONEST)
    words = ["the bytes are not the ones that the vendor signed"]
    a.refuses("an old release under the new one's name", day(3), [*HONEST, "old-release"], words, REPLACED)
    a.takes("an honest server", day(3), HONEST, "1.1.0")


@attack("a vendor's keys sign two products, and one of them is served for the other")
def wrong_product(a):
    first, newer = two_releases(a)
    other = first.copy()
    other.release("1.1.0", day(2), product="badger")
    other.publish(day(2))
    a.show("channel", other, ["vendor"])
    words = ["the channel document is refused", 'about "badger", not "picket"']
    a.refuses("the channel of the other product", day(3), ["vendor", "channel"], words, NOT_THIS_CHANNEL)
    other = first.copy()
    other.versions.update(targets=2, snapshot=2, timestamp=2)
    data = artifact("1.1.0", product="badger")
    other.release("1.1.0", day(2), data=data, comment=f"badger 1.1.0 {TRIPLE} {sha256(data)}")
    other.publish(day(2))
    a.show("artifact", other, ["vendor"])
    words = ["the minisign signature is refused", f"it is for \"badger 1.1.0 {TRIPLE} {sha256(data)}\"", "not for"]
    a.refuses("a build of the other product", day(3), ["vendor", "artifact"], words, SECOND_LOCK)
    vendor = other.copy()
    vendor.versions.update(targets=5, snapshot=5, timestamp=5)
    vendor.release("1.1.0", day(2))
    vendor.publish(day(2))
    a.show("vendor-next", vendor, ["vendor"])
    a.takes("the vendor's next publication", day(3), ["vendor", "vendor-next"], "1.1.0")


@attack("a build for another kind of machine is served for this one's")
def wrong_target_triple(a):
    first, newer = two_releases(a)
    path = f"1.1.0/picket-1.1.0-{TRIPLE}.zip"
    data = artifact("1.1.0", OTHER_TRIPLE)
    a.show("mirror", {newer.place(path, artifact("1.1.0")): data}, HONEST)
    words = ["bytes allowed"]
    a.refuses("by a mirror", day(3), [*HONEST, "mirror"], words, TOO_MUCH)
    thief = first.copy()
    thief.versions.update(targets=2, snapshot=2, timestamp=2)
    thief.release("1.1.0", day(2), data=data, comment=f"picket 1.1.0 {OTHER_TRIPLE} {sha256(data)}")
    thief.publish(day(2))
    a.show("thief", thief, HONEST)
    words = ["the minisign signature is refused", f"it is for \"picket 1.1.0 {OTHER_TRIPLE}", f"not for \"picket 1.1.0 {TRIPLE}"]
    a.refuses("by whoever stole the targets and the online key", day(3), [*HONEST, "thief"], words, SECOND_LOCK)
    vendor = newer.copy()
    vendor.versions.update(targets=3, snapshot=3, timestamp=3)
    vendor.publish(day(4))
    a.show("vendor-next", vendor, [*HONEST, "thief"])
    a.takes("the vendor's next publication", day(4), [*HONEST, "thief", "vendor-next"], "1.1.0")


@attack("a server never stops sending")
def endless_data(a):
    first, newer = two_releases(a)
    rooted = newer.copy()
    rooted.new_root(day(2))
    a.show("root", {"metadata/2.root.json": rooted.files["metadata/2.root.json"]}, HONEST)
    limits = {
        "2.root.json": 512_000,
        "timestamp.json": 16_384,
        "2.snapshot.json": 2_000_000,
        "2.targets.json": 5_000_000,
    }
    show = [*HONEST, "root"]
    for name, limit in limits.items():
        server = [{"file": name, "trailing": limit}]
        words = [f"more than the {limit} bytes allowed"]
        a.refuses(name, day(3), show, words, [*TOO_MUCH, "broken off"], "network", server=server)
    for name, limit in [(".stable.json", None), (".minisig", 4096)]:
        server = [{"file": name, "trailing": 5000}]
        words = ["bytes allowed"] if limit is None else [f"more than the {limit} bytes allowed"]
        a.refuses(name, day(3), show, words, [*TOO_MUCH, "broken off"], "network", server=server)
    length = len(artifact("1.1.0"))
    server = [{"file": f"{TRIPLE}.zip", "trailing": 2000}]
    a.refuses("the release", day(3), show, [f"more than the {length} bytes allowed"], TOO_MUCH, server=server)
    a.takes("an honest server", day(3), show, "1.1.0")


@attack("a server sends a little and then keeps the line open without a word")
def slow_retrieval(a):
    first = new_vendor()
    newer = first.copy()
    # Longer than its signature, which is served under nearly the same name.
    newer.release("1.1.0", day(2), data=artifact("1.1.0") + b"\0" * 4096)
    newer.publish(day(2))
    a.show("vendor", first)
    a.show("newer", newer, ["vendor"])
    a.takes("the machine is installed", day(1), ["vendor"], "1.0.0")
    for name in ["timestamp.json", "2.targets.json"]:
        server = [{"file": name, "stall": 100}]
        a.refuses(name, day(3), HONEST, ["timed out"], TOO_SLOW, "network", server=server)
    server = [{"file": f"{TRIPLE}.zip", "stall": 2000}]
    words = ["the download broke off; what has arrived is kept", "timed out"]
    a.refuses("the release", day(3), HONEST, words, ["next attempt"], "network", server=server)
    a.takes("an honest server", day(3), HONEST, "1.1.0")


@attack("somebody has one of the two targets keys that a release needs, and the online key")
def one_key_stolen(a):
    first = new_vendor(targets=("targets-1", "targets-2", "targets-3"), threshold=2)
    a.show("vendor", first)
    a.takes("the machine is installed", day(1), ["vendor"], "1.0.0")
    thief = first.copy()
    thief.signers["targets"] = ["targets-2"]
    thief.release("6.6.6", day(2), minisign_by="thief")
    thief.publish(day(2))
    a.show("thief", thief, ["vendor"])
    words = ["targets metadata is refused", "threshold not met for role targets", "1/2"]
    a.refuses("a release signed with the one key", day(3), ["vendor", "thief"], words, TOO_FEW)
    thief.signers["targets"] = ["targets-2", "thief"]
    thief.publish(day(2))
    a.show("thief-and-own", thief, ["vendor"])
    a.refuses("and with a key of the thief's own", day(3), ["vendor", "thief-and-own"], words, TOO_FEW)
    # The vendor rotates the stolen keys out.
    vendor = second(first, day(4))
    vendor.versions.update(timestamp=7, snapshot=7, targets=7)
    vendor.targets_keys, vendor.online_keys = ["targets-1", "targets-3"], ["online-2"]
    vendor.new_root(day(4))
    vendor.publish(day(4))
    a.show("vendor-next", vendor, ["vendor"])
    a.takes("the vendor's next root names other keys", day(5), ["vendor", "vendor-next"], "1.1.0")


@attack("metadata comes with fewer signatures than its role needs, or with none")
def threshold_not_met(a):
    first, newer = two_releases(a)
    one = newer.copy()
    one.new_root(day(2), by=["root-1"])
    a.show("root", {"metadata/2.root.json": one.files["metadata/2.root.json"]}, HONEST)
    words = ["root metadata is refused", "threshold not met for role root", "1/2"]
    a.refuses("a root with one of two signatures", day(3), [*HONEST, "root"], words, TOO_FEW)
    for number, role in enumerate(["timestamp", "snapshot", "targets"], start=1):
        bad = newer.copy()
        bad.versions.update(targets=number, snapshot=number, timestamp=number)
        bad.signers[role] = ["stranger"]
        bad.publish(day(2))
        a.show(role, bad, HONEST)
        words = [f"{role} metadata is refused", f"threshold not met for role {role}", "0/1"]
        a.refuses(f"{role} with a stranger's signature", day(3), [*HONEST, role], words, NOT_THE_VENDORS)
    unsigned = json.loads(newer.files["metadata/timestamp.json"])
    unsigned["signatures"] = []
    a.show("unsigned", {"metadata/timestamp.json": json.dumps(unsigned, indent=1).encode()}, HONEST)
    words = ["timestamp metadata is refused", "threshold not met for role timestamp", "0/1"]
    a.refuses("a timestamp without any", day(3), [*HONEST, "unsigned"], words, NOT_THE_VENDORS)
    vendor = newer.copy()
    vendor.versions.update(targets=5, snapshot=5, timestamp=5)
    vendor.publish(day(4))
    a.show("vendor-next", vendor, HONEST)
    a.takes("the vendor's next publication", day(4), [*HONEST, "vendor-next"], "1.1.0")


@attack("whoever stole one key has it count as two")
def duplicate_key_ids(a):
    first = new_vendor(targets=("targets-1", "targets-2"), threshold=2)
    newer = second(first)
    a.show("vendor", first)
    a.show("newer", newer, ["vendor"])
    a.takes("the machine is installed", day(1), ["vendor"], "1.0.0")
    once = json.loads(newer.files["metadata/2.targets.json"])
    signature = next(s for s in once["signatures"] if s["keyid"] == v.public("targets-2").keyid)
    once["signatures"] = [signature, signature]
    a.show("twice", {"metadata/2.targets.json": json.dumps(once, indent=1).encode()}, HONEST)
    words = ["targets metadata is refused", "duplicate signature key id", "for role targets"]
    hint = ["one key would count more than once", "may be stolen", "ask the vendor before you do anything"]
    a.refuses("the same signature twice", day(3), [*HONEST, "twice"], words, hint)

    # A root that names it twice: the holders of the root keys were talked into it.
    def name_twice(root):
        alias = "f" * 64
        key = root.keys[v.public("targets-2").keyid]
        root.keys[alias] = type(key)(alias, key.keytype, key.scheme, key.keyval)
        root.roles["targets"].keyids.append(alias)

    aliased = newer.copy()
    aliased.new_root(day(2), change=name_twice)
    a.show("alias", {"metadata/2.root.json": aliased.files["metadata/2.root.json"]}, HONEST)
    words = ["root metadata is refused", "it counts one key twice for targets"]
    a.refuses("one key under two ids", day(3), [*HONEST, "alias"], words, NOT_WRITTEN)
    a.takes("an honest server", day(3), HONEST, "1.1.0")


@attack("the vendor replaces its root keys, and whoever has the old ones goes on signing")
def key_rotation_root(a):
    first, newer = two_releases(a)
    rotated = newer.copy()
    rotated.root_keys = ["root-4", "root-5", "root-6"]
    rotated.new_root(day(2))
    a.show("rotated", {"metadata/2.root.json": rotated.files["metadata/2.root.json"]}, HONEST)
    show = [*HONEST, "rotated"]
    a.takes("a root of the old keys and the new", day(3), show, "1.1.0")
    rotated.refresh(day(4))
    a.show("refreshed", rotated, show)
    show = [*show, "refreshed"]
    old = rotated.copy()
    old.root_keys = ["root-1", "root-2", "root-3"]
    old.new_root(day(4), by=["root-1", "root-2"])
    a.show("old-keys", {"metadata/3.root.json": old.files["metadata/3.root.json"]}, show)
    words = ["root metadata is refused", "threshold not met for role root", "0/2"]
    a.refuses("a root of the old keys alone", day(5), [*show, "old-keys"], words, NOT_THE_VENDORS)
    a.takes("an honest server", day(5), show, "1.1.0")


@attack("the vendor replaces its targets key, and whoever has the old one and the online key goes on releasing")
def key_rotation_targets(a):
    first, newer = two_releases(a)
    rotated = newer.copy()
    rotated.targets_keys = ["targets-2"]
    rotated.new_root(day(2))
    rotated.publish(day(2))
    a.show("rotated", rotated, HONEST)
    show = [*HONEST, "rotated"]
    a.takes("a root with the new key", day(3), show, "1.1.0")
    thief = rotated.copy()
    thief.signers["targets"] = ["targets-1"]
    thief.release("6.6.6", day(4), minisign_by="thief")
    thief.publish(day(4))
    a.show("thief", thief, show)
    words = ["targets metadata is refused", "threshold not met for role targets", "0/1"]
    a.refuses("a release of the old key", day(5), [*show, "thief"], words, NOT_THE_VENDORS)
    vendor = rotated.copy()
    vendor.versions.update(targets=5, snapshot=5, timestamp=5)
    vendor.publish(day(5))
    a.show("vendor-next", vendor, [*show, "thief"])
    a.takes("the vendor's next publication", day(5), [*show, "thief", "vendor-next"], "1.1.0")


@attack("the vendor replaces its online key, and whoever has the old one goes on saying what is newest")
def key_rotation_online(a):
    first, newer = two_releases(a)
    rotated = newer.copy()
    rotated.online_keys = ["online-2"]
    rotated.new_root(day(2))
    rotated.publish(day(2))
    a.show("rotated", rotated, HONEST)
    show = [*HONEST, "rotated"]
    a.takes("a root with the new key", day(3), show, "1.1.0")
    thief = rotated.copy()
    thief.signers = {"snapshot": ["online-1"], "timestamp": ["online-1"]}
    thief.publish(day(4))
    a.show("thief", thief, show)
    words = ["timestamp metadata is refused", "threshold not met for role timestamp", "0/1"]
    a.refuses("a timestamp of the old key", day(5), [*show, "thief"], words, NOT_THE_VENDORS)
    a.takes("an honest server", day(5), show, "1.1.0")


@attack("a machine was off while every key was replaced four times, and a mirror withholds roots from it")
def skipped_roots(a):
    first, newer = two_releases(a)
    rotated = newer.copy()
    for number in range(2, 6):
        rotated.root_keys = [f"root-{number}{letter}" for letter in "abc"]
        rotated.targets_keys, rotated.online_keys = [f"targets-{number}"], [f"online-{number}"]
        rotated.new_root(day(number))
    rotated.publish(day(6))
    a.show("rotated", rotated, HONEST)
    show = [*HONEST, "rotated"]
    jump = rotated.files["metadata/5.root.json"]
    a.show("jump", {"metadata/2.root.json": jump}, show)
    words = ["root metadata is refused", "root version must increment by one", "trusted 1, got 5"]
    a.refuses("the fifth root for the second", day(7), [*show, "jump"], words, NOT_WRITTEN)
    words = ["timestamp metadata is refused", "threshold not met for role timestamp", "0/1"]
    withheld = ["metadata/4.root.json"]
    a.refuses("the fourth root withheld", day(7), show, words, NOT_THE_VENDORS, without=withheld)
    a.takes("all of them, one by one", day(7), show, "1.1.0")


@attack("somebody has one of the two root keys that a root needs")
def compromised_root(a):
    first, newer = two_releases(a)
    thief = newer.copy()
    thief.root_keys, thief.targets_keys, thief.online_keys = ["root-1", "thief-1"], ["thief-2"], ["thief-3"]
    thief.minisign = "thief-4"
    thief.new_root(day(2), by=["root-1", "thief-1"])
    thief.release("6.6.6", day(2))
    thief.publish(day(2))
    a.show("thief", thief, HONEST)
    words = ["root metadata is refused", "threshold not met for role root", "1/2"]
    a.refuses("a root of the thief's keys", day(3), [*HONEST, "thief"], words, TOO_FEW)
    rotated = newer.copy()
    rotated.root_keys = ["root-2", "root-3", "root-4"]
    rotated.last_root_keys = ["root-2", "root-3"]
    rotated.new_root(day(4))
    a.show("rotated", {"metadata/2.root.json": rotated.files["metadata/2.root.json"]}, HONEST)
    show = [*HONEST, "rotated"]
    a.takes("the vendor rotates the stolen key out", day(5), show, "1.1.0")
    rotated.refresh(day(5))
    a.show("refreshed", rotated, show)
    show = [*show, "refreshed"]
    thief.versions["root"] = 2
    thief.new_root(day(4), by=["root-1", "thief-1"])
    a.show("thief-again", {"metadata/3.root.json": thief.files["metadata/3.root.json"]}, show)
    words = ["root metadata is refused", "threshold not met for role root", "0/2"]
    a.refuses("the thief's next root", day(6), [*show, "thief-again"], words, NOT_THE_VENDORS)


@attack("a mirror shows a channel document that the vendor signed before, or for another channel")
def replayed_channel_document(a):
    first, newer = two_releases(a)

    def document(repository):
        target = repository.targets["channel/stable.json"]
        return f"targets/channel/{target.hashes['sha256']}.stable.json"

    old = first.files[document(first)]
    a.show("replayed", {document(newer): old}, HONEST)
    words = ["channel/stable.json", "the bytes are not the ones that the vendor signed"]
    a.refuses("the first document for the second", day(3), [*HONEST, "replayed"], words, REPLACED)
    padded = old + b" " * (len(newer.files[document(newer)]) - len(old))
    a.show("padded", {document(newer): padded}, HONEST)
    a.refuses("the same, as long as the second", day(3), [*HONEST, "padded"], [*words, "SHA-256"], REPLACED)
    beta = newer.copy()
    beta.channel("1.1.0", name="beta")
    beta.publish(day(2), targets=3, snapshot=3, timestamp=3)
    a.show("beta", beta, HONEST)
    words = ["the channel document is refused", 'asked for channel "stable"', 'of channel "beta"']
    a.refuses("another channel's", day(3), [*HONEST, "beta"], words, NOT_THIS_CHANNEL)
    vendor = newer.copy()
    vendor.publish(day(4), targets=4, snapshot=4, timestamp=4)
    a.show("vendor-next", vendor, [*HONEST, "beta"])
    a.takes("the vendor's next publication", day(4), [*HONEST, "beta", "vendor-next"], "1.1.0")


@attack("the vendor's metadata runs out, one role after the other, and is renewed")
def expired_metadata(a):
    first, newer = two_releases(a)
    short = {"timestamp": 14, "snapshot": 30, "targets": 180}
    shown = list(HONEST)
    layers = []
    for role, at, next_at in [("timestamp", 17, 17), ("snapshot", 33, 40), ("targets", 183, 190), ("root", 366, 367)]:
        # Everything but this role is renewed in time.
        late = newer.copy()
        number = 3 + 2 * len(layers)
        late.versions.update({name: number - 1 for name in short})
        days = {name: (at - 2 - 1 if name == role else 400) for name in short}
        late.publish(day(2), days=days)
        a.show(f"late-{role}", late, [*HONEST, *layers])
        layers.append(f"late-{role}")
        expires = (day(2) + timedelta(days=days.get(role, 0))) if role in short else day(365)
        words = [f"{role} metadata is refused", f"{role} metadata expired at {expires:%Y-%m-%dT%H:%M:%SZ}"]
        a.refuses(f"the {role} has expired", day(at), [*HONEST, *layers], words, EXPIRED)
    healed = newer.copy()
    healed.versions.update(dict.fromkeys(short, 20))
    healed.new_root(day(366))
    healed.publish(day(366))
    a.show("renewed", healed, [*HONEST, *layers])
    a.takes("all of it is renewed", day(367), [*HONEST, *layers, "renewed"], "1.1.0")


@attack("a line or a mirror cuts metadata short")
def truncated_metadata(a):
    first, newer = two_releases(a)
    rooted = newer.copy()
    rooted.new_root(day(2))
    a.show("root", {"metadata/2.root.json": rooted.files["metadata/2.root.json"]}, HONEST)
    show = [*HONEST, "root"]
    names = {"root": "2.root.json", "timestamp": "timestamp.json", "snapshot": "2.snapshot.json", "targets": "2.targets.json"}
    for role, name in names.items():
        data = rooted.files[f"metadata/{name}"]
        a.show(f"half-{role}", {f"metadata/{name}": data[: len(data) // 2]}, show)
        words = [f"{role} metadata is refused"]
        a.refuses(f"half a {role}", day(3), [*show, f"half-{role}"], words, NOT_WRITTEN)
        a.show(f"no-{role}", {f"metadata/{name}": b""}, show)
        a.refuses(f"nothing of the {role}", day(3), [*show, f"no-{role}"], words, NOT_WRITTEN)
    a.takes("an honest server", day(3), show, "1.1.0")


@attack("a mirror writes the same metadata in other bytes")
def re_serialised_metadata(a):
    first, newer = two_releases(a)

    def again(name):
        return {f"metadata/{name}": json.dumps(json.loads(newer.files[f"metadata/{name}"])).encode()}

    a.show("snapshot", again("2.snapshot.json"), HONEST)
    words = ["snapshot metadata is refused", "integrity check failed", "snapshot.json"]
    a.refuses("the snapshot, whose hash is pinned", day(3), [*HONEST, "snapshot"], words, NOT_WRITTEN)
    changed = json.loads(newer.files["metadata/timestamp.json"])
    changed["signed"]["expires"] = "2036-01-01T00:00:00Z"
    a.show("changed", {"metadata/timestamp.json": json.dumps(changed).encode()}, HONEST)
    words = ["timestamp metadata is refused", "threshold not met", "0/1"]
    a.refuses("the timestamp, with a word changed", day(3), [*HONEST, "changed"], words, NOT_THE_VENDORS)
    a.show("timestamp", again("timestamp.json"), HONEST)
    a.takes("the timestamp, which says the same", day(3), [*HONEST, "timestamp"], "1.1.0")


@attack("somebody signs the release with another minisign key, or the right key's signature of something else is shown")
def minisign_key_swapped(a):
    first, newer = two_releases(a)
    data = artifact("1.1.0")
    path = f"1.1.0/picket-1.1.0-{TRIPLE}.zip"
    place = newer.place(path, data) + ".minisig"
    comment = f"picket 1.1.0 {TRIPLE} {sha256(data)}"
    a.show("stranger", {place: minisign("stranger", data, comment)}, HONEST)
    words = ["the minisign signature is refused", "made by a key that the release root does not name"]
    a.refuses("a stranger's key", day(3), [*HONEST, "stranger"], words, SECOND_LOCK)
    old = first.files[first.place(f"1.0.0/picket-1.0.0-{TRIPLE}.zip", artifact("1.0.0")) + ".minisig"]
    a.show("other-file", {place: old}, HONEST)
    words = ["the minisign signature is refused"]
    a.refuses("the signature of 1.0.0", day(3), [*HONEST, "other-file"], words, SECOND_LOCK)
    real = newer.files[place]
    a.show("comment", {place: real.replace(b"picket 1.1.0", b"picket 9.9.9")}, HONEST)
    a.refuses("the trusted comment changed", day(3), [*HONEST, "comment"], words, SECOND_LOCK)
    a.show("no-lines", {place: b"not a signature\n"}, HONEST)
    a.refuses("no signature at all", day(3), [*HONEST, "no-lines"], words, SECOND_LOCK)
    words = [f"has no minisign signature of {path}"]
    a.refuses("no file", day(3), HONEST, words, WITHHELD, "network", without=[place])
    # Whoever stole the targets and the online key cannot name another minisign key: that is the root's to do.
    thief = first.copy()
    thief.versions.update(targets=2, snapshot=2, timestamp=2)
    thief.release("1.1.0", day(2), minisign_by="thief")
    thief.publish(day(2))
    a.show("thief", thief, HONEST)
    words = ["the minisign signature is refused", "made by a key that the release root does not name"]
    a.refuses("the thief of the targets key", day(3), [*HONEST, "thief"], words, SECOND_LOCK)
    vendor = first.copy()
    vendor.versions.update(targets=3, snapshot=3, timestamp=3)
    vendor.minisign = "minisign-2"
    vendor.new_root(day(4))
    vendor.release("1.1.0", day(4))
    vendor.publish(day(4))
    a.show("vendor-next", vendor, [*HONEST, "thief"])
    a.takes("a root that names another key", day(5), [*HONEST, "thief", "vendor-next"], "1.1.0")


CLOCK = ["clock", "timedatectl", "whatever the vendor signs next is taken", "goes on running"]


@attack("somebody turns the machine's clock back, so that what has expired looks fresh again")
def clock_turned_back(a):
    two_releases(a)
    words = ["timestamp metadata is refused", "timestamp metadata expired at 2026-01-15T00:00:00Z"]
    a.refuses("a mirror withholds the news for too long", day(20), ["vendor"], words, EXPIRED)
    words = ["timestamp metadata is refused", "it expired at 2026-01-15T00:00:00Z", "clock now says 2026-01-06T00:00:00Z"]
    a.refuses("and the clock goes back two weeks", day(5), ["vendor"], words, ["turned the clock back", *CLOCK])
    a.takes("what the vendor signed since, by the same clock", day(5), HONEST, "1.1.0")


@attack("the machine's clock runs ahead for a while: a flat battery, or somebody who would have updates stop for ever")
def clock_turned_forward(a):
    two_releases(a)
    words = ["timestamp metadata is refused", "timestamp metadata expired at 2026-01-15T00:00:00Z"]
    a.refuses("the clock is three months ahead", day(100), ["vendor"], words, EXPIRED)
    words = ["timestamp metadata is refused", "it expired at 2026-01-15T00:00:00Z", "clock now says 2026-01-04T00:00:00Z"]
    a.refuses("the clock is right, the timestamp the same", day(3), ["vendor"], words, ["wrong before", *CLOCK])
    a.takes("what the vendor signed since", day(3), HONEST, "1.1.0")
    words = ["root metadata is refused", "root metadata expired at 2027-01-01T00:00:00Z"]
    a.refuses("the clock is ten years ahead", day(3650), HONEST, words, EXPIRED)
    a.takes("the clock is right again", day(4), HONEST, "1.1.0")


def main():
    for name, story, build in ATTACKS:
        shutil.rmtree(BASE / name, ignore_errors=True)
        (BASE / name).mkdir(parents=True)
        made = Attack(BASE, name, story)
        build(made)
        made.write()


if __name__ == "__main__":
    main()
