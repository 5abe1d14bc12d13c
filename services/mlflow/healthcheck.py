"""Is the server usable? Asks what a client asks, under the host name and the account that clients use.

`/health` is green while the host check answers 403 to everybody, and while the database is gone: it is not asked.
"""

import base64
import os
import sys
import urllib.error
import urllib.request

QUESTION = "http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=1"


def main() -> None:
    request = urllib.request.Request(QUESTION, headers={"Host": "mlflow:5000"})
    if os.environ.get("MLFLOW_AUTH", "").lower() == "true":
        account = f"{os.environ['MLFLOW_TRACKING_USERNAME']}:{os.environ['MLFLOW_TRACKING_PASSWORD']}"
        request.add_header("Authorization", "Basic " + base64.b64encode(account.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=8) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        sys.exit(f"MLflow answers {error.code} to a client: {error.read(300).decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"MLflow does not answer: {error}")


if __name__ == "__main__":
    main()
