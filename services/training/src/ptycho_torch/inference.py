"""``python -m ptycho_torch.inference …``: the same as ``heimdall reconstruct …``."""

import sys

from heimdall.cli import main

if __name__ == "__main__":
    main(["reconstruct", *sys.argv[1:]])
