"""Train the localization network: the same as ``heimdall train localization …``."""

import sys

from heimdall.cli import main

if __name__ == "__main__":
    main(["train", "localization", *sys.argv[1:]])
