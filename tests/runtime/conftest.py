"""What the runtime's tests share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # test modules import `virtual_machine` and `tiny_models` by plain name
