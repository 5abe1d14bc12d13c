#!/bin/sh
# Makes the buckets, and one user who can reach these buckets and nothing else. Running it again changes nothing,
# except that a new secret in .env replaces the old one. Needs only sh and mc: the image has no grep, no sed.
set -eu
BUCKETS=${HEIMDALL_BUCKETS:?names of the buckets, separated by spaces}
POLICY=heimdall-training
policy_file=/tmp/policy.json

fail() { echo "minio-init: $*" >&2; exit 1; }

mc --quiet alias set store "${MINIO_ENDPOINT:?}" "${MINIO_ROOT_USER:?}" "${MINIO_ROOT_PASSWORD:?}" >/dev/null 2>/tmp/alias.log ||
  fail "the object store at $MINIO_ENDPOINT refuses MINIO_ROOT_USER and MINIO_ROOT_PASSWORD of .env: $(cat /tmp/alias.log)"

resources=
for bucket in $BUCKETS; do
  mc --quiet mb --ignore-existing "store/$bucket"
  # The bucket and what is in it: rights on "bucket/*" alone do not include listing the bucket.
  resources="$resources${resources:+,}\"arn:aws:s3:::$bucket\",\"arn:aws:s3:::$bucket/*\""
done

printf '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":[%s],"Resource":[%s]}]}\n' \
  '"s3:GetBucketLocation","s3:ListBucket","s3:ListBucketMultipartUploads","s3:GetObject","s3:PutObject","s3:DeleteObject","s3:AbortMultipartUpload","s3:ListMultipartUploadParts"' \
  "$resources" >"$policy_file"
mc --quiet admin policy create store "$POLICY" "$policy_file"
mc --quiet admin user add store "${S3_ACCESS_KEY_ID:?}" "${S3_SECRET_ACCESS_KEY:?}"
# A policy that is attached already makes the command fail, so what counts is what the user has in the end.
mc --quiet admin policy attach store "$POLICY" --user "$S3_ACCESS_KEY_ID" >/tmp/attach.log 2>&1 || true
case $(mc --quiet admin user info store "$S3_ACCESS_KEY_ID") in
  *"$POLICY"*) ;;
  *) fail "policy $POLICY could not be attached: $(cat /tmp/attach.log)" ;;
esac
echo "minio-init: buckets are there ($BUCKETS), and one user who reaches only these"
