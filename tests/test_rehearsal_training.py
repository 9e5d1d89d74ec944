"Training jobs on the rehearsal: they run, fail, stop and tell as SageMaker's do."
import json
import threading
import time
from pathlib import Path

import psutil
import pytest
from botocore.exceptions import ClientError
from training_jobs import BUCKET, IMAGE, ROLE, channel, statuses, training_jobs

from ftnb.rehearsal import life
from ftnb.rehearsal.faults import Rule
from ftnb.rehearsal.training import TrainingJobs


@pytest.fixture(scope="module")
def jobs():
    with training_jobs() as found: yield found


def refused(call, code: str, text: str = "") -> None:
    with pytest.raises(ClientError) as e: call()
    assert e.value.response["Error"]["Code"] == code, e.value
    assert text in e.value.response["Error"]["Message"]


def still_run() -> list[psutil.Process]:
    "Processes that this one has started, and theirs."
    return [p for p in psutil.Process().children(recursive=True)
            if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


SAVES = """
import os
print('hello')
os.makedirs('/opt/ml/model/sub')
open('/opt/ml/model/sub/weights.bin', 'w').write('w' * 1000)
open('/opt/ml/output/data/metrics.json', 'w').write('{}')
"""


def test_closing_ends_everything_and_a_restart_remembers(tmp_path):   # before `jobs` is used
    with training_jobs(tmp_path/"first") as jobs:
        jobs.run("done", SAVES)
        jobs.create("runs-on", "import subprocess, time\nprint('ready')\n"
                               "subprocess.Popen(['sleep', '600'])\ntime.sleep(600)")
        jobs.until_printed("runs-on", "ready")
        assert any("sleep" in p.name() for p in still_run())
        state = json.loads(json.dumps(jobs.parts.state()))
    assert not still_run()
    assert not [t for t in threading.enumerate() if t.name in ("done", "runs-on")]
    with training_jobs(tmp_path/"second") as jobs:
        jobs.parts.restore(state)
        assert jobs.describe("done")["ModelArtifacts"]["S3ModelArtifacts"].endswith("model.tar.gz")
        told = jobs.describe("runs-on")
        assert told["TrainingJobStatus"] == "Failed"
        assert "the rehearsal was stopped" in told["FailureReason"]
        assert isinstance(jobs.parts, TrainingJobs) and len(jobs.parts.table()) == 2
        assert {Path(row["log"]).name for row in jobs.parts.table()} == {"algo-1.log"}


def test_a_job_runs_and_leaves_its_outputs(jobs):
    told = jobs.run("runs", SAVES)
    assert told["TrainingJobStatus"] == "Completed"
    assert statuses(told) == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert jobs.printed("runs") == ["hello"]
    artifact = told["ModelArtifacts"]["S3ModelArtifacts"]
    assert artifact == f"s3://{BUCKET}/out/runs/output/model.tar.gz"
    assert jobs.members("out/runs/output/model.tar.gz") == {"sub/weights.bin": b"w" * 1000}
    assert jobs.members("out/runs/output/output.tar.gz") == {"metrics.json": b"{}"}
    assert told["TrainingStartTime"] <= told["TrainingEndTime"] <= told["LastModifiedTime"]
    assert told["BillableTimeInSeconds"] == told["TrainingTimeInSeconds"] >= 1


def test_the_same_code_makes_the_same_bytes(jobs):
    for name in ("once", "twice"): jobs.run(name, SAVES)
    assert jobs.get("out/once/output/model.tar.gz") == jobs.get("out/twice/output/model.tar.gz")


def test_nothing_of_a_job_stays_on_the_machine_but_its_log(jobs):
    jobs.run("leaves", SAVES)
    folder = jobs.rehearsal.context.folder/"jobs"/"training"/"leaves"
    assert [p.name for p in folder.iterdir()] == ["algo-1.log"]
    assert not still_run()


@pytest.mark.parametrize(("script", "reason"), [
    ("raise SystemExit(3)", "AlgorithmError: , exit code: 3"),
    ("open('/opt/ml/output/failure', 'w').write('the loss is NaN'); raise SystemExit(1)",
     "AlgorithmError: the loss is NaN, exit code: 1"),
    ("import subprocess, sys\n"
     "sys.exit(128 - subprocess.run(['sh', '-c', 'kill -9 $$']).returncode)",
     "AlgorithmError: , exit code: 137"),
], ids=["code", "text", "killed"])
def test_a_failure_says_why(jobs, script, reason, request):
    told = jobs.run(f"fails-{request.node.callspec.id}", script)
    assert (told["TrainingJobStatus"], told["FailureReason"]) == ("Failed", reason)
    assert "ModelArtifacts" not in told and statuses(told)[-1] == "Failed"


def test_a_long_reason_is_cut_before_its_code(jobs):
    told = jobs.run("long", "open('/opt/ml/output/failure', 'w').write('x' * 9999); exit(1)")
    assert len(told["FailureReason"]) == 1024 and told["FailureReason"].endswith("exit code: 1")


def test_a_program_that_is_not_there(jobs):
    told = jobs.run("missing", specification={"ContainerEntrypoint": ["/no/such/program"],
                                              "ContainerArguments": ["-x"]})
    assert told["TrainingJobStatus"] == "Failed"
    assert "127" in told["FailureReason"] or "no/such" in told["FailureReason"]


def test_what_is_printed_is_there_while_the_job_runs(jobs):
    jobs.create("live", "import time\nprint('early')\ntime.sleep(60)")
    jobs.until_printed("live", "early")
    assert jobs.describe("live")["SecondaryStatus"] == "Training"
    jobs.sm.stop_training_job(TrainingJobName="live")
    assert jobs.parts.record("live").ended.wait(30)


def test_a_stop_lets_a_job_save_its_model(jobs):
    script = """
import signal, sys, time
def stop(*_):
    open('/opt/ml/model/saved', 'w').write('at the last moment')
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print('ready')
time.sleep(60)
"""
    record = jobs.create("stops", script)
    jobs.until_printed("stops", "ready")
    jobs.sm.stop_training_job(TrainingJobName="stops")
    assert jobs.describe("stops")["TrainingJobStatus"] in ("Stopping", "Stopped")
    assert record.ended.wait(30)
    told = jobs.describe("stops")
    assert (told["TrainingJobStatus"], told["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert statuses(told)[-3:] == ["Stopping", "Uploading", "Stopped"]
    assert jobs.members("out/stops/output/model.tar.gz") == {"saved": b"at the last moment"}
    refused(lambda: jobs.sm.stop_training_job(TrainingJobName="stops"), "ValidationException",
            "The request was rejected because the training job is in status Stopped")


def test_what_ignores_a_stop_is_ended_after_the_notice(jobs):
    record = jobs.create("deaf", "echo ready; sleep 60", python=False)
    jobs.until_printed("deaf", "ready")
    start = time.monotonic()
    jobs.sm.stop_training_job(TrainingJobName="deaf")
    assert record.ended.wait(30) and time.monotonic() - start >= 1.0
    assert record.status == "Stopped" and not still_run()


def test_a_job_that_runs_too_long_is_ended_and_keeps_what_it_has(jobs):
    script = "open('/opt/ml/model/so-far', 'w').write('x')\nimport time\ntime.sleep(60)"
    told = jobs.run("long-run", script, StoppingCondition={"MaxRuntimeInSeconds": 3})
    assert told["TrainingJobStatus"] == "Stopped"
    assert told["SecondaryStatus"] == "MaxRuntimeExceeded"
    assert jobs.members("out/long-run/output/model.tar.gz") == {"so-far": b"x"}
    assert "FailureReason" not in told


def test_metrics_are_found_by_the_jobs_own_expressions(jobs):
    script = "for i in range(4): print(f'epoch {i} loss={1 / (i + 1)} acc=0.{i}')"
    definitions = [{"Name": "loss", "Regex": "loss=([0-9.]+)"},
                   {"Name": "train:acc", "Regex": "acc=([0-9.]+)"},
                   {"Name": "none", "Regex": "nothing=(.*)"}]
    told = jobs.run("metrics", script, specification={"MetricDefinitions": definitions})
    final = {m["MetricName"]: m["Value"] for m in told["FinalMetricDataList"]}
    assert final == {"loss": 0.25, "train:acc": pytest.approx(0.3)}
    record = jobs.parts.record("metrics")
    assert [v for _, v in record.metrics_so_far["loss"]] == [1, 0.5, 1 / 3, 0.25]
    found = jobs.client("cloudwatch").get_metric_statistics(
        Namespace="/aws/sagemaker/TrainingJobs", MetricName="loss", Period=86400,
        Dimensions=[{"Name": "TrainingJobName", "Value": "metrics"}],
        StartTime=time.time() - 86400, EndTime=time.time() + 60, Statistics=["SampleCount"])
    assert sum(p["SampleCount"] for p in found["Datapoints"]) == 4


def test_an_endless_expression_holds_nothing_up(jobs):
    told = jobs.run("endless", "print('a' * 60 + '!')\nprint('loss=1')", specification={
        "MetricDefinitions": [{"Name": "bad", "Regex": "(a|aa)+b?$"},
                              {"Name": "loss", "Regex": "loss=(.*)"}]})
    assert [m["MetricName"] for m in told["FinalMetricDataList"]] == ["loss"]
    assert any("bad takes too long" in line for line in jobs.printed("endless"))


def test_all_instances_run_together_and_end_together(jobs):
    script = """
import json, os, sys, time
config = json.load(open('/opt/ml/input/config/resourceconfig.json'))
print(config['current_host'], config['hosts'])
open('/opt/ml/model/' + config['current_host'], 'w').write('x')
open('/opt/ml/model/both', 'w').write(config['current_host'])
"""
    assert jobs.run("two", script, instances=2)["TrainingJobStatus"] == "Completed"
    assert jobs.members("out/two/output/model.tar.gz") == {
        "algo-1": b"x", "algo-2": b"x", "both": b"algo-1"}
    assert {name[:6]: lines for name, lines in jobs.lines("two").items()} == {
        f"algo-{i}": [f"algo-{i} ['algo-1', 'algo-2']"] for i in (1, 2)}
    start = time.monotonic()
    told = jobs.run("one-fails", "import os, time\nif os.environ['CURRENT_HOST'] == 'algo-2': "
                                 "exit(5)\ntime.sleep(60)", instances=2)
    assert told["FailureReason"] == "AlgorithmError: , exit code: 5"
    assert time.monotonic() - start < 45 and not still_run()


def test_a_name_is_taken_once_however_many_ask(jobs):
    answers: list[str] = []

    def ask():
        try:
            jobs.create("wanted", "print('x')")
            answers.append("made")
        except ClientError as e: answers.append(e.response["Error"]["Code"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert sorted(answers) == ["ResourceInUse"] * 7 + ["made"]
    refused(lambda: jobs.create("wanted", "print('x')"), "ResourceInUse",
            "Training job names must be unique within an AWS account and region, and a training "
            "job with this name already exists (arn:aws:sagemaker:us-east-1:")
    assert jobs.printed("wanted") in ([], ["x"])


def test_unknown_jobs(jobs):
    for operation in (jobs.sm.describe_training_job, jobs.sm.stop_training_job,
                      jobs.sm.delete_training_job, jobs.sm.update_training_job):
        refused(lambda operation=operation: operation(TrainingJobName="nobody"),
                "ValidationException", "Requested resource not found.")


def test_regions_are_apart(jobs):
    jobs.run("here", "print('x')")
    there = jobs.client("sagemaker", "eu-west-1")
    refused(lambda: there.describe_training_job(TrainingJobName="here"), "ValidationException")
    assert there.list_training_jobs()["TrainingJobSummaries"] == []


def test_lists_pages_and_waiters(jobs):
    for i in range(3): jobs.create(f"listed-{i}", "print('x')" if i else "raise SystemExit(1)")
    waiter = jobs.sm.get_waiter("training_job_completed_or_stopped")
    for i in (1, 2):
        waiter.wait(TrainingJobName=f"listed-{i}", WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    pages = jobs.sm.get_paginator("list_training_jobs").paginate(
        NameContains="listed", SortBy="Name", SortOrder="Descending",
        PaginationConfig={"PageSize": 2})
    found = [[s["TrainingJobName"] for s in page["TrainingJobSummaries"]] for page in pages]
    assert found == [["listed-2", "listed-1"], ["listed-0"]]
    jobs.parts.record("listed-0").ended.wait(30)
    failed = jobs.sm.list_training_jobs(StatusEquals="Failed", NameContains="listed")
    assert [s["TrainingJobName"] for s in failed["TrainingJobSummaries"]] == ["listed-0"]
    refused(lambda: jobs.sm.list_training_jobs(NextToken="no token"), "ValidationException")


def test_faults_of_jobs(jobs):
    faults = jobs.rehearsal.context.faults
    faults.add(Rule("no-room-*", "capacity"))
    faults.add(Rule("hangs", "hang"))
    told = jobs.run("no-room-1", "print('x')")
    assert told["FailureReason"].startswith("CapacityError: Unable to provision requested ML "
                                            "compute capacity")
    assert "BillableTimeInSeconds" not in told and "TrainingStartTime" not in told
    assert jobs.run("no-room-2", "print('x')")["TrainingJobStatus"] == "Completed"
    told = jobs.run("hangs", "print('x')", StoppingCondition={"MaxRuntimeInSeconds": 2})
    assert told["SecondaryStatus"] == "MaxRuntimeExceeded" and jobs.printed("hangs") == []
    faults.clear()


def test_an_internal_error_is_retried_as_often_as_asked(jobs, monkeypatch):
    real, failures = life.equip_all, [RuntimeError("ours"), RuntimeError("ours")]

    def sometimes(job):
        if job.record.name.startswith("retried") and failures: raise failures.pop()
        return real(job)

    monkeypatch.setattr(life, "equip_all", sometimes)
    told = jobs.run("retried", "print('x')", RetryStrategy={"MaximumRetryAttempts": 1})
    assert told["FailureReason"].startswith("InternalServerError: We encountered an internal")
    failures.append(RuntimeError("ours"))
    told = jobs.run("retried-again", "print('x')", RetryStrategy={"MaximumRetryAttempts": 1})
    assert told["TrainingJobStatus"] == "Completed" and "Restarting" in statuses(told)


def test_a_framework_image_runs_the_program_that_its_toolkit_would(jobs, tmp_path):
    import tarfile
    (tmp_path/"train.py").write_text("import os, sys\nprint(sys.argv[1:], os.environ['SM_HP_LR'])\n"
                                     "print(os.listdir(os.environ['SM_CHANNEL_TRAIN']))\n")
    (tmp_path/"fail.sh").write_text("exit 4")
    with tarfile.open(tmp_path/"source.tar.gz", "w:gz") as tar:
        for name in ("train.py", "fail.sh"): tar.add(tmp_path/name, name)
    uri = jobs.put("source.tar.gz", (tmp_path/"source.tar.gz").read_bytes())
    jobs.put("toolkit/train/x.csv", "1")
    given = {"sagemaker_submit_directory": json.dumps(uri), "lr": "0.1"}

    def run(name, program):
        request = {"HyperParameters": {**given, "sagemaker_program": json.dumps(program)},
                   "InputDataConfig": [channel("train", f"s3://{BUCKET}/toolkit/train/")]}
        return create_without_entrypoint(jobs, name, request)

    assert run("toolkit", "train.py")["TrainingJobStatus"] == "Completed"
    assert jobs.printed("toolkit") == ["['--lr', '0.1'] 0.1", "['x.csv']"]
    reason = run("toolkit-fails", "fail.sh")["FailureReason"]
    assert reason == ('AlgorithmError: ExecuteUserScriptError:\nExitCode 4\nErrorMessage ""\n'
                      'Command "/bin/bash fail.sh --lr 0.1", exit code: 4')
    alone = create_without_entrypoint(jobs, "image-alone", {})
    assert "the rehearsal has no images" in alone["FailureReason"]


def create_without_entrypoint(jobs, name, more):
    jobs.sm.create_training_job(
        TrainingJobName=name, RoleArn=ROLE,
        AlgorithmSpecification={"TrainingImage": IMAGE, "TrainingInputMode": "File"},
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/out"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
        StoppingCondition={"MaxRuntimeInSeconds": 300}, **more)
    assert jobs.parts.record(name).ended.wait(60)
    return jobs.describe(name)


def test_warm_pools_are_kept_reused_updated_and_given_back(jobs):
    keep = {"KeepAlivePeriodInSeconds": 600}
    jobs.run("pool-1", "print('x')", resources=keep)
    assert jobs.describe("pool-1")["WarmPoolStatus"]["Status"] == "Available"
    refused(lambda: jobs.sm.delete_training_job(TrainingJobName="pool-1"), "ResourceInUse")
    jobs.run("pool-2", "print('x')", resources=keep)
    assert jobs.describe("pool-1")["WarmPoolStatus"]["ReusedByJob"] == "pool-2"
    jobs.sm.update_training_job(TrainingJobName="pool-2",
                                ResourceConfig={"KeepAlivePeriodInSeconds": 0})
    assert jobs.describe("pool-2")["WarmPoolStatus"]["Status"] == "Terminated"
    warm = jobs.sm.list_training_jobs(WarmPoolStatusEquals="Reused")["TrainingJobSummaries"]
    assert [s["TrainingJobName"] for s in warm] == ["pool-1"]
    jobs.sm.delete_training_job(TrainingJobName="pool-2")
    refused(lambda: jobs.describe("pool-2"), "ValidationException")
    jobs.run("pool-2", "print('x')")   # a deleted job's name is free


def test_tags(jobs):
    jobs.run("tagged", "print('x')", Tags=[{"Key": "team", "Value": "a"}])
    arn = jobs.describe("tagged")["TrainingJobArn"]
    jobs.sm.add_tags(ResourceArn=arn, Tags=[{"Key": "team", "Value": "b"},
                                            {"Key": "x", "Value": "1"}])
    jobs.sm.delete_tags(ResourceArn=arn, TagKeys=["x"])
    assert jobs.sm.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "b"}]


def test_events_reach_a_queue(jobs):
    sqs, events = jobs.client("sqs"), jobs.client("events")
    url = sqs.create_queue(QueueName="told")["QueueUrl"]
    asked = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    arn = asked["Attributes"]["QueueArn"]
    pattern = {"source": ["aws.sagemaker"], "detail-type": ["SageMaker Training Job State Change"],
               "detail": {"TrainingJobName": ["told"],
                          "TrainingJobStatus": ["Completed", "Failed"]}}
    events.put_rule(Name="ends", EventPattern=json.dumps(pattern))
    events.put_targets(Rule="ends", Targets=[{"Id": "queue", "Arn": arn}])
    jobs.run("told", "print('x')")
    [message] = jobs.until(lambda: sqs.receive_message(QueueUrl=url).get("Messages"))
    said = json.loads(message["Body"])["detail"]
    assert (said["TrainingJobName"], said["TrainingJobStatus"]) == ("told", "Completed")
    assert isinstance(said["CreationTime"], int)


def test_unsupported_parts_are_refused_not_left_out(jobs):
    jobs.put("piped/x", "1")
    refused(lambda: jobs.create("piped", "", channels=[
        channel("train", f"s3://{BUCKET}/piped/", "Pipe")]),
        "UnsupportedOperationException", "Pipe")
    refused(lambda: jobs.create("elsewhere", "", CheckpointConfig={
        "S3Uri": f"s3://{BUCKET}/c", "LocalPath": "/checkpoints"}),
        "UnsupportedOperationException", "LocalPath")
    refused(lambda: jobs.describe("piped"), "ValidationException")


def test_a_jobs_processes_know_their_job_and_nothing_of_the_server(jobs, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "of the user")
    script = """
import os
print(os.environ['TRAINING_JOB_NAME'], os.environ['FLAVOUR'], 'MY_SECRET' in os.environ)
import boto3
print(boto3.client('s3').list_buckets()['Buckets'][0]['Name'])
"""
    jobs.run("knows", script, Environment={"FLAVOUR": "vanilla"})
    assert jobs.printed("knows") == ["knows vanilla False", BUCKET]


@pytest.fixture
def sdk(jobs):
    "The SageMaker SDK, led to the rehearsal."
    from ftnb.rehearsal.client import connected
    with connected(jobs.rehearsal.endpoint):
        from sagemaker.core.training.configs import Compute, SourceCode
        from sagemaker.train import ModelTrainer

        def train(name, source, instances=1, distributed=None, **code):
            trainer = ModelTrainer(
                training_image=IMAGE, role=ROLE, base_job_name=name, distributed=distributed,
                source_code=SourceCode(source_dir=str(source), **code),
                compute=Compute(instance_type="ml.m5.xlarge", instance_count=instances))
            trainer.train(wait=False)
            job = trainer._latest_training_job
            assert jobs.parts.record(job.training_job_name).ended.wait(300)
            job.refresh()
            lines = jobs.printed(job.training_job_name)
            assert job.training_job_status == "Completed", (job.failure_reason, lines[-20:])
            return job, lines
        yield train


@pytest.mark.slow
def test_the_sdk_runs_an_entry_script_and_a_command(sdk, tmp_path):
    (tmp_path/"train.py").write_text("import os\n"
                                     "print('ran in', os.getcwd(), os.environ['SM_HOSTS'])")
    _, lines = sdk("script", tmp_path, entry_script="train.py")
    assert 'ran in /opt/ml/input/data/code ["algo-1"]' in lines
    _, lines = sdk("command", tmp_path, command="echo from a command; ls")
    assert "from a command" in lines and "train.py" in lines


@pytest.mark.slow
@pytest.mark.parametrize("instances", [1, 2])
def test_torchrun_through_the_sdk(sdk, tmp_path, instances, jobs):
    from sagemaker.train.distributed import Torchrun
    (tmp_path/"train.py").write_text("""
import os, torch, torch.distributed as dist
dist.init_process_group('gloo')
total = torch.tensor([float(dist.get_rank())])
dist.all_reduce(total)
print('rank', dist.get_rank(), 'of', dist.get_world_size(), os.environ['SM_CURRENT_HOST'],
      total.item(), flush=True)
if dist.get_rank() == 0: open('/opt/ml/model/total', 'w').write(str(total.item()))
dist.destroy_process_group()
""")
    job, lines = sdk("torch", tmp_path, instances, Torchrun(process_count_per_node=2),
                     entry_script="train.py")
    world = 2 * instances
    total = sum(range(world))
    ranks = sorted(line for line in lines if line.startswith("rank"))
    assert ranks == [f"rank {r} of {world} algo-{1 + r // 2} {total}.0" for r in range(world)]
    key = job.model_artifacts.s3_model_artifacts.partition(f"{BUCKET}/")[2]
    assert jobs.members(key) == {"total": f"{total}.0".encode()}


@pytest.mark.slow
def test_thirty_jobs_at_once(jobs):
    "Ten clients create, follow and list at the same time; every job gets what is its own."
    def many(client):
        for i in range(3):
            name = f"many-{client}-{i}"
            jobs.run(name, f"open('/opt/ml/model/own', 'w').write('{name}')\nprint('{name}')")
            jobs.sm.list_training_jobs(NameContains="many")

    threads = [threading.Thread(target=many, args=(c,)) for c in range(10)]
    for thread in threads: thread.start()
    for thread in threads: thread.join(240)
    for client in range(10):
        for i in range(3):
            name = f"many-{client}-{i}"
            assert jobs.printed(name) == [name]
            assert jobs.members(f"out/{name}/output/model.tar.gz") == {"own": name.encode()}
    assert not still_run()
