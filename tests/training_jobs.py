"A rehearsal for tests of training jobs, with what they all need."
import io
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from ftnb.rehearsal.records import Record
from ftnb.rehearsal.server import rehearsal

BUCKET = "sagemaker-us-east-1-123456789012"
ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-cpu-py313"
KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}


class Jobs:
    "What tests do with training jobs."

    def __init__(self, running):
        self.rehearsal, self.parts = running, running.parts["training"]
        self.sm, self.s3, self.logs = (self.client(n) for n in ("sagemaker", "s3", "logs"))

    def client(self, service: str, region: str = "us-east-1"):
        return boto3.client(service, endpoint_url=self.rehearsal.endpoint, region_name=region,
                            config=Config(retries={"total_max_attempts": 1}), **KEYS)

    def put(self, key: str, body: str | bytes) -> str:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        return f"s3://{BUCKET}/{key}"

    def get(self, key: str) -> bytes:
        return self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def keys(self, prefix: str) -> list[str]:
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [o["Key"].removeprefix(prefix) for o in found]

    def members(self, key: str) -> dict[str, bytes]:
        "The files of an archive in S3."
        with tarfile.open(fileobj=io.BytesIO(self.get(key))) as tar:
            return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore

    def create(self, name: str, script: str = "", *, python: bool = True, instances: int = 1,
               **more: Any) -> Record:
        code = channel("code", self.put(f"code/{name}/main", script))
        specification = {"TrainingImage": IMAGE, "TrainingInputMode": "File",
                         "ContainerEntrypoint": ["python" if python else "/bin/bash"],
                         "ContainerArguments": ["/opt/ml/input/data/code/main"]}
        request = {
            "TrainingJobName": name, "RoleArn": ROLE,
            "AlgorithmSpecification": specification | more.pop("specification", {}),
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": instances,
                               "VolumeSizeInGB": 30} | more.pop("resources", {}),
            "InputDataConfig": [code, *more.pop("channels", [])],
            "StoppingCondition": {"MaxRuntimeInSeconds": 300}, **more}
        self.sm.create_training_job(**request)
        return self.parts.record(name)

    def run(self, name: str, script: str = "", **more: Any) -> dict[str, Any]:
        "Create a job and wait for its end; its description."
        record = self.create(name, script, **more)
        assert record.ended.wait(90), f"{name} doesn't end: {record.transitions}"
        return self.describe(name)

    def describe(self, name: str) -> dict[str, Any]:
        return self.sm.describe_training_job(TrainingJobName=name)

    def lines(self, name: str) -> dict[str, list[str]]:
        "The log by instance."
        group = "/aws/sagemaker/TrainingJobs"
        try:
            streams = self.logs.describe_log_streams(logGroupName=group,
                                                     logStreamNamePrefix=f"{name}/")["logStreams"]
        except self.logs.exceptions.ResourceNotFoundException: return {}
        return {s["logStreamName"].removeprefix(f"{name}/"): [e["message"] for e in
                self.logs.get_log_events(logGroupName=group, logStreamName=s["logStreamName"],
                                         startFromHead=True)["events"]] for s in streams}

    def printed(self, name: str) -> list[str]:
        return [line for lines in self.lines(name).values() for line in lines]

    def until(self, true, seconds: float = 30) -> Any:
        "Wait until something is so."
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := true(): return found
            time.sleep(0.05)
        raise AssertionError("it never was so")

    def until_printed(self, name: str, line: str) -> None:
        self.until(lambda: any(line in printed for printed in self.printed(name)))


@contextmanager
def training_jobs(folder: Path | None = None, **options: Any) -> Iterator[Jobs]:
    "A rehearsal with short notices."
    given = {"spot_notice": 1.0, "stop_notice": 1.0, "wait": 0.05} | options
    with rehearsal(folder, **given) as running: yield Jobs(running)


def channel(name: str, uri: str, mode: str = "File", **source: Any) -> dict[str, Any]:
    "An entry of InputDataConfig."
    made = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "InputMode": mode,
            "DataSource": {"S3DataSource": made | source}}


def statuses(description: dict[str, Any]) -> list[str]:
    return [t["Status"] for t in description["SecondaryStatusTransitions"]]
