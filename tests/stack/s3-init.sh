#!/bin/sh
# What services/minio/init.sh does with mc, done for SeaweedFS: buckets, and one user who reaches these alone.
set -eu
python - make <<'P'
import os, boto3
client = boto3.client("s3", endpoint_url=os.environ["MINIO_ENDPOINT"], aws_access_key_id=os.environ["MINIO_ROOT_USER"],
                      aws_secret_access_key=os.environ["MINIO_ROOT_PASSWORD"], region_name="us-east-1")
present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
for bucket in set(os.environ["HEIMDALL_BUCKETS"].split()) - present:
    client.create_bucket(Bucket=bucket)
P
# Its answer repeats the secret, so it is not shown.
echo "s3.configure -user=heimdall-training -access_key=$S3_ACCESS_KEY_ID -secret_key=$S3_SECRET_ACCESS_KEY" \
  "-actions=Read,Write,List,Tagging -buckets=$(echo "$HEIMDALL_BUCKETS" | tr ' ' ',') -apply" | weed shell -master=minio:9333 >/dev/null 2>&1
python - <<'P'
import os, time, boto3
client = boto3.client("s3", endpoint_url=os.environ["MINIO_ENDPOINT"], aws_access_key_id=os.environ["S3_ACCESS_KEY_ID"],
                      aws_secret_access_key=os.environ["S3_SECRET_ACCESS_KEY"], region_name="us-east-1")
for attempt in range(20):
    try:
        for bucket in os.environ["HEIMDALL_BUCKETS"].split():
            client.list_objects_v2(Bucket=bucket)
        break
    except client.exceptions.ClientError:
        if attempt == 19:
            raise
        time.sleep(0.5)
P
echo "s3-init: buckets are there ($HEIMDALL_BUCKETS), and one user who reaches only these"
