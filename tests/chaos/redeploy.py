"""Deploys a service anew over a running one: `python -m chaos.redeploy GCS_ADDRESS SERVE_YAML`."""

import sys

import ray
from ray import serve

from serve.app import NAME, build_app

if __name__ == "__main__":
    address, path = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level="error")
    serve.run(build_app({"config": path}), name=NAME, route_prefix="/")
