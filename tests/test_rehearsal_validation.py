"Bad requests are refused with the service's code and a sentence that names the field."
import copy
import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftnb.foundation.errors import BadInput
from ftnb.rehearsal import checks, shapes
from ftnb.rehearsal.instances import NEW_ACCOUNT, quotas
from ftnb.rehearsal.server import rehearsal
from ftnb.rehearsal.service import Call, Context, ServiceError

GONE = object()   # the value of a member that's taken away
ROLE = "arn:aws:iam::123456789012:role/Bench"
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-cpu-py313"
METRIC = {"Name": "loss", "Regex": "loss=([0-9.]+)"}
S3 = {"S3DataType": "S3Prefix", "S3Uri": "s3://bench/train",
      "S3DataDistributionType": "FullyReplicated"}
CHANNEL = {"ChannelName": "train", "DataSource": {"S3DataSource": S3}}
CLUSTER = {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30}
TRAIN: dict[str, Any] = {
    "TrainingJobName": "job-1", "RoleArn": ROLE, "HyperParameters": {"epochs": "3"},
    "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File",
                               "MetricDefinitions": [METRIC]},
    "InputDataConfig": [CHANNEL], "OutputDataConfig": {"S3OutputPath": "s3://bench/out"},
    "ResourceConfig": CLUSTER, "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    "Tags": [{"Key": "team", "Value": "research"}], "Environment": {"SEED": "1"},
}
SPOT = {"EnableManagedSpotTraining": True,
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}}
RATE = {"Name": "lr", "MinValue": "1e-5", "MaxValue": "1e-3", "ScalingType": "Logarithmic"}
BATCH = {"Name": "batch", "Values": ["16", "32"]}
GRID = {"Strategy": "Grid", "ParameterRanges": {"CategoricalParameterRanges": [BATCH]},
        "ResourceLimits": {"MaxParallelTrainingJobs": 1},
        "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "loss"}}
TUNE: dict[str, Any] = {
    "HyperParameterTuningJobName": "search-1",
    "HyperParameterTuningJobConfig": {
        "Strategy": "Bayesian",
        "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "loss"},
        "ResourceLimits": {"MaxNumberOfTrainingJobs": 4, "MaxParallelTrainingJobs": 2},
        "ParameterRanges": {"ContinuousParameterRanges": [RATE],
                            "CategoricalParameterRanges": [BATCH]}},
    "TrainingJobDefinition": {
        "StaticHyperParameters": {"epochs": "3"},
        **{k: TRAIN[k] for k in ("AlgorithmSpecification", "RoleArn", "InputDataConfig",
                                 "OutputDataConfig", "ResourceConfig", "StoppingCondition")}},
}
RAW = {"InputName": "raw", "S3Input": {"S3Uri": "s3://bench/train", "S3DataType": "S3Prefix",
                                       "LocalPath": "/opt/ml/processing/raw",
                                       "S3InputMode": "File"}}
CLEAN = {"OutputName": "clean", "S3Output": {"S3Uri": "s3://bench/clean",
                                             "S3UploadMode": "EndOfJob",
                                             "LocalPath": "/opt/ml/processing/clean"}}
PROCESS: dict[str, Any] = {
    "ProcessingJobName": "clean-1", "RoleArn": ROLE,
    "AppSpecification": {"ImageUri": IMAGE, "ContainerEntrypoint": ["python3", "clean.py"]},
    "ProcessingResources": {"ClusterConfig": CLUSTER}, "ProcessingInputs": [RAW],
    "ProcessingOutputConfig": {"Outputs": [CLEAN]},
}
GOOD = {"CreateTrainingJob": TRAIN, "CreateHyperParameterTuningJob": TUNE,
        "CreateProcessingJob": PROCESS}
PARENT = {**TUNE, "HyperParameterTuningJobStatus": "Completed",
          "HyperParameterTuningJobName": "ended"}


def changed(request: dict, changes: dict[str, Any]) -> dict:
    "A copy with other values at dotted paths; a number is a place in a list."
    request = copy.deepcopy(request)
    for path, value in changes.items():
        *way, last = path.split(".")
        place = request
        for step in way:
            place = place[int(step)] if step.isdigit() else place.setdefault(step, {})
        if value is GONE: del place[last]
        else: place[int(last) if last.isdigit() else last] = copy.deepcopy(value)
    return request


class Bench:
    "A rehearsal whose job operations check and start nothing."
    network: dict[str, list[str]]
    stranger: str   # a security group of another VPC
    key: str        # ARN

    def __init__(self, running):
        self.running, self.context = running, running.context
        self.clients = {region: boto3.client(
            "sagemaker", region, endpoint_url=running.endpoint, aws_access_key_id="testing",
            aws_secret_access_key="testing",
            config=Config(parameter_validation=False, retries={"total_max_attempts": 1}))
            for region in ("us-east-1", "eu-west-1")}
        self.real = dict(running.front.handlers)
        running.front.handlers.update({
            "CreateTrainingJob": self.checking(checks.training, "TrainingJobArn"),
            "CreateHyperParameterTuningJob": self.checking(checks.tuning,
                                                           "HyperParameterTuningJobArn"),
            "CreateProcessingJob": self.checking(checks.processing, "ProcessingJobArn"),
            "DescribeHyperParameterTuningJob": self.describe})

    def checking(self, check, member):
        def handler(call: Call) -> dict:
            check(call, self.context)
            return {member: "arn:aws:sagemaker:us-east-1:123456789012:job/one"}
        return handler

    def describe(self, call: Call) -> dict:
        name = call.request["HyperParameterTuningJobName"]
        if name not in ("ended", "running"): raise ServiceError("ResourceNotFound", "none")
        status = {"ended": "Completed", "running": "InProgress"}[name]
        return {**PARENT, "HyperParameterTuningJobName": name,
                "HyperParameterTuningJobStatus": status}

    def send(self, operation: str, request: dict, region: str = "us-east-1") -> dict:
        return self.clients[region]._make_api_call(operation, request)

    def post(self, operation: str, body: Any) -> tuple[int, dict]:
        "The status and answer of a request that isn't boto3's."
        scope = "Credential=testing/20260101/us-east-1/sagemaker/aws4_request"
        asked = urllib.request.Request(self.running.endpoint, json.dumps(body).encode(), {
            "X-Amz-Target": f"SageMaker.{operation}", "Content-Type": "application/x-amz-json-1.1",
            "Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"})
        try:
            with urllib.request.urlopen(asked) as answer: return answer.status, json.load(answer)
        except HTTPError as e: return e.code, json.load(e)


def trust(service: str) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}]})


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with rehearsal(tmp_path_factory.mktemp("rehearsal")) as running:
        made = Bench(running)
        iam, s3, ec2 = (made.context.client(name) for name in ("iam", "s3", "ec2"))
        iam.create_role(RoleName="Bench", AssumeRolePolicyDocument=trust("sagemaker.amazonaws.com"))
        iam.create_role(RoleName="Lambda", AssumeRolePolicyDocument=trust("lambda.amazonaws.com"))
        iam.create_role(RoleName="Deep", Path="/service-role/",
                        AssumeRolePolicyDocument=trust("sagemaker.amazonaws.com"))
        s3.create_bucket(Bucket="bench")
        for key in ("train/part-0.jsonl", "train/list.manifest"):
            s3.put_object(Bucket="bench", Key=key, Body=b"{}")
        s3.create_bucket(Bucket="abroad",
                         CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        s3.put_object(Bucket="abroad", Key="train/part-0.jsonl", Body=b"{}")
        subnets = ec2.describe_subnets()["Subnets"]
        vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
        home = [g["GroupId"] for g in ec2.describe_security_groups()["SecurityGroups"]
                if g["VpcId"] == subnets[0]["VpcId"]]
        made.network = {"Subnets": [s["SubnetId"] for s in subnets[:2]],
                        "SecurityGroupIds": home[:1]}
        made.stranger = ec2.create_security_group(GroupName="x", Description="-",
                                                  VpcId=vpc)["GroupId"]
        made.key = made.context.client("kms").create_key()["KeyMetadata"]["Arn"]
        made.context.client("kms").create_alias(AliasName="alias/bench", TargetKeyId=made.key)
        yield made


def train(changes, word, code="ValidationException"):
    return "CreateTrainingJob", changes, code, word


def tune(changes, word, code="ValidationException"):
    return "CreateHyperParameterTuningJob", changes, code, word


def process(changes, word, code="ValidationException"):
    return "CreateProcessingJob", changes, code, word


CONFIG, DEFINITION = "HyperParameterTuningJobConfig", "TrainingJobDefinition"
FIRST = "InputDataConfig.0"
SOURCE = f"{FIRST}.DataSource.S3DataSource"
BAD = [
    # shapes
    train({"TrainingJobName": "my_job"}, "trainingJobName"),
    train({"TrainingJobName": "a" * 64}, "trainingJobName"),
    train({"TrainingJobName": ""}, "trainingJobName"),
    train({"TrainingJobName": GONE}, "trainingJobName"),
    train({"TrainingJobName": "-a"}, "trainingJobName"),
    train({"RoleArn": GONE}, "roleArn"),
    train({"RoleArn": "Bench"}, "roleArn"),
    train({"OutputDataConfig": GONE}, "outputDataConfig"),
    train({"OutputDataConfig.S3OutputPath": "bench/out"}, "outputDataConfig.s3OutputPath"),
    train({"OutputDataConfig.CompressionType": "ZIP"}, "outputDataConfig.compressionType"),
    train({"AlgorithmSpecification.TrainingInputMode": "Stream"}, "trainingInputMode"),
    train({"AlgorithmSpecification.TrainingInputMode": GONE}, "trainingInputMode"),
    train({"AlgorithmSpecification.MetricDefinitions": [METRIC] * 41}, "metricDefinitions"),
    train({"AlgorithmSpecification.MetricDefinitions.0.Regex": "x" * 501}, "regex"),
    train({"AlgorithmSpecification.ContainerEntrypoint": []}, "containerEntrypoint"),
    train({"AlgorithmSpecification.ContainerArguments": ["x" * 257]}, "containerArguments"),
    train({"HyperParameters": {"text": "x" * 2501}}, "hyperParameters"),
    train({"HyperParameters": {"x" * 257: "1"}}, "hyperParameters"),
    train({"HyperParameters": {"text": "two\nlines"}}, "hyperParameters"),
    train({"HyperParameters": {str(i): "1" for i in range(101)}}, "hyperParameters"),
    train({"InputDataConfig": []}, "inputDataConfig"),
    train({"InputDataConfig": [{**CHANNEL, "ChannelName": f"c{i}"} for i in range(21)]},
          "inputDataConfig"),
    train({f"{FIRST}.ChannelName": "train data"}, "inputDataConfig.1.member.channelName"),
    train({f"{FIRST}.DataSource": GONE}, "inputDataConfig.1.member.dataSource"),
    train({f"{SOURCE}.S3Uri": GONE}, "s3Uri"),
    train({f"{SOURCE}.S3DataType": "Folder"}, "s3DataType"),
    train({f"{SOURCE}.S3DataDistributionType": "Sharded"}, "s3DataDistributionType"),
    train({f"{FIRST}.InputMode": "Fast"}, "inputMode"),
    train({"ResourceConfig.InstanceType": "ml.m1.small"}, "resourceConfig.instanceType"),
    train({"ResourceConfig.InstanceType": "ml.local"}, "resourceConfig.instanceType"),
    train({"ResourceConfig.InstanceCount": -1}, "resourceConfig.instanceCount"),
    train({"ResourceConfig.KeepAlivePeriodInSeconds": 99999}, "keepAlivePeriodInSeconds"),
    train({"StoppingCondition.MaxRuntimeInSeconds": 0}, "maxRuntimeInSeconds"),
    train({"StoppingCondition.MaxPendingTimeInSeconds": 60}, "maxPendingTimeInSeconds"),
    train({"Tags": [{"Key": "team"}]}, "tags.1.member.value"),
    train({"Tags": [{"Key": "50%", "Value": "x"}]}, "tags.1.member.key"),
    train({"Tags": [{"Key": str(i), "Value": ""} for i in range(51)]}, "tags"),
    train({"Environment": {"1SEED": "1"}}, "environment"),
    train({"Environment": {"SEED": "x" * 513}}, "environment"),
    train({"RetryStrategy": {"MaximumRetryAttempts": 31}}, "retryStrategy.maximumRetryAttempts"),
    train({"RetryStrategy": {}}, "maximumRetryAttempts"),
    train({"VpcConfig": {"Subnets": ["subnet-1"]}}, "vpcConfig.securityGroupIds"),
    train({"VpcConfig": {"Subnets": [], "SecurityGroupIds": ["sg-1"]}}, "vpcConfig.subnets"),
    # what a training job may not ask for
    train({"AlgorithmSpecification": GONE}, "algorithmSpecification"),
    train({"AlgorithmSpecification.AlgorithmName": "mine"}, "trainingImage"),
    train({"AlgorithmSpecification.TrainingImage": GONE}, "trainingImage"),
    train({"AlgorithmSpecification.TrainingImage": GONE,
           "AlgorithmSpecification.AlgorithmName": "mine"}, "algorithmName", "ResourceNotFound"),
    train({"AlgorithmSpecification.TrainingImage": "pytorch:2"}, "trainingImage"),
    train({"AlgorithmSpecification.TrainingImage": IMAGE.replace("us-east-1", "us-west-2")},
          "Invalid DNS suffix 'amazonaws.com' for region 'us-west-2' in training image. Please "
          "provide the valid <region>.<dns-suffix>: 'us-east-1.amazonaws.com'"),
    train({"AlgorithmSpecification.MetricDefinitions.0.Regex": "loss=("}, "regex"),
    train({"AlgorithmSpecification.TrainingImageConfig": {"TrainingRepositoryAccessMode": "Vpc"}},
          "trainingRepositoryAccessMode"),
    train({"RoleArn": ROLE.replace("Bench", "Nobody")}, "roleArn"),
    train({"RoleArn": ROLE.replace("Bench", "Lambda")}, "roleArn"),
    train({"RoleArn": ROLE.replace("Bench", "Deep")}, "roleArn"),
    train({"RoleArn": ROLE.replace("123456789012", "210987654321")}, "roleArn",
          "AccessDeniedException"),
    train({f"{SOURCE}.S3Uri": "s3://bench/nothing"}, "s3Uri"),
    train({f"{SOURCE}.S3Uri": "s3://no-such-bucket/x"}, "s3Uri"),
    train({f"{SOURCE}.S3Uri": "s3://abroad/train"}, "s3Uri"),
    train({f"{SOURCE}.S3Uri": "https://bench.s3.amazonaws.com/train"}, "s3Uri"),
    train({f"{SOURCE}.S3DataType": "ManifestFile"}, "s3Uri"),
    train({f"{SOURCE}.S3DataType": "AugmentedManifestFile",
           f"{SOURCE}.S3Uri": "s3://bench/train/list.manifest"}, "s3DataType"),
    train({f"{SOURCE}.S3DataType": "AugmentedManifestFile", f"{FIRST}.InputMode": "Pipe",
           f"{SOURCE}.S3Uri": "s3://bench/train/list.manifest"}, "attributeNames"),
    train({f"{SOURCE}.InstanceGroupNames": ["gpu"]}, "instanceGroupNames"),
    train({"InputDataConfig": [CHANNEL, CHANNEL]}, "channelName"),
    train({f"{FIRST}.CompressionType": "Gzip"}, "compressionType"),
    train({f"{FIRST}.RecordWrapperType": "RecordIO"}, "recordWrapperType"),
    train({f"{FIRST}.DataSource": {}}, "dataSource"),
    train({f"{FIRST}.DataSource": {"FileSystemDataSource": {
        "FileSystemId": "fs-01234567", "FileSystemAccessMode": "ro", "FileSystemType": "EFS",
        "DirectoryPath": "/data"}}}, "fileSystemDataSource"),
    train({"InputDataConfig": [CHANNEL, {**CHANNEL, "ChannelName": "sm_drivers"}],
           "HyperParameters": {"prompt": '"what\'s new"'}}, "hyperParameters"),
    train({"InputDataConfig": [CHANNEL, {**CHANNEL, "ChannelName": "sm_drivers"}],
           "HyperParameters": {"optimizer.lr": "1"}}, "hyperParameters"),
    train({"InputDataConfig": [{**CHANNEL, "ChannelName": "train-set"},
                               {**CHANNEL, "ChannelName": "sm_drivers"}]}, "inputDataConfig"),
    train({"HyperParameters": {"login": "AKIA" + "Z" * 16}}, "hyperParameters"),
    train({"ResourceConfig": GONE}, "resourceConfig"),
    train({"ResourceConfig.InstanceType": GONE}, "instanceType"),
    train({"ResourceConfig.InstanceType": "ml.p2.xlarge"}, "resourceConfig.instanceType"),
    train({"ResourceConfig.InstanceCount": 0}, "resourceConfig.instanceCount"),
    train({"ResourceConfig.VolumeSizeInGB": GONE}, "volumeSizeInGB"),
    train({"ResourceConfig.VolumeSizeInGB": 2000}, "volumeSizeInGB", "ResourceLimitExceeded"),
    train({"ResourceConfig.InstanceType": "ml.g5.xlarge", "ResourceConfig.VolumeSizeInGB": 500},
          "volumeSizeInGB"),
    train({"ResourceConfig.InstanceType": "ml.g5.xlarge", "ResourceConfig.VolumeKmsKeyId": "x"},
          "volumeKmsKeyId"),
    train({"ResourceConfig.VolumeKmsKeyId": "alias/none"}, "volumeKmsKeyId"),
    train({"ResourceConfig.InstanceCount": 21}, "instanceCount", "ResourceLimitExceeded"),
    train({"ResourceConfig.InstanceGroups": [
        {"InstanceType": "ml.m5.large", "InstanceCount": 1, "InstanceGroupName": "a"}]},
          "instanceType"),
    train({"ResourceConfig": {"VolumeSizeInGB": 10, "InstanceGroups": [
        {"InstanceType": "ml.m5.large", "InstanceCount": 1, "InstanceGroupName": "a"}] * 2}},
        "instanceGroups"),
    train({"ResourceConfig": {"VolumeSizeInGB": 10, "InstanceCount": 1, "InstanceGroups": [
        {"InstanceType": "ml.m5.large", "InstanceCount": 1, "InstanceGroupName": "a"}]}},
        "instanceCount"),
    train({"ResourceConfig": {"VolumeSizeInGB": 10, "InstancePreferences": [
        {"InstanceType": "ml.m5.large", "InstanceCount": 1}, {"InstanceType": "ml.m5.xlarge"}]}},
        "instanceCount"),
    train({"ResourceConfig": {"VolumeSizeInGB": 10, "InstanceCount": 1, "InstancePreferences": [
        {"InstanceType": "ml.m5.large"}]}, **SPOT}, "instancePreferences"),
    train({"ResourceConfig.SelectedInstanceType": "ml.m5.large"}, "selectedInstanceType"),
    train({"ResourceConfig.TrainingPlanArn":
           "arn:aws:sagemaker:us-east-1:123456789012:training-plan/mine"}, "trainingPlanArn",
          "ResourceNotFound"),
    train({**SPOT, "ResourceConfig.KeepAlivePeriodInSeconds": 600}, "keepAlivePeriodInSeconds"),
    train({"StoppingCondition.MaxRuntimeInSeconds": 28*24*3600 + 1}, "maxRuntimeInSeconds"),
    train({"StoppingCondition.MaxWaitTimeInSeconds": 7200}, "maxWaitTimeInSeconds"),
    train({"EnableManagedSpotTraining": True}, "maxWaitTimeInSeconds"),
    train({**SPOT, "StoppingCondition.MaxWaitTimeInSeconds": 3599}, "maxWaitTimeInSeconds"),
    train({**SPOT, "StoppingCondition": {"MaxWaitTimeInSeconds": 3600}}, "maxWaitTimeInSeconds"),
    train({"OutputDataConfig.S3OutputPath": "s3://no-such-bucket/out"}, "s3OutputPath"),
    train({"OutputDataConfig.KmsKeyId": "alias/none"}, "outputDataConfig.kmsKeyId"),
    train({"CheckpointConfig": {"S3Uri": "s3://no-such-bucket/x"}}, "checkpointConfig.s3Uri"),
    train({"CheckpointConfig": {"S3Uri": "s3://bench/c", "LocalPath": "checkpoints"}},
          "checkpointConfig.localPath"),
    train({"TensorBoardOutputConfig": {"S3OutputPath": "s3://no-such-bucket/x"}},
          "tensorBoardOutputConfig.s3OutputPath"),
    train({"VpcConfig": {"Subnets": ["subnet-0"], "SecurityGroupIds": ["sg-0"]}},
          "vpcConfig.subnets"),
    train({"Tags": [{"Key": "aws:team", "Value": "x"}]}, "tags.1.member.key"),
    train({"Tags": [{"Key": "a", "Value": "x"}, {"Key": "a", "Value": "y"}]}, "tags.2.member.key"),
    train({"ExperimentConfig": {"ExperimentName": "none"}}, "experimentName", "ResourceNotFound"),
    train({"ProfilerConfig": {"ProfilingIntervalInMilliseconds": 300}},
          "profilingIntervalInMilliseconds"),
    train({"ServerlessJobConfig": {"BaseModelArn": "arn:aws:sagemaker:us-east-1:aws:hub-content/"
                                   "SageMakerPublicHub/Model/m/1.0.0", "JobType": "FineTuning"}},
          "serverlessJobConfig"),
    # searches
    tune({"HyperParameterTuningJobName": "a" * 33}, "hyperParameterTuningJobName"),
    tune({f"{CONFIG}.Strategy": "Annealing"}, "strategy"),
    tune({f"{CONFIG}.ResourceLimits.MaxParallelTrainingJobs": 0}, "maxParallelTrainingJobs"),
    tune({f"{CONFIG}.ResourceLimits.MaxParallelTrainingJobs": 5}, "maxParallelTrainingJobs"),
    tune({f"{CONFIG}.ResourceLimits.MaxNumberOfTrainingJobs": GONE}, "maxNumberOfTrainingJobs"),
    tune({f"{CONFIG}.ResourceLimits.MaxNumberOfTrainingJobs": 1000}, "maxNumberOfTrainingJobs",
         "ResourceLimitExceeded"),
    tune({f"{CONFIG}.HyperParameterTuningJobObjective.MetricName": "accuracy"}, "metricName"),
    tune({f"{CONFIG}.HyperParameterTuningJobObjective": GONE}, "hyperParameterTuningJobObjective"),
    tune({f"{CONFIG}.ParameterRanges": {}}, "parameterRanges"),
    tune({f"{CONFIG}.ParameterRanges.ContinuousParameterRanges.0.MinValue": "0.1"}, "minValue"),
    tune({f"{CONFIG}.ParameterRanges.ContinuousParameterRanges.0.MinValue": "0"}, "scalingType"),
    tune({f"{CONFIG}.ParameterRanges.ContinuousParameterRanges.0.MaxValue": "big"}, "maxValue"),
    tune({f"{CONFIG}.ParameterRanges.ContinuousParameterRanges.0.ScalingType": "ReverseLogarithmic",
          f"{CONFIG}.ParameterRanges.ContinuousParameterRanges.0.MaxValue": "1"}, "scalingType"),
    tune({f"{CONFIG}.ParameterRanges.IntegerParameterRanges": [
        {"Name": "layers", "MinValue": "1.5", "MaxValue": "3"}]}, "minValue"),
    tune({f"{CONFIG}.ParameterRanges.IntegerParameterRanges": [
        {"Name": f"h{i}", "MinValue": "1", "MaxValue": "3"} for i in range(29)]},
         "parameterRanges"),
    tune({f"{CONFIG}.ParameterRanges.CategoricalParameterRanges.0.Name": "lr"}, "parameterRanges"),
    tune({f"{DEFINITION}.StaticHyperParameters": {"lr": "1"}}, "parameterRanges"),
    tune({f"{CONFIG}.ParameterRanges": {"CategoricalParameterRanges": [BATCH]}},
         "maxNumberOfTrainingJobs"),
    tune({f"{CONFIG}.Strategy": "Grid"}, "parameterRanges"),
    tune({CONFIG: {**GRID, "ResourceLimits": {"MaxParallelTrainingJobs": 1,
                                              "MaxNumberOfTrainingJobs": 3}}},
         "maxNumberOfTrainingJobs"),
    tune({f"{CONFIG}.Strategy": "Hyperband", f"{DEFINITION}.StaticHyperParameters": {}},
         "maxResource"),
    tune({f"{CONFIG}.Strategy": "Hyperband", f"{CONFIG}.TrainingJobEarlyStoppingType": "Auto"},
         "trainingJobEarlyStoppingType"),
    tune({f"{CONFIG}.StrategyConfig": {"HyperbandStrategyConfig": {"MaxResource": 9}}},
         "strategyConfig"),
    tune({DEFINITION: GONE}, "trainingJobDefinition"),
    tune({"TrainingJobDefinitions": [TUNE[DEFINITION]]}, "trainingJobDefinition"),
    tune({DEFINITION: GONE, "TrainingJobDefinitions": [TUNE[DEFINITION]]}, "definitionName"),
    tune({f"{DEFINITION}.StaticHyperParameters.login": "x ASIA" + "2" * 16},
         "staticHyperParameters"),
    tune({f"{DEFINITION}.RoleArn": ROLE.replace("Bench", "Nobody")},
         "trainingJobDefinition.roleArn"),
    tune({f"{DEFINITION}.ResourceConfig": GONE}, "trainingJobDefinition.resourceConfig"),
    tune({f"{DEFINITION}.{SOURCE}.S3Uri": "s3://bench/nothing"},
         "trainingJobDefinition.inputDataConfig"),
    tune({f"{DEFINITION}.EnableManagedSpotTraining": True},
         "trainingJobDefinition.stoppingCondition"),
    tune({"WarmStartConfig": {"WarmStartType": "TransferLearning",
                              "ParentHyperParameterTuningJobs": [
        {"HyperParameterTuningJobName": "none"}]}}, "warmStartConfig"),
    tune({"WarmStartConfig": {"WarmStartType": "TransferLearning",
                              "ParentHyperParameterTuningJobs": [
        {"HyperParameterTuningJobName": "running"}]}}, "warmStartConfig"),
    tune({f"{DEFINITION}.StaticHyperParameters.warmup": "1",
          "WarmStartConfig": {"WarmStartType": "IdenticalDataAndAlgorithm",
                              "ParentHyperParameterTuningJobs": [
                                  {"HyperParameterTuningJobName": "ended"}]}}, "warmStartConfig"),
    # processing
    process({"ProcessingJobName": "my_job"}, "processingJobName"),
    process({"AppSpecification": GONE}, "appSpecification"),
    process({"AppSpecification.ImageUri": "clean"}, "appSpecification.imageUri"),
    process({"ProcessingInputs": [{**RAW, "InputName": str(i)} for i in range(11)]},
            "processingInputs"),
    process({"ProcessingInputs": [RAW, RAW]}, "processingInputs"),
    process({"ProcessingInputs": [RAW, {**RAW, "InputName": "again"}]}, "processingInputs"),
    process({"ProcessingInputs.0.S3Input": GONE}, "s3Input"),
    process({"ProcessingInputs.0.S3Input.LocalPath": "/opt/ml/raw"}, "s3Input.localPath"),
    process({"ProcessingInputs.0.S3Input.LocalPath": "/opt/ml/processing/../raw"},
            "s3Input.localPath"),
    process({"ProcessingInputs.0.S3Input.LocalPath": GONE}, "s3Input.localPath"),
    process({"ProcessingInputs.0.S3Input.S3Uri": "s3://bench/nothing"}, "s3Input.s3Uri"),
    process({"ProcessingInputs.0.S3Input.S3CompressionType": "Gzip"}, "s3CompressionType"),
    process({"ProcessingOutputConfig.Outputs.0.S3Output.S3Uri": "s3://no-such-bucket/x"},
            "s3Output.s3Uri"),
    process({"ProcessingOutputConfig.Outputs.0.S3Output.S3UploadMode": "Later"}, "s3UploadMode"),
    process({"ProcessingOutputConfig.Outputs.0.S3Output.LocalPath": "/opt/ml/processing/raw"},
            "processingInputs"),
    process({"ProcessingOutputConfig.Outputs": [CLEAN, CLEAN]}, "processingOutputConfig.outputs"),
    process({"ProcessingOutputConfig.KmsKeyId": "alias/none"}, "processingOutputConfig.kmsKeyId"),
    process({"ProcessingResources.ClusterConfig.InstanceType": "ml.p4d.24xlarge"}, "instanceType"),
    process({"ProcessingResources.ClusterConfig.InstanceCount": 21}, "clusterConfig.instanceCount",
            "ResourceLimitExceeded"),
    process({"ProcessingResources.ClusterConfig.VolumeSizeInGB": 1025}, "volumeSizeInGB",
            "ResourceLimitExceeded"),
    process({"RoleArn": ROLE.replace("Bench", "Nobody")}, "roleArn"),
    process({"StoppingCondition": {"MaxRuntimeInSeconds": 99999999}}, "maxRuntimeInSeconds"),
]


def named(one: tuple) -> str:
    operation, changes, _, word = one
    return f"{operation.removeprefix('Create')}-{next(iter(changes))}-{word}"


@pytest.mark.parametrize("one", BAD, ids=named)
def test_a_bad_request_is_refused(bench, one):
    operation, changes, code, word = one
    with pytest.raises(ClientError) as refused:
        bench.send(operation, changed(GOOD[operation], changes))
    error = refused.value.response["Error"]
    assert error["Code"] == code, error
    assert word in error["Message"]
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_there_are_enough_of_them(): assert len(BAD) >= 75


TYPES = {
    "TrainingJobName": 7, "HyperParameters": [], "HyperParameters.epochs": 3, "InputDataConfig": {},
    f"{FIRST}.ChannelName": None, f"{FIRST}.DataSource": "s3://bench/train", "Tags": [None],
    "ResourceConfig.InstanceCount": "1", "ResourceConfig.VolumeSizeInGB": 1.5,
    "EnableManagedSpotTraining": "true", "EnableNetworkIsolation": 1,
    "StoppingCondition.MaxRuntimeInSeconds": True, "ResourceConfig.InstanceType": ["ml.m5.large"],
    "Environment": "SEED=1", "ResourceConfig": [], "StoppingCondition.MaxWaitTimeInSeconds": 2**40,
}


@pytest.mark.parametrize("path", TYPES)
def test_a_wrong_type_is_refused_whoever_sends_it(bench, path):
    status, answer = bench.post("CreateTrainingJob", changed(TRAIN, {path: TYPES[path]}))
    expected = "ValidationException" if TYPES[path] is None else "SerializationException"
    assert status == 400 and answer["__type"] == expected
    first = shapes.lower_camel(path.partition(".")[0])
    assert f"'{first}" in answer["message"]


@pytest.mark.parametrize("path", ["StoppingConditions", "ResourceConfig.InstanceTypes",
                                  f"{FIRST}.Mode"])
def test_a_member_that_amazon_would_skip_is_refused(bench, path):
    status, answer = bench.post("CreateTrainingJob", changed(TRAIN, {path: "x"}))
    assert status == 400 and "is unknown to this operation" in answer["message"]
    assert shapes.lower_camel(path.split(".")[-1]) in answer["message"]


def test_several_errors_are_said_at_once(bench):
    wrong = changed(TRAIN, {"TrainingJobName": "a_" * 40, "RoleArn": GONE,
                            "ResourceConfig.InstanceType": "ml.m1.small"})
    with pytest.raises(ClientError) as refused: bench.send("CreateTrainingJob", wrong)
    message = refused.value.response["Error"]["Message"]
    assert message.startswith("4 validation errors detected: Value ")
    assert message.count("; Value ") == 3
    assert "less than or equal to 63" in message and "regular expression pattern" in message
    missing = "Value null at 'roleArn' failed to satisfy constraint: Member must not be null"
    assert missing in message
    assert "Member must satisfy enum value set: [ml." in message


def test_the_sentence_is_amazon_s_letter_for_letter(bench):
    "As users have quoted it: sagemaker-python-sdk #4711, amazon-sagemaker-operator-for-k8s #123."
    fast = changed(PROCESS, {"ProcessingInputs.0.S3Input.S3InputMode": "FastFile"})
    assert bench.post("CreateProcessingJob", fast)[1]["message"] == (
        "1 validation error detected: Value 'FastFile' at 'processingInputs.1.member.s3Input."
        "s3InputMode' failed to satisfy constraint: Member must satisfy enum value set: "
        "[Pipe, File]")
    few = changed(TUNE, {f"{CONFIG}.ParameterRanges": {"CategoricalParameterRanges": [
        {"Name": "batch", "Values": ["16", "32", "64"]}]},
        f"{CONFIG}.ResourceLimits.MaxNumberOfTrainingJobs": 10})
    assert bench.post("CreateHyperParameterTuningJob", few)[1]["message"].startswith(
        "You don't have enough combinations of hyperparameter ranges. The total number of "
        "hyperparameter combinations for the provided ranges [3.0] must be equal or greater than "
        "the value of MaxNumberOfJobs, [10]. Provide additional ranges.")
    long = changed(TRAIN, {"HyperParameters": {"text": "x" * 2501}})
    assert bench.post("CreateTrainingJob", long)[1]["message"].endswith(
        "at 'hyperParameters' failed to satisfy constraint: Map value must satisfy constraint: "
        "[Member must have length less than or equal to 2500, Member must have length greater "
        "than or equal to 0, Member must satisfy regular expression pattern: .*]")


def test_boto_refuses_some_of_it_itself(bench):
    "What the client checks never reaches the service; the rest must be refused there."
    from botocore.validate import ParamValidator
    shape = shapes.service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    seen = [ParamValidator().validate(changed(TRAIN, changes), shape).has_errors()
            for operation, changes, *_ in BAD if operation == "CreateTrainingJob"]
    assert 3 < sum(seen) < len(seen) / 4


def vpc(bench): return {"VpcConfig": bench.network}


UNUSUAL: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "name of 63": lambda b: {"TrainingJobName": "a" + "-" * 61 + "b"},
    "no channel": lambda b: {"InputDataConfig": GONE},
    "no hyperparameter": lambda b: {"HyperParameters": {}},
    "100 hyperparameters": lambda b: {"HyperParameters": {f"h{i}": "" for i in range(100)}},
    "a value of 2500": lambda b: {"HyperParameters": {"text": "é" * 2500}},
    "quotes without the SDK": lambda b: {"HyperParameters": {"text": "it's \"so\"", "a.b/c": "x"}},
    "a hyphen without the SDK": lambda b: {f"{FIRST}.ChannelName": "train-set.1"},
    "the SDK's JSON": lambda b: {
        "InputDataConfig": [CHANNEL, {**CHANNEL, "ChannelName": "sm_drivers"}],
        "HyperParameters": {"learning-rate": "0.1", "name": "\"a b\"", "list": "[1, \"x\"]"}},
    "20 channels": lambda b: {
        "InputDataConfig": [{**CHANNEL, "ChannelName": f"c{i}"} for i in range(20)]},
    "a whole bucket": lambda b: {f"{SOURCE}.S3Uri": "s3://bench"},
    "half a key": lambda b: {f"{SOURCE}.S3Uri": "s3://bench/tra"},
    "one object": lambda b: {f"{SOURCE}.S3Uri": "s3://bench/train/part-0.jsonl"},
    "a manifest": lambda b: {f"{SOURCE}.S3Uri": "s3://bench/train/list.manifest",
                             f"{SOURCE}.S3DataType": "ManifestFile"},
    "fast file": lambda b: {f"{FIRST}.InputMode": "FastFile"},
    "an augmented manifest": lambda b: {
        f"{SOURCE}.S3Uri": "s3://bench/train/list.manifest", f"{FIRST}.InputMode": "Pipe",
        f"{SOURCE}.S3DataType": "AugmentedManifestFile",
                                        f"{SOURCE}.AttributeNames": ["source-ref"]},
    "compressed in pipe mode": lambda b: {f"{FIRST}.CompressionType": "Gzip",
                                          "AlgorithmSpecification.TrainingInputMode": "Pipe"},
    "None in file mode": lambda b: {f"{FIRST}.CompressionType": "None",
                                    f"{FIRST}.RecordWrapperType": "None"},
    "sharded and shuffled": lambda b: {f"{SOURCE}.S3DataDistributionType": "ShardedByS3Key",
                                       f"{FIRST}.ShuffleConfig": {"Seed": 7},
                                       "ResourceConfig.InstanceCount": 2},
    "no stopping condition": lambda b: {"StoppingCondition": GONE},
    "28 days": lambda b: {"StoppingCondition.MaxRuntimeInSeconds": 28*24*3600},
    "spot without a checkpoint": lambda b: SPOT,
    "spot that waits as long as it runs": lambda b: {
        **SPOT, "StoppingCondition.MaxWaitTimeInSeconds": 3600},
    "spot with checkpoints elsewhere": lambda b: {**SPOT, "CheckpointConfig": {
        "S3Uri": "s3://bench/checkpoints/", "LocalPath": "/opt/ml/state"}},
    "a warm pool": lambda b: {"ResourceConfig.KeepAlivePeriodInSeconds": 3600},
    "groups": lambda b: {"ResourceConfig": {"VolumeSizeInGB": 10, "InstanceGroups": [
        {"InstanceType": "ml.c5.xlarge", "InstanceCount": 2, "InstanceGroupName": "cpu"},
        {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "InstanceGroupName": "gpu"}]},
        f"{SOURCE}.InstanceGroupNames": ["gpu"]},
    "preferences": lambda b: {"ResourceConfig": {"InstancePreferences": [
        {"InstanceType": "ml.p5.48xlarge", "InstanceCount": 1},
        {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": 2}]}},
    "no volume where a disk is": lambda b: {"ResourceConfig.InstanceType": "ml.g5.2xlarge",
                                            "ResourceConfig.VolumeSizeInGB": GONE},
    "the newest types": lambda b: {"ResourceConfig.InstanceType": "ml.p6-b200.48xlarge",
                                   "ResourceConfig.VolumeSizeInGB": 1000},
    "a key by its alias": lambda b: {"OutputDataConfig.KmsKeyId": "alias/bench",
                                     "ResourceConfig.VolumeKmsKeyId": b.key},
    "Amazon's own key": lambda b: {"OutputDataConfig.KmsKeyId": "alias/aws/s3"},
    "another account's key": lambda b: {
        "OutputDataConfig.KmsKeyId": b.key.replace("123456789012", "999999999999")},
    "no key": lambda b: {"OutputDataConfig.KmsKeyId": ""},
    "uncompressed": lambda b: {"OutputDataConfig.CompressionType": "NONE"},
    "an isolated network": lambda b: {**vpc(b), "EnableNetworkIsolation": True,
                                      "EnableInterContainerTrafficEncryption": True},
    "a private registry": lambda b: {
        **vpc(b), "AlgorithmSpecification.TrainingImage": "registry.example.com/team/image:1",
        "AlgorithmSpecification.TrainingImageConfig": {"TrainingRepositoryAccessMode": "Vpc"}},
    "a file system": lambda b: {**vpc(b), f"{FIRST}.DataSource": {"FileSystemDataSource": {
        "FileSystemId": "fs-01234567", "FileSystemAccessMode": "ro", "FileSystemType": "EFS",
        "DirectoryPath": "/data"}}},
    "an image by digest": lambda b: {
        "AlgorithmSpecification.TrainingImage": IMAGE.split(":")[0] + "@sha256:" + "0f" * 32},
    "an image without a tag": lambda b: {
        "AlgorithmSpecification.TrainingImage": IMAGE.split(":")[0]},
    "an entrypoint": lambda b: {
        "AlgorithmSpecification.ContainerEntrypoint": ["/bin/bash", "-c"],
        "AlgorithmSpecification.ContainerArguments": ["echo 'it is' && sleep 1"]},
    "a Java expression": lambda b: {"AlgorithmSpecification.MetricDefinitions": [
        {"Name": "loss", "Regex": r"loss[:=]\s*+(\p{Digit}++\.\d+)"},
                                                                                 {"Name": "a:b",
                                                                                  "Regex": "b"}]},
    "a role with a path": lambda b: {"RoleArn": ROLE.replace("role/Bench",
                                                             "role/service-role/Deep")},
    "tags of the world": lambda b: {"Tags": [{"Key": "équipe", "Value": "数据 + 1"},
                                             {"Key": "empty", "Value": ""}]},
    "null members": lambda b: {"VpcConfig": None, "CheckpointConfig": None, "Tags": None,
                               f"{FIRST}.InputMode": None},
    "an environment": lambda b: {"Environment": {"_x": "two\nlines 'and' \"quotes\"", "A1": ""}},
    "retries": lambda b: {"RetryStrategy": {"MaximumRetryAttempts": 30}},
    "switches": lambda b: {"RemoteDebugConfig": {"EnableRemoteDebug": True},
                           "InfraCheckConfig": {"EnableInfraCheck": True},
                           "ProfilerConfig": {"DisableProfiler": True}},
    "a hook and its rule": lambda b: {
        "DebugHookConfig": {"S3OutputPath": "s3://bench/tensors"},
        "DebugRuleConfigurations": [{"RuleConfigurationName": "nan", "RuleEvaluatorImage": IMAGE}]},
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_request_is_taken(bench, name):
    changes = {path: value for path, value in UNUSUAL[name](bench).items()}
    status, answer = bench.post("CreateTrainingJob", changed(TRAIN, changes))
    assert status == 200, answer


MORE = [
    tune({}, ""), tune({CONFIG: GRID}, ""), tune({f"{CONFIG}.Strategy": "Random"}, ""),
    tune({CONFIG: {**GRID, "ResourceLimits": {"MaxParallelTrainingJobs": 1,
                                              "MaxNumberOfTrainingJobs": 2}}}, ""),
    tune({f"{CONFIG}.Strategy": "Hyperband"}, ""),
    tune({f"{CONFIG}.ParameterRanges.ContinuousParameterRanges": [
        {"Name": "dropout", "MinValue": "0", "MaxValue": "0.99",
         "ScalingType": "ReverseLogarithmic"}]}, ""),
    tune({f"{CONFIG}.ParameterRanges.IntegerParameterRanges": [
        {"Name": "shift", "MinValue": "-3", "MaxValue": "-3"}]}, ""),
    tune({f"{CONFIG}.ResourceLimits": {"MaxParallelTrainingJobs": 2, "MaxRuntimeInSeconds": 600}},
         ""),
    tune({f"{DEFINITION}.ResourceConfig": GONE,
          f"{DEFINITION}.HyperParameterTuningResourceConfig": {
        "AllocationStrategy": "Prioritized", "InstanceConfigs": [CLUSTER]}}, ""),
    tune({DEFINITION: GONE, f"{CONFIG}.ParameterRanges": GONE,
          f"{CONFIG}.HyperParameterTuningJobObjective": GONE, "TrainingJobDefinitions": [
        {**TUNE[DEFINITION], "DefinitionName": name,
         "TuningObjective": {"Type": "Minimize", "MetricName": "loss"},
         "HyperParameterRanges": {"ContinuousParameterRanges": [RATE]}} for name in "ab"]}, ""),
    tune({"WarmStartConfig": {"WarmStartType": "IdenticalDataAndAlgorithm",
                              "ParentHyperParameterTuningJobs": [
                                  {"HyperParameterTuningJobName": "ended"}]}}, ""),
    process({}, ""), process({"ProcessingInputs": GONE, "ProcessingOutputConfig": GONE}, ""),
    process({"ProcessingInputs.0.S3Input.LocalPath": "/opt/ml/processing/clean/inner"}, ""),
    process({"ProcessingInputs.0.S3Input.S3InputMode": "Pipe",
             "ProcessingInputs.0.S3Input.S3CompressionType": "Gzip"}, ""),
    process({"ProcessingOutputConfig.Outputs.0.S3Output.S3UploadMode": "Continuous"}, ""),
    process({"ProcessingOutputConfig.Outputs": [{"OutputName": "features", "AppManaged": True,
             "FeatureStoreOutput": {"FeatureGroupName": "people"}}]}, ""),
    process({"StoppingCondition": {"MaxRuntimeInSeconds": 5*24*3600}}, ""),
]


@pytest.mark.parametrize("one", MORE, ids=lambda one: f"{one[0]}-{next(iter(one[1]), 'as it is')}")
def test_other_unusual_requests_are_taken(bench, one):
    operation, changes, *_ = one
    status, answer = bench.post(operation, changed(GOOD[operation], changes))
    assert status == 200, answer


def test_each_region_has_its_own_data(bench):
    abroad = changed(TRAIN, {f"{SOURCE}.S3Uri": "s3://abroad/train",
                             "AlgorithmSpecification.TrainingImage": IMAGE.replace("us-east-1",
                                                                                   "eu-west-1")})
    assert bench.send("CreateTrainingJob", abroad, "eu-west-1")
    for other in ({**abroad, "VpcConfig": bench.network},
                  changed(abroad, {f"{SOURCE}.S3Uri": "s3://bench/train"})):
        with pytest.raises(ClientError): bench.send("CreateTrainingJob", other, "eu-west-1")


def test_a_network_belongs_together(bench):
    network = {**bench.network, "SecurityGroupIds": [bench.stranger]}
    status, answer = bench.post("CreateTrainingJob", {**TRAIN, "VpcConfig": network})
    assert status == 400 and "vpcConfig.securityGroupIds" in answer["message"]


def test_quotas_can_be_another_account_s(bench):
    gpu = changed(TRAIN, {"ResourceConfig.InstanceType": "ml.g5.xlarge"})
    before = dict(quotas)
    try:
        checks.change_quotas(NEW_ACCOUNT)
        for request in (gpu, {**TRAIN, **SPOT},
                        changed(TRAIN, {"StoppingCondition.MaxRuntimeInSeconds": 6*24*3600})):
            status, answer = bench.post("CreateTrainingJob", request)
            assert status == 400 and answer["__type"] == "ResourceLimitExceeded"
        assert bench.post("CreateTrainingJob", TRAIN)[0] == 200
    finally:
        quotas.clear()
        quotas.update(before)
    assert bench.post("CreateTrainingJob", gpu)[0] == 200


@pytest.mark.parametrize("changes", [{"x": 1}, {"ml.m5.large for training job usage": -1},
                                     {"* for training job usage": 2.5},
                                     {"Number of instances across all training jobs": True}])
def test_a_quota_must_be_one(changes):
    before = dict(quotas)
    with pytest.raises(BadInput): checks.change_quotas(changes)
    assert quotas == before


def test_what_runs_counts(bench):
    call = Call("sagemaker", "CreateTrainingJob", TRAIN)
    use = checks.wanted(TRAIN["ResourceConfig"])
    checks.training(call, bench.context, {name: 19 for name in use})
    with pytest.raises(ServiceError, match="current utilization of 20 Instances"):
        checks.training(call, bench.context, {name: 20 for name in use})


def test_every_pattern_of_the_model_compiles():
    model = shapes.service_model("sagemaker")
    patterns = {shape.metadata["pattern"] for name in model.shape_names
                if "pattern" in (shape := model.shape_for(name)).metadata}
    assert len(patterns) > 200
    for pattern in patterns: shapes.java_pattern(pattern)


@pytest.mark.parametrize("pattern, yes, no", [
    (r"[\S\s]*", ["\u00a0\n", ""], []), (r"\w+", ["a_1"], ["é", "٣"]), (r"\d", ["1"], ["٣"]),
    (r".*", ["é\t"], ["\n", "\r", "\u2028"]), (r"[.]", ["."], ["a"]), (r"a++b", ["aab"], ["aa"]),
    (r"[\uD800\uDC00-\uDBFF\uDFFF]", ["😀"], ["a"]), (r"([\p{L}]*)${1,128}", ["é"], ["1"]),
    (r"[\p{Alnum}\-]+", ["a-1"], ["é"]), (r"\p{L}\.", ["é."], ["é1"]),
                                              (r"(?!\s*$).+", ["a "], [" "]),
    (r"[\W]", ["é"], ["a"]), (r"\\d", ["\\d"], ["1"]),
])
def test_java_s_patterns_mean_what_they_mean_in_java(pattern, yes, no):
    compiled = shapes.java_pattern(pattern)
    assert all(compiled.fullmatch(text) for text in yes)
    assert not any(compiled.fullmatch(text) for text in no)


def paths(value: Any, way: tuple = ()) -> list[tuple]:
    "Every place in a request."
    steps = value.items() if isinstance(value, dict) else \
        enumerate(value) if isinstance(value, list) else ()
    return [way, *(path for step, part in steps for path in paths(part, (*way, step)))]


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(PLAIN,
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6)


@st.composite
def mutated(draw) -> tuple[str, dict, str]:
    operation = draw(st.sampled_from(sorted(GOOD)))
    request: Any = copy.deepcopy(GOOD[operation])
    way = draw(st.sampled_from([path for path in paths(request) if path]))
    place = request
    for step in way[:-1]: place = place[step]
    kind = draw(st.sampled_from(["other", "gone", "more"]))
    if kind == "gone": del place[way[-1]]
    elif kind == "more" and isinstance(place[way[-1]], dict):
        place[way[-1]][draw(st.text(min_size=1, max_size=9))] = draw(JSON)
    else: place[way[-1]] = draw(JSON)
    return operation, request, way[0]


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_no_single_change_crashes_the_shapes(one):
    operation, request, first = one
    try: shapes.check("sagemaker", operation, request)
    except ServiceError as e:
        assert e.code in ("ValidationException", "SerializationException")
        assert shapes.lower_camel(first) in e.message


@settings(max_examples=120, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutated())
def test_no_single_change_crashes_the_checks(bench, one):
    operation, request, _ = one
    status, answer = bench.post(operation, request)
    assert status in (200, 400), answer
    assert status == 200 or answer["message"]


@given(st.text(max_size=400))
@settings(max_examples=200, deadline=None)
def test_no_text_crashes_or_stalls_a_pattern(text):
    started = time.process_time()   # a pattern that backtracks takes minutes
    for operation, member in (("CreateTrainingJob", "TrainingJobName"),
                              ("CreateTrainingJob", "RoleArn")):
        try: shapes.check("sagemaker", operation, {**TRAIN, member: text})
        except ServiceError as e: assert member[0].lower() + member[1:] in e.message
    assert time.process_time() - started < 5


def test_deep_nesting_is_refused():
    search: dict[str, Any] = {}
    for _ in range(5000): search = {"SubExpressions": [search]}
    with pytest.raises(ServiceError, match="nested too deeply"):
        shapes.check("sagemaker", "Search", {"Resource": "TrainingJob", "SearchExpression": search})


def test_a_member_that_s_unknown_to_the_model_is_named():
    with pytest.raises(ServiceError, match=r"did you mean 'TrainingJobName'\?"):
        shapes.check("sagemaker", "DescribeTrainingJob", {"TrainingJobNam": "x"})
    with pytest.raises(ServiceError) as unknown: shapes.check("sagemaker", "CreateNothing", {})
    assert unknown.value.code == "UnknownOperationException"


@pytest.mark.parametrize("operation", sorted(GOOD))
def test_the_real_handlers_refuse_too(bench, operation):
    "The parts that run jobs ask these checks first."
    if operation not in bench.real: pytest.skip("this part isn't in the rehearsal")
    request = {**GOOD[operation], "Tags": [{"Key": "aws:x", "Value": ""}]}
    with pytest.raises(ServiceError, match="tags.1.member.key"):
        bench.real[operation](Call("sagemaker", operation, request))


def test_the_context_is_all_they_need(bench):
    "A check asks the endpoint of its context and nothing else of this machine."
    context = Context(bench.running.endpoint, bench.context.folder)
    checks.training(Call("sagemaker", "CreateTrainingJob", TRAIN), context)


@pytest.fixture
def working(bench):
    "A function that gives a new role these statements and asks what a job of it fails with."
    made: list[str] = []

    def failure(request: dict, *allowed: tuple[str, str, str]) -> str | None:
        iam, name = bench.context.client("iam"), f"Worker{len(made)}"
        made.append(name)
        arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust(
            "sagemaker.amazonaws.com"))["Role"]["Arn"]
        if allowed:
            iam.put_role_policy(RoleName=name, PolicyName="Work", PolicyDocument=json.dumps({
                "Version": "2012-10-17",
                "Statement": [{"Effect": e, "Action": a, "Resource": r} for e, a, r in allowed]}))
        operation = "CreateProcessingJob" if "ProcessingJobName" in request else "CreateTrainingJob"
        return checks.start_failure(Call("sagemaker", operation, {**request, "RoleArn": arn}),
                                    bench.context)

    yield failure
    iam = bench.context.client("iam")
    for name in made:
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            iam.delete_role_policy(RoleName=name, PolicyName=policy)
        iam.delete_role(RoleName=name)


LIST, READ = ("Allow", "s3:ListBucket", "arn:aws:s3:::bench"), \
    ("Allow", "s3:GetObject", "arn:aws:s3:::bench/train/*")
WRITE = ("Allow", "s3:PutObject", "arn:aws:s3:::bench/out/*")


@pytest.mark.parametrize("allowed, word", [
    ((), "s3:ListBucket"), ((LIST,), "s3:GetObject"), ((READ, WRITE), "s3:ListBucket"),
    ((LIST, READ), "Artifact upload failed:Unable to upload to s3://bench/out/job-1/output"),
    ((LIST, READ, ("Allow", "s3:PutObject", "arn:aws:s3:::other/*")), "s3:PutObject"),
    ((LIST, READ, WRITE, ("Deny", "s3:*", "arn:aws:s3:::bench/train/list*")),
     "with an explicit deny in an identity-based policy"),
])
def test_a_job_fails_whose_role_may_not_work(working, allowed, word):
    failure = working(TRAIN, *allowed)
    assert failure.startswith("ClientError: ") and word in failure
    assert "assumed-role/Worker0/SageMaker is not authorized to perform" in failure


@pytest.mark.parametrize("allowed", [
    (LIST, READ, WRITE), (("Allow", "*", "*"),),
    (("Allow", "s3:List*", "*"), ("Allow", "s3:Get*", "arn:aws:s3:::*"), WRITE)])
def test_a_job_begins_whose_role_may_work(working, allowed):
    assert working(TRAIN, *allowed) is None


def test_processing_roles_are_asked_too(working):
    assert "s3:PutObject" in working(PROCESS, LIST, READ)
    assert working(PROCESS, LIST, READ, ("Allow", "s3:PutObject",
                                         "arn:aws:s3:::bench/clean/*")) is None


def test_a_bucket_s_policy_decides_with_the_role_s(bench, working):
    s3 = bench.context.client("s3")
    def policy(effect, action, resource, principal):
        s3.put_bucket_policy(Bucket="bench", Policy=json.dumps({"Statement": [
            {"Effect": effect, "Principal": principal, "Action": action, "Resource": resource}]}))
    try:
        policy("Deny", "s3:GetObject", "arn:aws:s3:::bench/*", "*")
        assert "a resource-based policy" in working(TRAIN, ("Allow", "*", "*"))
        policy("Allow", "s3:*", ["arn:aws:s3:::bench", "arn:aws:s3:::bench/*"],
               {"AWS": "arn:aws:iam::123456789012:root"})
        assert working(TRAIN) is None
    finally: s3.delete_bucket_policy(Bucket="bench")


@pytest.mark.parametrize("condition, falls", [
    ({"Bool": {"aws:SecureTransport": "false"}}, False),
    ({"StringNotEquals": {"s3:x-amz-server-side-encryption": "aws:kms"}}, False),
    ({"StringNotEquals": {"s3:x-amz-server-side-encryption": "AES256"}}, True),
    ({"StringNotLike": {"s3:x-amz-server-side-encryption-aws-kms-key-id": "*:key/ours"}}, True),
    ({"StringNotEquals": {"aws:SourceVpce": "vpce-1"}}, True),
    ({"ArnNotLike": {"aws:PrincipalArn": "arn:aws:iam::*:role/Worker*"}}, False),
])
def test_a_bucket_s_conditions_know_the_request(bench, working, condition, falls):
    s3 = bench.context.client("s3")
    s3.put_bucket_policy(Bucket="bench", Policy=json.dumps({"Statement": [
        {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject",
         "Resource": "arn:aws:s3:::bench/*", "Condition": condition}]}))
    try: failure = working(TRAIN, ("Allow", "*", "*"))
    finally: s3.delete_bucket_policy(Bucket="bench")
    assert bool(failure) == falls, failure


def test_a_key_must_be_usable(bench, working):
    secret = changed(TRAIN, {"OutputDataConfig.KmsKeyId": "alias/bench"})
    assert "kms:GenerateDataKey" in working(secret, LIST, READ, WRITE)
    use = ("Allow", "kms:GenerateDataKey", bench.key)
    assert working(secret, LIST, READ, WRITE, use) is None


def test_the_first_role_of_a_rehearsal_may_do_all_this(bench):
    roles = bench.context.client("iam").list_roles()["Roles"]
    furnished = [r["Arn"] for r in roles if r["RoleName"].startswith("SageMaker")]
    assert furnished
    bucket = "sagemaker-us-east-1-123456789012"
    bench.context.client("s3").put_object(Bucket=bucket, Key="train/x", Body=b"x")
    request = changed(TRAIN, {"RoleArn": furnished[0], f"{SOURCE}.S3Uri": f"s3://{bucket}/train",
                              "OutputDataConfig.S3OutputPath": f"s3://{bucket}/out"})
    assert checks.start_failure(Call("sagemaker", "CreateTrainingJob", request),
                                bench.context) is None


def test_a_public_subnet_does_not_lead_to_s3(bench, working):
    "An internet gateway is no use to a job's interfaces, which have no public addresses."
    anything = ("Allow", "*", "*")
    inside = {**TRAIN, "VpcConfig": bench.network}
    assert "route to an S3 VPC endpoint" in working(inside, anything)
    ec2 = bench.context.client("ec2")
    vpc_id = ec2.create_vpc(CidrBlock="10.8.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc_id, CidrBlock="10.8.0.0/24")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(GroupName="y", Description="-", VpcId=vpc_id)["GroupId"]
    private = {**TRAIN, "VpcConfig": {"Subnets": [subnet], "SecurityGroupIds": [group]}}
    assert "route to an S3 VPC endpoint" in working(private, anything)
    [table] = [t["RouteTableId"] for t in ec2.describe_route_tables()["RouteTables"]
               if t["VpcId"] == vpc_id]
    ec2.create_vpc_endpoint(VpcId=vpc_id, ServiceName="com.amazonaws.us-east-1.s3",
                            RouteTableIds=[table])
    assert working(private, anything) is None


def test_two_slashes_fail_a_download_and_not_a_stream(bench, working):
    bench.context.client("s3").put_object(Bucket="bench", Key="twice//x", Body=b"x")
    twice = changed(TRAIN, {f"{SOURCE}.S3Uri": "s3://bench/twice"})
    assert "illegal char sub-sequence '//'" in working(twice, ("Allow", "*", "*"))
    assert working(changed(twice, {f"{FIRST}.InputMode": "FastFile"}), ("Allow", "*", "*")) is None


def test_data_must_fit_onto_the_disk(bench, working, monkeypatch):
    from ftnb.rehearsal import room
    anything, gigabyte = ("Allow", "*", "*"), 1024**3
    monkeypatch.setattr(room, "size", lambda uri, context: 40 * gigabyte)
    assert "Insufficient disk space: 40.0 GB to download, 30 GB" in working(TRAIN, anything)
    assert "Insufficient disk space" in working(PROCESS, anything)
    for fits in ({"ResourceConfig.VolumeSizeInGB": 50}, {f"{FIRST}.InputMode": "FastFile"},
                 {"ResourceConfig.InstanceType": "ml.g5.xlarge"},
                 {f"{SOURCE}.S3DataDistributionType": "ShardedByS3Key",
                  "ResourceConfig.InstanceCount": 2}):
        assert working(changed(TRAIN, fits), anything) is None
