"""``python -m ptycho_torch.train …``: the same as ``heimdall train ptychography …``, which knows all the old flags."""

import sys

from heimdall.cli import main

if __name__ == "__main__":
    main(["train", "ptychography", *sys.argv[1:]])
