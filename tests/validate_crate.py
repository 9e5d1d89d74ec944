"""Runs the public RO-Crate validator without a network; stands in an environment of its own.

    python validate_crate.py REQUIRED|RECOMMENDED CACHE FOLDER…

prints {folder: [{severity, check, message, entity}]}. The validator wants one document from the
web, the RO-Crate 1.1 context. The library rocrate 0.14.0 carries it (CC0), so it is put into the
validator's HTTP cache, and the validator is told to stay offline.
"""
import json
import sys
from importlib.resources import files
from io import BytesIO

import requests
from requests.adapters import HTTPAdapter
from rocrate_validator import services
from rocrate_validator.models import Severity
from rocrate_validator.utils.http import HttpRequester
from urllib3 import HTTPResponse

CONTEXT = "https://w3id.org/ro/crate/1.1/context"
PROFILE = "provenance-run-crate"


class Carried(HTTPAdapter):
    "Answers for the web with the context that rocrate carries, and with nothing else."

    def send(self, request, **options):  # type: ignore[override]
        if request.url != CONTEXT: raise requests.ConnectionError(f"offline: {request.url}")
        body = BytesIO((files("rocrate")/"data"/"ro-crate.jsonld").read_bytes())
        raw = HTTPResponse(body, {"Content-Type": "application/ld+json"}, 200,
                           preload_content=False, request_url=request.url)
        return self.build_response(request, raw)


def warm(cache: str) -> None:
    "Put the context into the validator's cache."
    requester = HttpRequester.initialize_cache(cache_path=cache)
    requester.session.mount("https://", Carried())
    context = requester.get(CONTEXT).json()
    assert context["@id"] == CONTEXT, context["@id"]


def issues(folder: str, severity: str, cache: str) -> list[dict]:
    "What the validator finds, of this severity and worse."
    found = services.validate({
        "rocrate_uri": folder, "profile_identifier": PROFILE, "offline": True, "cache_path": cache,
        "requirement_severity": Severity[severity]})
    return [{"severity": i.severity.name, "check": i.check.identifier, "message": i.message,
             "entity": i.violatingEntity} for i in found.get_issues()]


if __name__ == "__main__":
    severity, cache, *folders = sys.argv[1:]
    warm(cache)
    print(json.dumps({folder: issues(folder, severity, cache) for folder in folders}))
