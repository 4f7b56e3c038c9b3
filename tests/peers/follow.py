#!/usr/bin/env python3
# Follows TUF repositories with python-tuf's own client, and says what it found.
#
#   follow.py < QUESTIONS > ANSWERS
#
# A question: {"root": FILE, "metadata": URL, "targets": URL, "keep": FOLDER, "ask": [PATH, …]}; `keep` is where the client
# keeps its metadata, and goes on from. An answer: {"versions": {…}, "found": {PATH: SHA-256 in hex, or null}, "refused":
# {PATH: why}} or {"error": why}.
import hashlib
import json
import sys
import tempfile
from pathlib import Path

from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.ngclient import Updater


def follow(question):
    keep = Path(question["keep"])
    bootstrap = None if (keep / "root.json").exists() else Path(question["root"]).read_bytes()
    keep.mkdir(parents=True, exist_ok=True)
    answer = {"found": {}, "refused": {}}
    with tempfile.TemporaryDirectory() as downloads:
        try:
            updater = Updater(
                metadata_dir=str(keep),
                metadata_base_url=question["metadata"] + "/",
                target_dir=downloads,
                target_base_url=question["targets"] + "/",
                bootstrap=bootstrap,
            )
            updater.refresh()
        except (RepositoryError, DownloadError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
        for path in question["ask"]:
            try:
                target = updater.get_targetinfo(path)
                if target is None:
                    answer["found"][path] = None
                else:
                    data = Path(updater.download_target(target, f"{downloads}/file")).read_bytes()
                    answer["found"][path] = hashlib.sha256(data).hexdigest()
                    Path(f"{downloads}/file").unlink()
            except (RepositoryError, DownloadError) as error:
                answer["refused"][path] = f"{type(error).__name__}: {error}"
    version = lambda role: json.loads((keep / f"{role}.json").read_text())["signed"]["version"]
    answer["versions"] = {role: version(role) for role in ("root", "timestamp", "snapshot", "targets")}
    return answer


print(json.dumps([follow(question) for question in json.load(sys.stdin)]))
