"""The stated name of a step that is in the image: the same as `marketdata validate …`."""

import sys

from marketdata.tasks.cli import main

sys.argv.insert(1, "validate")
main()
