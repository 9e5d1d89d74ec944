"""What does the rehearsal of AWS cost, above what the SDK and the processes cost anyway?

Each figure beside its limit, in one run: the start of the server until it answers, beside
importing what it is made of; the shapes of a request, beside botocore's own check of them (which
looks at types and required members, not at patterns); a DescribeTrainingJob, beside stock moto's
own answer to it; a training job that does nothing, from boto3's request to its end, beside the same
command run bare; and the same job ordered through the SDK's ModelTrainer (which stock moto doesn't
get through), beside the SDK's own part of that. What its polling adds, a multiple of 5 s, is a
figure of its own.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ROUNDS = 7
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-cpu-py313"


def timed(what) -> float:
    "Wall clock of one call, seconds."
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def row(name: str, ours: list[float], limit: list[float], of: str) -> str:
    "A line of the table, in milliseconds."
    mine, least = statistics.median(ours), statistics.median(limit)
    return f"{name:38}{1e3 * mine:10.2f}{1e3 * least:10.2f}{mine / least:9.2f}   {of}"


def starts(home: Path) -> str:
    "`up` in the background until it answers, beside the imports it can't do without."
    needed = "import moto.server, moto.s3.models, moto.iam.models, boto3, werkzeug.serving"
    command = [sys.executable, "-m", "ftnb.rehearsal"]
    ours, limit = [], []
    for i in range(ROUNDS):
        folder = ["--folder", str(home/f"up-{i}")]
        up = [*command, "up", "--port", "0", *folder]
        ours.append(timed(lambda c=up: subprocess.run(c, check=True, capture_output=True)))
        subprocess.run([*command, "down", *folder], check=True, capture_output=True)
        limit.append(timed(lambda: subprocess.run([sys.executable, "-c", needed], check=True)))
    return row("start of the server", ours, limit, "importing moto, boto3 and werkzeug")


def shapes_of_a_request(client) -> str:
    "A request's members checked against the service's model."
    from botocore.validate import ParamValidator

    from ftnb.rehearsal import shapes
    model = client.meta.service_model.operation_model("CreateTrainingJob").input_shape
    asked, theirs = request("checked"), ParamValidator()
    shapes.check("sagemaker", "CreateTrainingJob", asked)     # its tables are made
    pairs = [(timed(lambda: shapes.check("sagemaker", "CreateTrainingJob", asked)),
              timed(lambda: theirs.validate(asked, model))) for _ in range(500)]
    return row("shapes of a CreateTrainingJob", [a for a, _ in pairs], [b for _, b in pairs],
               "botocore, types alone")


def describes(running, stock) -> str:
    "One describe of a job that is there."
    ours = running.context.client("sagemaker")
    name = nothing(ours)
    there = {"TrainingJobName": name}
    stock.create_training_job(**request(name))
    pairs = [(timed(lambda: ours.describe_training_job(**there)),
              timed(lambda: stock.describe_training_job(**there))) for _ in range(200)]
    return row("DescribeTrainingJob", [a for a, _ in pairs], [b for _, b in pairs], "stock moto")


def request(name: str) -> dict:
    "A training job that does nothing."
    return dict(
        TrainingJobName=name, RoleArn="arn:aws:iam::123456789012:role/SageMakerRole",
        AlgorithmSpecification={"TrainingImage": IMAGE, "TrainingInputMode": "File",
                                "ContainerEntrypoint": ["/bin/bash", "-c", "true"]},
        OutputDataConfig={"S3OutputPath": "s3://sagemaker-us-east-1-123456789012/bench"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60})


def nothing(client) -> str:
    "Run the job that does nothing to its end; returns its name."
    name = f"bench-{time.time_ns()}"
    client.create_training_job(**request(name))
    while (now := client.describe_training_job(TrainingJobName=name))["TrainingJobStatus"] \
            not in ("Completed", "Failed", "Stopped"): time.sleep(.005)
    assert now["TrainingJobStatus"] == "Completed", now.get("FailureReason")
    return name


def jobs(running) -> str:
    "A job from request to end, beside its command."
    client = running.context.client("sagemaker")
    pairs = [(timed(lambda: nothing(client)),
              timed(lambda: subprocess.run(["/bin/bash", "-c", "true"], check=True)))
             for _ in range(ROUNDS)]
    return row("training job that does nothing, boto3", [a for a, _ in pairs],
               [b for _, b in pairs], "its command, run bare")


def launch(home: Path, wait: bool):
    "Order the job that does nothing through ModelTrainer."
    from sagemaker.core.training.configs import Compute, SourceCode
    from sagemaker.train import ModelTrainer
    trainer = ModelTrainer(
        training_image=IMAGE, base_job_name="bench",
        compute=Compute(instance_type="ml.m5.large", instance_count=1, volume_size_in_gb=1),
        role="arn:aws:iam::123456789012:role/SageMakerRole",
        source_code=SourceCode(source_dir=str(home/"code"), entry_script="train.py"))
    trainer.train(wait=wait, logs=False)
    return trainer._latest_training_job


def through_the_sdk(running, home: Path) -> list[str]:
    "ModelTrainer's own way, with its drivers, uploads and polling; what of it the answers take."
    from ftnb.rehearsal.client import connected
    (home/"code").mkdir()
    (home/"code"/"train.py").write_text("print('nothing')\n")
    imported = timed(lambda: __import__("sagemaker.train.model_trainer"))
    whole, asked, ordered, own, answers = [], [], [], [], []
    answer = running.front.answer

    def clocked(request):
        began = time.perf_counter()
        try: return answer(request)
        finally: answers.append(time.perf_counter() - began)

    with connected(running.endpoint):
        launch(home, True)                                    # what is done once
        for _ in range(ROUNDS):
            whole.append(timed(lambda: launch(home, True)))   # the SDK asks every 5 s
            began, running.front.answer, before = time.perf_counter(), clocked, sum(answers)
            job = launch(home, False)
            ordered.append((time.perf_counter() - began, sum(answers) - before))
            running.front.answer = answer
            while job.refresh().training_job_status == "InProgress": time.sleep(.1)
            asked.append(time.perf_counter() - began)
            own.append((job.last_modified_time - job.creation_time).total_seconds())
    waited, seen, lived = map(statistics.median, (whole, asked, own))
    return [row("ordering it through ModelTrainer", [all_ for all_, _ in ordered],
                [all_ - ours for all_, ours in ordered],
                f"without the {len(answers) // ROUNDS} answers"),
            f"ModelTrainer, end to end: {waited:.2f} s as the SDK asks (every 5 s), {seen:.2f} s "
            f"asked every 0.1 s, besides {imported:.2f} s of import; {lived:.2f} s from the job's "
            "creation to its end"]


def main() -> None:
    os.environ["PYTHONPATH"] = str(ROOT)
    from ftnb.rehearsal.server import rehearsal
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; medians, milliseconds")
    print(f"{'':38}{'ours':>10}{'limit':>10}{'ratio':>9}   the limit is")
    with tempfile.TemporaryDirectory(prefix="ftnb-bench-aws-") as name:
        home = Path(name)
        print(starts(home))
        with rehearsal() as running:
            print(shapes_of_a_request(running.context.client("sagemaker")))
            print(describes(running, stock_moto()))
            print(jobs(running))
            print(*through_the_sdk(running, home), sep="\n")


def stock_moto():
    "A client of moto's own server, in a process of its own."
    import atexit
    import socket

    import boto3
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(process.kill)
    client = boto3.client("sagemaker", endpoint_url=f"http://127.0.0.1:{port}",
                          region_name="us-east-1", aws_access_key_id="testing",
                          aws_secret_access_key="testing")
    for _ in range(200):
        try: client.list_training_jobs()
        except Exception: time.sleep(.05)
        else: break
    return client


if __name__ == "__main__": main()
