"Clients as people write them for AWS, unchanged: the SDK's defaults, boto3's waiters, the CLI."
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from ftnb.rehearsal import client
from ftnb.rehearsal.server import BUCKET, ROLE, rehearsal

pytest.importorskip("sagemaker")
ACCOUNT, GROUP = "123456789012", "/aws/sagemaker/TrainingJobs"
ROLE_ARN = f"arn:aws:iam::{ACCOUNT}:role/{ROLE}"


def image(region="us-east-1", name="pytorch-training:2.10.0-cpu-py312"):
    "One of Amazon's images for deep learning."
    return f"763104351884.dkr.ecr.{region}.amazonaws.com/{name}"


@pytest.fixture(scope="module")
def aws():
    "One rehearsal for all of them; this process's clients use it."
    with rehearsal(stop_notice=.3) as running, client.connected(running.endpoint): yield running


@pytest.fixture
def code(tmp_path):
    "A folder for a job's code: code('train.py', text)."
    folder = tmp_path/"code"
    folder.mkdir()

    def write(name, text):
        (folder/name).write_text(text)
        return str(folder)
    return write


def request(name, command, region="us-east-1", bucket=BUCKET, **more):
    "A request for a job that runs a command of bash, as tutorials for boto3 write it."
    return {"TrainingJobName": name, "RoleArn": ROLE_ARN,
            "AlgorithmSpecification": {
                "TrainingImage": image(region), "TrainingInputMode": "File",
                "ContainerEntrypoint": ["bash", "-c"], "ContainerArguments": [command],
                "MetricDefinitions": [{"Name": "loss", "Regex": "loss=([0-9.]+)"}]},
            "OutputDataConfig": {"S3OutputPath": f"s3://{bucket}/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1,
                               "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 600}, **more}


def ended(sagemaker, name):
    "A job's description when it's over."
    waiter = sagemaker.get_waiter("training_job_completed_or_stopped")
    waiter.wait(TrainingJobName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    return sagemaker.describe_training_job(TrainingJobName=name)


def member(packed, name):
    "What a file in a job's model.tar.gz says."
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        inside = archive.extractfile(name)
        assert inside
        return inside.read()


# the SageMaker SDK

TRAIN = """
import argparse, json, os
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
parser.add_argument("--train", default=os.environ["SM_CHANNEL_TRAIN"])
parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
told = parser.parse_args()
names = sorted(os.listdir(told.train))
print("reads", names, "on", os.environ["SM_CURRENT_HOST"])
with open(os.path.join(told.model_dir, "told.json"), "w") as f:
    json.dump([told.epochs, names, json.loads(os.environ["SM_HPS"])], f)
"""


def test_a_trainer_with_nothing_but_defaults(aws, code, tmp_path):
    from sagemaker.core.helper.session_helper import Session, get_execution_role
    from sagemaker.core.s3 import S3Downloader
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import InputData, SourceCode
    session = Session()
    assert (session.default_bucket(), get_execution_role()) == (BUCKET, ROLE_ARN)
    (tmp_path/"a.csv").write_text("1,2")
    where = session.upload_data(str(tmp_path/"a.csv"), key_prefix="defaults")
    source = SourceCode(source_dir=code("train.py", TRAIN), entry_script="train.py")
    trainer = ModelTrainer(training_image=image(), source_code=source,
                           hyperparameters={"epochs": 2})
    trainer.train([InputData(channel_name="train", data_source=where)])   # waits, shows logs
    job = trainer._latest_training_job
    assert job.training_job_status == "Completed"
    packed = S3Downloader.read_bytes(job.model_artifacts.s3_model_artifacts)
    assert json.loads(member(packed, "told.json")) == [2, ["a.csv"], {"epochs": 2}]


def test_the_sdks_resources(aws):
    from sagemaker.core.resources import TrainingJob
    from sagemaker.core.shapes import (
        AlgorithmSpecification,
        OutputDataConfig,
        ResourceConfig,
        StoppingCondition,
    )

    def create(name, *command):
        return TrainingJob.create(
            training_job_name=name, role_arn=ROLE_ARN,
            algorithm_specification=AlgorithmSpecification(
                training_image=image(), training_input_mode="File",
                container_entrypoint=list(command)),
            output_data_config=OutputDataConfig(s3_output_path=f"s3://{BUCKET}/out"),
            resource_config=ResourceConfig(instance_type="ml.m5.large", instance_count=1,
                                           volume_size_in_gb=1),
            stopping_condition=StoppingCondition(max_runtime_in_seconds=600))
    short, long = create("resource-short", "true"), create("resource-long", "sleep", "100")
    assert {job.training_job_name for job in TrainingJob.get_all(name_contains="resource-")} == {
        "resource-short", "resource-long"}
    short.wait(poll=1)
    long.stop()
    long.wait(poll=1)
    states = [TrainingJob.get(job.training_job_name).training_job_status for job in (short, long)]
    assert states == ["Completed", "Stopped"]
    short.delete()
    with pytest.raises(ClientError, match="Requested resource not found"):
        TrainingJob.get("resource-short")


@pytest.mark.slow
def test_a_failure_reaches_the_caller(aws, code):
    from sagemaker.core.utils.exceptions import FailedStatusError
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import SourceCode
    source = SourceCode(source_dir=code("bad.py", "raise ValueError('boom')"),
                        entry_script="bad.py")
    trainer = ModelTrainer(training_image=image(), source_code=source, base_job_name="bad")
    trainer.train(wait=False)
    with pytest.raises(FailedStatusError, match="AlgorithmError(.|\n)*bad.py"):
        trainer._latest_training_job.wait(poll=1)
    builtin = ModelTrainer(training_image=image(name="linear-learner:1"), base_job_name="builtin")
    builtin.train(wait=False)
    with pytest.raises(FailedStatusError, match="the rehearsal has no images"):
        builtin._latest_training_job.wait(poll=1)


PREPARE = """
import sys
lines = open("/opt/ml/processing/input/rows.csv").read().split()
for name, part in (("train", lines[:7]), ("test", lines[7:])):
    with open(f"/opt/ml/processing/{name}/{name}.csv", "w") as f: f.write(" ".join(part))
print("split", len(lines), *sys.argv[1:])
"""


def test_a_script_processor(aws, code):
    from sagemaker.core.processing import ScriptProcessor
    from sagemaker.core.resources import ProcessingJob
    from sagemaker.core.s3 import S3Downloader, S3Uploader
    from sagemaker.core.shapes import (
        ProcessingInput,
        ProcessingOutput,
        ProcessingS3Input,
        ProcessingS3Output,
    )
    rows = S3Uploader.upload_string_as_file_body("\n".join("0123456789"),
                                                 f"s3://{BUCKET}/rows/rows.csv")
    given = ProcessingInput(input_name="rows", s3_input=ProcessingS3Input(
        s3_uri=rows, local_path="/opt/ml/processing/input", s3_data_type="S3Prefix",
        s3_input_mode="File"))
    outputs = [ProcessingOutput(output_name=name, s3_output=ProcessingS3Output(
        s3_uri=f"s3://{BUCKET}/split/{name}", local_path=f"/opt/ml/processing/{name}",
        s3_upload_mode="EndOfJob")) for name in ("train", "test")]
    processor = ScriptProcessor(image_uri=image(), role=ROLE_ARN, instance_type="ml.m5.xlarge",
                                instance_count=1, command=["python3"], base_job_name="split")
    script = str(Path(code("prepare.py", PREPARE))/"prepare.py")
    processor.run(code=script, inputs=[given], outputs=outputs, arguments=["--seed", "1"],
                  wait=False)
    job = processor.latest_job
    job.wait(poll=1)
    assert job.refresh().processing_job_status == "Completed"
    assert [S3Downloader.read_file(f"s3://{BUCKET}/split/{name}/{name}.csv")
            for name in ("train", "test")] == ["0 1 2 3 4 5 6", "7 8 9"]
    assert job.processing_job_name in [one.processing_job_name for one in ProcessingJob.get_all()]


ATTEMPT = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--batch-size", type=int)
told = parser.parse_args()
print(f"Test set: Average loss: {told.lr + told.batch_size / 1000:.4f}")
"""


def test_a_tuner(aws, code):
    from sagemaker.core.parameter import CategoricalParameter, ContinuousParameter
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import SourceCode
    from sagemaker.train.tuner import HyperparameterTuner
    source = SourceCode(source_dir=code("attempt.py", ATTEMPT), entry_script="attempt.py")
    tuner = HyperparameterTuner(
        ModelTrainer(training_image=image(), source_code=source, base_job_name="attempt"),
        objective_metric_name="loss", objective_type="Minimize", max_jobs=3, max_parallel_jobs=2,
        hyperparameter_ranges={"lr": ContinuousParameter(.001, .1),
                               "batch-size": CategoricalParameter([32, 64])},
        metric_definitions=[{"Name": "loss", "Regex": "Average loss: ([0-9.]+)"}])
    tuner.tune(wait=False)
    tuner.latest_tuning_job.wait(poll=1)
    found = tuner.analytics().dataframe()
    best = found.sort_values("FinalObjectiveValue").iloc[0]
    assert len(found) == 3 and tuner.best_training_job() == best["TrainingJobName"]
    assert best["FinalObjectiveValue"] == pytest.approx(best["lr"] + best["batch-size"] / 1000,
                                                        abs=1e-4)


def test_files_go_up_and_come_down(aws, tmp_path):
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.s3 import S3Downloader, S3Uploader
    folder = tmp_path/"up"
    (folder/"deep").mkdir(parents=True)
    for name in ("a.txt", "deep/ü b.txt"): (folder/name).write_text(name)
    session, kept = Session(), ["files/a.txt", "files/deep/ü b.txt"]
    assert session.upload_data(str(folder), key_prefix="files") == f"s3://{BUCKET}/files"
    assert session.list_s3_files(BUCKET, "files") == kept
    S3Uploader.upload(str(folder), f"s3://{BUCKET}/again")
    assert S3Downloader.list(f"s3://{BUCKET}/files") == [f"s3://{BUCKET}/{key}" for key in kept]
    for to, download in ((tmp_path/"one", lambda to: session.download_data(to, BUCKET, "files")),
                         (tmp_path/"two", lambda to: S3Downloader.download(
                             f"s3://{BUCKET}/again", to))):
        download(str(to))
        assert (to/"deep"/"ü b.txt").read_text() == "deep/ü b.txt"


# boto3

def test_waiters_pages_logs_and_metrics(aws):
    sagemaker, logs = boto3.client("sagemaker"), boto3.client("logs")
    lines = "for i in 1 2 3; do echo step $i loss=0.$i; done"
    for i in range(3): sagemaker.create_training_job(**request(f"paged-{i}", lines))
    told = [ended(sagemaker, f"paged-{i}") for i in range(3)][0]
    assert told["FinalMetricDataList"][0]["Value"] == .3
    pages = [*sagemaker.get_paginator("list_training_jobs").paginate(
        NameContains="paged-", SortBy="CreationTime", SortOrder="Ascending",
        PaginationConfig={"PageSize": 2})]
    assert [[job["TrainingJobName"] for job in page["TrainingJobSummaries"]] for page in pages] == [
        ["paged-0", "paged-1"], ["paged-2"]]
    stream, = logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix="paged-0/")[
        "logStreams"]
    events: list[str] = []
    token: dict[str, str] = {}
    while True:                                    # as the documentation says: until it repeats
        page = logs.get_log_events(logGroupName=GROUP, logStreamName=stream["logStreamName"],
                                   startFromHead=True, limit=2, **token)
        if page["nextForwardToken"] == token.get("nextToken"): break
        events += [event["message"] for event in page["events"]]
        token = {"nextToken": page["nextForwardToken"]}
    assert events == [f"step {i} loss=0.{i}" for i in (1, 2, 3)]
    points = boto3.client("cloudwatch").get_metric_statistics(
        Namespace=GROUP, MetricName="loss", Period=3600, Statistics=["Maximum"],
        Dimensions=[{"Name": "TrainingJobName", "Value": "paged-0"}],
        StartTime=told["CreationTime"].replace(year=told["CreationTime"].year - 1),
        EndTime=told["CreationTime"].replace(year=told["CreationTime"].year + 1))["Datapoints"]
    assert [point["Maximum"] for point in points] == [.3]


def test_an_error_has_a_class(aws):
    sagemaker = boto3.client("sagemaker")
    sagemaker.create_training_job(**request("twice", "true"))
    with pytest.raises(sagemaker.exceptions.ResourceInUse, match="must be unique"):
        sagemaker.create_training_job(**request("twice", "true"))
    assert ended(sagemaker, "twice")["TrainingJobStatus"] == "Completed"
    with pytest.raises(ClientError, match="in status Completed"):
        sagemaker.stop_training_job(TrainingJobName="twice")


def test_another_region(aws):
    region = "us-west-2"
    session = boto3.Session(region_name=region)
    sagemaker, s3 = session.client("sagemaker"), session.client("s3")
    bucket = f"sagemaker-{region}-{ACCOUNT}"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": region})
    made = sagemaker.create_training_job(
        **request("west", "echo $AWS_REGION > /opt/ml/model/region", region, bucket))
    assert made["TrainingJobArn"] == f"arn:aws:sagemaker:{region}:{ACCOUNT}:training-job/west"
    key = ended(sagemaker, "west")["ModelArtifacts"]["S3ModelArtifacts"].partition(f"{bucket}/")[2]
    packed = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    assert member(packed, "region") == b"us-west-2\n"
    with pytest.raises(ClientError, match="Requested resource not found"):
        boto3.client("sagemaker").describe_training_job(TrainingJobName="west")
    with pytest.raises(ClientError, match="valid <region>.<dns-suffix>: 'us-west-2.amazonaws"):
        sagemaker.create_training_job(**request("lost", "true", "us-east-1", bucket))


@pytest.mark.parametrize("operation, arguments", [
    ("create_endpoint", {"EndpointName": "e", "EndpointConfigName": "c"}),
    ("create_transform_job", {
        "TransformJobName": "t", "ModelName": "m", "TransformInput": {"DataSource": {
            "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/k"}}},
        "TransformOutput": {"S3OutputPath": "s3://b/o"},
        "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1}}),
    ("start_pipeline_execution", {"PipelineName": "p"}),
    ("describe_hub_content", {"HubName": "h", "HubContentType": "Model", "HubContentName": "m"}),
])
def test_what_is_not_rehearsed_is_refused(aws, operation, arguments):
    with pytest.raises(ClientError, match="UnsupportedOperationException.*rehearsal"):
        getattr(boto3.client("sagemaker"), operation)(**arguments)


# the AWS CLI

def cli(aws, *words, check=True):
    "What the AWS CLI prints; its errors when it may fail."
    program = shutil.which("aws", path=str(Path(sys.executable).parent)) or shutil.which("aws")
    if not program: pytest.skip("no AWS CLI")
    done = client.run([program, *words], aws.endpoint, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout if check else done.stderr


def test_the_cli(aws, tmp_path):
    wanted = tmp_path/"job.json"
    wanted.write_text(json.dumps(request("by-cli", "echo from the command line")))
    cli(aws, "sagemaker", "create-training-job", "--cli-input-json", f"file://{wanted}")
    name = "--training-job-name", "by-cli"
    ended(boto3.client("sagemaker"), "by-cli")   # the CLI looks only once a minute
    cli(aws, "sagemaker", "wait", "training-job-completed-or-stopped", *name)
    status = cli(aws, "sagemaker", "describe-training-job", *name, "--query", "TrainingJobStatus")
    assert json.loads(status) == "Completed"
    said = cli(aws, "logs", "filter-log-events", "--log-group-name", GROUP,
               "--log-stream-name-prefix", "by-cli/", "--query", "events[].message")
    assert json.loads(said) == ["from the command line"]
    assert "Requested resource not found" in cli(
        aws, "sagemaker", "describe-training-job", "--training-job-name", "none", check=False)
